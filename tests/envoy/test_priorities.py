"""Priorities, localities, degraded endpoints and panic: a real Envoy and this library send as much to each.

`ORACLE_CASES` (default 6) lists of endpoints are generated from a fixed seed, and half as many from a fresh
one, which is told and can be given as `ORACLE_SEED`. Where a policy looks at keys, which priority
takes a request is no chance: there every pick is compared. Elsewhere shares are, within six standard
deviations of their difference; who gets nothing here must get nothing there.
"""

import os
import random
from collections import Counter
from math import sqrt
from pathlib import Path
from typing import Any

import pytest
from support.oracle_balance import Balanced, balanced

from meshlib.core.balance.hashing import HashHeader, key_of
from meshlib.core.balance.pick import Retry, pick
from meshlib.core.ledger import ClusterState
from meshlib.core.request import RequestHead

CASES = int(os.environ.get("ORACLE_CASES", "6"))
FRESH_SEED = int(os.environ["ORACLE_SEED"])
ENDPOINTS, KEYS, REQUESTS, OWN = 14, 120, 240, 6_000
MANY_RETRIES: dict[str, Any] = {"circuit_breakers": {"thresholds": [{"max_retries": 1000}]}}
HASHED = {"hash_policy": [{"header": {"header_name": "x-key"}}]}


def common(**said: Any) -> dict[str, Any]:
    return {"common_lb_config": said}


def threshold(percent: float) -> dict[str, Any]:
    return {"healthy_panic_threshold": {"value": percent}}


WEIGHTED: dict[str, Any] = {"locality_weighted_lb_config": {}}
RINGS: dict[str, dict[str, Any]] = {
    "ring": {"lb_policy": "RING_HASH"},
    "calm ring": {"lb_policy": "RING_HASH", **common(**threshold(0))},
    "anxious ring": {"lb_policy": "RING_HASH", **common(**threshold(90))},
    "ring of localities": {"lb_policy": "RING_HASH", **common(**WEIGHTED, **threshold(33.3))},
}
OTHERS: dict[str, dict[str, Any]] = {
    "turns": {"lb_policy": "ROUND_ROBIN"},
    "localities": {"lb_policy": "ROUND_ROBIN", **common(**WEIGHTED)},
    "calm localities": {"lb_policy": "LEAST_REQUEST", **common(**WEIGHTED, **threshold(0))},
    "failing": {
        "lb_policy": "RANDOM",
        **common(zone_aware_lb_config={"fail_traffic_on_panic": True}, **threshold(70)),
    },
}


def generated(envoy: Balanced, dice: random.Random) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Localities, and the policy of the list."""
    numbers = iter(range(ENDPOINTS))
    made = []
    for priority in range(dice.randint(1, 3)):
        well = dice.choice((0.1, 0.4, 0.7, 1.0))
        for zone in range(dice.randint(1, 2)):
            endpoints = []
            for number, _ in zip(numbers, range(dice.randint(0, 4)), strict=False):
                health = dice.choice(("UNHEALTHY", "DRAINING", "DEGRADED", "DEGRADED"))
                if dice.random() < well:
                    health = "HEALTHY"
                weight = dice.choice((1, 1, 1, 3))
                endpoints.append(envoy.endpoint(number, health_status=health, load_balancing_weight=weight))
            place = {"locality": {"zone": f"z{zone}"}, "priority": priority, "lb_endpoints": endpoints}
            made.append(place | ({"load_balancing_weight": w} if (w := dice.randint(0, 3)) else {}))
    policy: dict[str, Any] = {}
    if dice.random() < 0.5:
        policy["overprovisioning_factor"] = dice.choice((100, 120, 200))
    policy["weighted_priority_health"] = dice.random() < 0.3
    return made, policy


@pytest.mark.parametrize(("seed", "cases"), [(4, CASES), (FRESH_SEED, CASES // 2)], ids=["fixed", "fresh"])
async def test_each_takes_as_much_as_from_envoy(seed: int, cases: int, tmp_path: Path) -> None:
    dice = random.Random(seed)
    clusters = RINGS | OTHERS
    routes = {name: {"route": HASHED} for name in RINGS}
    found: list[str] = []
    async with balanced(clusters, tmp_path, size=ENDPOINTS, routes=routes) as envoy:
        for _ in range(cases):
            listed, policy = generated(envoy, dice)
            await envoy.change(listed, **policy)
            said = [f"{name}: {each}" for name in RINGS for each in await by_key(envoy, name, dice)]
            said += [f"{name}: {each}" for name in OTHERS for each in await by_share(envoy, name, dice)]
            found += [f"{each}\n  {policy} {_short(listed)}" for each in said]
    assert not found, f"ORACLE_SEED={seed}: {len(found)} differ\n" + "\n".join(found[:10])


async def by_key(envoy: Balanced, cluster: str, dice: random.Random) -> list[str]:
    """Keys that land elsewhere, in words."""
    keys = [f"{dice.getrandbits(40):x}" for _ in range(KEYS)]
    received = await envoy.ask([(cluster, "/", [("x-key", key)]) for key in keys], batch=1)
    state, made = ClusterState(), []
    for each, got in zip(keys, received, strict=True):
        head = RequestHead("GET", "http", "x", "/", [(b"x-key", each.encode())])
        key, _ = key_of([HashHeader(b"x-key")], head, "", dice)
        picked = pick(envoy.clusters[cluster], envoy.endpoints, state, 0.0, dice, key=key)
        own, theirs = "" if picked is None else picked.key, _host(got)
        if own != theirs:
            made.append(f"{each}: Envoy {theirs}, ours {own}")
    return made


async def by_share(envoy: Balanced, cluster: str, dice: random.Random) -> list[str]:
    """Endpoints that get another share, in words."""
    theirs = Counter(map(_host, await envoy.ask([(cluster, "/", ())] * REQUESTS, batch=1)))
    state, ours = ClusterState(), Counter[str]()
    for _ in range(OWN):
        picked = pick(envoy.clusters[cluster], envoy.endpoints, state, 0.0, dice)
        ours["" if picked is None else picked.key] += 1
    return unlike(theirs, ours)


def unlike(theirs: Counter[str], ours: Counter[str]) -> list[str]:
    """Endpoints whose shares differ by more than chance, in words."""
    few, many = theirs.total(), ours.total()
    made = []
    for host in theirs | ours:
        share = (theirs[host] + ours[host]) / (few + many)
        bound = 6 * sqrt(share * (1 - share) * (1 / few + 1 / many))
        if abs(theirs[host] / few - ours[host] / many) > bound or (theirs[host] and not ours[host]):
            made.append(f"{host}: Envoy {theirs[host]} of {few}, ours {ours[host]} of {many}")
    return made


def _host(got: Any) -> str:
    host = dict(got.headers).get("x-host", "-")
    return "" if host == "-" else host


def _short(listed: list[dict[str, Any]]) -> list[Any]:
    return [
        (
            place["priority"],
            place.get("load_balancing_weight"),
            [f"{e['health_status'][:2]}{e['load_balancing_weight']}" for e in place["lb_endpoints"]],
        )
        for place in listed
    ]


PREVIOUS = (
    "type.googleapis.com/envoy.extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig"
)


async def test_retries_leave_the_priorities_tried(tmp_path: Path) -> None:
    """Each request fails as often as it may be tried; where its last try went, shows the priorities left."""
    cases = [(frequency, retries) for frequency in (1, 2) for retries in range(1, 6)]
    clusters = {str(case): {"lb_policy": "ROUND_ROBIN", **MANY_RETRIES} for case in cases}
    routes = {str(case): {"route": {"retry_policy": _retry(*case)}} for case in cases}
    async with balanced(clusters, tmp_path, size=6, routes=routes) as envoy:
        # Of the first three one is well, which is 46 %; the next two take 54 %, the last one nothing.
        health = (("HEALTHY", "UNHEALTHY", "UNHEALTHY"), ("HEALTHY", "HEALTHY"), ("HEALTHY",))
        numbers = iter(range(6))
        levels = [[envoy.endpoint(next(numbers), health_status=each) for each in level] for level in health]
        await envoy.change([{"priority": n, "lb_endpoints": level} for n, level in enumerate(levels)])
        for frequency, retries in cases:
            cluster = str((frequency, retries))
            received = await envoy.ask([(cluster, "/", [("x-fail", "1")])] * (REQUESTS // 2), batch=1)
            ours: Counter[str] = Counter()
            state, dice = ClusterState(), random.Random(1)
            for _ in range(OWN // 4):
                tried: list[str] = []
                for _ in range(retries + 1):
                    again = Retry(tried, 0, frequency) if tried else None
                    picked = pick(envoy.clusters[cluster], envoy.endpoints, state, 0.0, dice, again)
                    assert picked is not None
                    tried.append(picked.key)
                ours[tried[-1]] += 1
            assert not unlike(Counter(map(_host, received)), ours), cluster


def _retry(frequency: int, retries: int) -> dict[str, Any]:
    config = {"@type": PREVIOUS, "update_frequency": frequency}
    return {
        "retry_on": "5xx",
        "num_retries": retries,
        "retry_back_off": {"base_interval": "0.001s"},
        "retry_priority": {
            "name": "envoy.retry_priorities.previous_priorities",
            "typed_config": config,
        },
    }
