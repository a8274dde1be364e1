"""One key lands on one endpoint: a real Envoy and this library find the same one.

`ORACLE_CASES` (default 1,200) keys are looked up in the two usual tables for each of nine sets of endpoints,
and some in others.
"""

import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from support.oracle_balance import Balanced, Call, balanced

from meshlib.core.balance.hashing import HashPolicy, key_of
from meshlib.core.balance.pick import Retry, pick
from meshlib.core.ledger import ClusterState
from meshlib.core.request import RequestHead
from meshlib.dataplane.decode.hashing import decode_hash_policies
from meshlib.xds import pb

KEYS = int(os.environ.get("ORACLE_CASES", "1200"))
HEADER = {"header": {"header_name": "x-key"}}
PREVIOUS = "envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"
RETRY = {
    "retry_on": "5xx",
    "num_retries": 1,
    "host_selection_retry_max_attempts": 5,
    "retry_back_off": {"base_interval": "0.001s"},
    "retry_host_predicate": [
        {
            "name": "envoy.retry_host_predicates.previous_hosts",
            "typed_config": {"@type": f"type.googleapis.com/{PREVIOUS}"},
        }
    ],
}
MANY_RETRIES = {"circuit_breakers": {"thresholds": [{"max_retries": 1000}]}}
RING, MAGLEV = {"lb_policy": "RING_HASH", **MANY_RETRIES}, {"lb_policy": "MAGLEV", **MANY_RETRIES}
WEIGHTED = {"common_lb_config": {"locality_weighted_lb_config": {}}}
CALM = {"common_lb_config": {"healthy_panic_threshold": {"value": 0}}}
EXTENSIONS = "type.googleapis.com/envoy.extensions.load_balancing_policies"


def extension(kind: str, **said: Any) -> dict[str, Any]:
    """The newer way to name a policy."""
    config = {"name": kind, "typed_config": {"@type": f"{EXTENSIONS}.{kind}", **said}}
    return {"load_balancing_policy": {"policies": [{"typed_extension_config": config}]}, **MANY_RETRIES}


CLUSTERS: dict[str, dict[str, Any]] = {
    "ring": RING,
    "maglev": MAGLEV,
    "small ring": {**RING, "ring_hash_lb_config": {"minimum_ring_size": 10, "maximum_ring_size": 37}},
    "large ring": {**RING, "ring_hash_lb_config": {"minimum_ring_size": 20_000}},
    "small table": {**MAGLEV, "maglev_lb_config": {"table_size": 1021}},
    "ring of localities": {**RING, **WEIGHTED},
    "table of localities": {**MAGLEV, **WEIGHTED},
    "calm ring": {**RING, **CALM},
    "newer ring": extension("ring_hash.v3.RingHash", minimum_ring_size=77, consistent_hashing_lb_config={}),
    "newer table": extension("maglev.v3.Maglev", table_size=4099, locality_weighted_lb_config={}),
}
MAIN = ("ring", "maglev")


def place(zone: str, weight: int, endpoints: Sequence[Any], priority: int = 0) -> dict[str, Any]:
    """A LocalityLbEndpoints."""
    return {
        "locality": {"region": "r", "zone": zone},
        "load_balancing_weight": weight,
        "priority": priority,
        "lb_endpoints": list(endpoints),
    }


def sets(envoy: Balanced) -> list[list[dict[str, Any]]]:
    """Endpoints that come, go, fall ill, weigh more, and stand in localities and priorities."""

    def some(numbers: Sequence[int], sick: Sequence[int] = (), **more: Any) -> list[Any]:
        health = {n: "UNHEALTHY" if n in sick else "HEALTHY" for n in numbers}
        return [envoy.endpoint(n, hostname=f"host-{n}", health_status=health[n], **more) for n in numbers]

    heavy = [
        envoy.endpoint(n, hostname=f"host-{n}", load_balancing_weight=(n * 7) % 5 + 1) for n in range(12)
    ]
    odd = [envoy.endpoint(9), *[envoy.endpoint(n, load_balancing_weight=n) for n in (10, 11)]]
    keyed = [
        envoy.endpoint(
            n, hostname=f"host-{n}", metadata={"filter_metadata": {"envoy.lb": {"hash_key": f"key-{n}"}}}
        )
        for n in (3, 1, 4, 5)
    ]
    return [
        [place("a", 1, some(range(12)))],
        [place("a", 1, some([n for n in range(12) if n != 4]))],
        [place("a", 1, some(range(11, 2, -1), sick=(5, 7)))],
        [place("a", 1, heavy)],
        [place("a", 1, some(range(8), sick=range(3, 8)))],
        [
            place("a", 3, some(range(4))),
            place("b", 1, some(range(4, 9), sick=(8,))),
            place("c", 2, odd),
        ],
        [place("a", 1, some(range(4), sick=(0, 1))), place("a", 1, some(range(4, 9)), priority=1)],
        [place("a", 1, keyed)],
        [place("a", 1, some([6]))],
    ]


def decoded(policies: Sequence[Any]) -> tuple[HashPolicy, ...]:
    """As a route has them."""
    return decode_hash_policies(pb.from_dict(pb.RouteAction, {"hash_policy": policies}).hash_policy)


def ours(envoy: Balanced, call: Call, policies: Sequence[Any], state: ClusterState, *, fails: bool) -> str:
    """The address of the endpoint that this library sends a call to: the last one, if it fails."""
    cluster, path, headers = call
    encoded = [(name.encode(), value.encode()) for name, value in headers]
    head = RequestHead("GET", "http", "x", path, encoded)
    key, _ = key_of(policies, head, "127.0.0.1", random)
    found = pick(envoy.clusters[cluster], envoy.endpoints, state, 0.0, random, key=key)
    if fails and found is not None:
        again = Retry([found.key], 5)
        found = pick(envoy.clusters[cluster], envoy.endpoints, state, 0.0, random, again, key)
    return "" if found is None else found.key


async def differences(
    envoy: Balanced, calls: Sequence[Call], policies: Any, *, fails: bool = False
) -> list[str]:
    """What this library sends elsewhere, in words."""
    received = await envoy.ask(calls)
    states: dict[str, ClusterState] = {}
    made = []
    for call, got in zip(calls, received, strict=True):
        theirs = dict(got.headers).get("x-host", "")
        own = ours(envoy, call, policies[call[0]], states.setdefault(call[0], ClusterState()), fails=fails)
        if theirs != own:
            made.append(f"{call}: Envoy {theirs or got}, ours {own}")
    return made


async def test_keys_land_on_the_same_endpoints_as_these_change(tmp_path: Path) -> None:
    policies = decoded([HEADER])
    routes = {name: {"route": {"hash_policy": [HEADER], "retry_policy": RETRY}} for name in CLUSTERS}
    dice = random.Random(20)
    found: list[str] = []
    async with balanced(CLUSTERS, tmp_path, size=12, routes=routes) as envoy:
        for listed in sets(envoy):
            await envoy.change(listed)
            calls: list[Call] = []
            for name in CLUSTERS:
                keys = [f"{dice.getrandbits(48):x}" for _ in range(KEYS // 2 if name in MAIN else KEYS // 40)]
                calls += [(name, "/", [("x-key", key)]) for key in keys]
            found += await differences(envoy, calls, dict.fromkeys(CLUSTERS, policies))
            again = [(name, path, [*headers, ("x-fail", "1")]) for name, path, headers in calls[::40]]
            found += await differences(envoy, again, dict.fromkeys(CLUSTERS, policies), fails=True)
    assert not found, f"{len(found)} differ\n" + "\n".join(found[:10])


def cookie(**more: Any) -> dict[str, Any]:
    return {"cookie": {"name": "user", **more}}


QUERY = {"query_parameter": {"name": "user"}}
SOURCE = {"connection_properties": {"source_ip": True}}
OTHER = {"header": {"header_name": "X-Other"}}
POLICIES: dict[str, list[dict[str, Any]]] = {
    "header": [HEADER],
    "agent": [{"header": {"header_name": "user-agent"}}],
    "path": [{"header": {"header_name": ":path"}}],
    "host": [{"header": {"header_name": "host"}}],
    "cookies": [{"header": {"header_name": "cookie"}}],
    "cookie": [cookie()],
    "query": [QUERY],
    "source": [SOURCE],
    "no source": [{"connection_properties": {}}, HEADER],
    "two": [HEADER, OTHER],
    "twice": [HEADER, HEADER],
    "four": [cookie(), QUERY, HEADER, SOURCE],
    "terminal": [{**HEADER, "terminal": True}, {**cookie(), "terminal": True}, QUERY, SOURCE],
    "last terminal": [QUERY, {**OTHER, "terminal": True}, SOURCE],
}
REQUESTS: list[tuple[str, list[tuple[str, str]]]] = [
    ("/", [("x-key", "a")]),
    ("/", [("X-Key", "a"), ("x-key", "b")]),
    ("/", [("x-key", "b"), ("x-key", "a")]),
    ("/", [("x-key", "b"), ("x-other", "a")]),
    ("/", [("x-key", "b,a")]),
    ("/", [("x-key", "")]),
    ("/", [("x-key", "a"), ("x-key", ""), ("x-other", "")]),
    ("/", [("user-agent", "a"), ("user-agent", "b")]),
    ("/", [("user-agent", "b"), ("user-agent", "a")]),
    ("/", [("cookie", "user=a")]),
    ("/", [("cookie", "x=1;user=a; user=b")]),
    ("/", [("cookie", 'user="a"')]),
    ("/", [("cookie", 'user="')]),
    ("/", [("cookie", "user=")]),
    ("/", [("cookie", "user=; user=b")]),
    ("/", [("cookie", "user = a; user=b")]),
    ("/", [("cookie", "users=1; USER=2; user")]),
    ("/", [("cookie", "user=a=b")]),
    ("/", [("cookie", "a=1"), ("cookie", "user=c")]),
    ("/", [("cookie", ";;  user=d;")]),
    ("/?user=1", []),
    ("/?user=2&user=3", []),
    ("/?a=1&&user=&b", []),
    ("/?user", []),
    ("/?user=a=b", []),
    ("/?user=%41+%20", []),
    ("/?users=1", [("x-key", "z")]),
    ("/a/b?x=1?user=3", []),
    ("/?x?user=3", []),
    ("/?user=1", [("x-key", "z"), ("cookie", "user=m"), ("x-other", "y")]),
    ("/?user=1", [("x-other", "y")]),
    ("/", [("x-forwarded-for", "1.2.3.4")]),
    ("/", [("x-forwarded-for", "1.2.3.4, 5.6.7.8")]),
    ("/", [("x-forwarded-for", "1.2.3.4"), ("x-forwarded-for", "9.9.9.9")]),
    ("/", [("x-forwarded-for", "1.2.3.4,2001:DB8::1")]),
    ("/", [("x-forwarded-for", "1.2.3.4, unknown")]),
    ("/", [("x-forwarded-for", "1.2.3.4:80")]),
    ("/", [("x-forwarded-for", "")]),
]


async def test_the_same_is_hashed(tmp_path: Path) -> None:
    """In a ring of 12, a key that differs shows eleven times of twelve; here each shows in two rings."""
    tables = {"ring": RING, "maglev": MAGLEV}
    names = {f"{policy} {table}": (policy, table) for policy in POLICIES for table in tables}
    clusters = {name: tables[table] for name, (_, table) in names.items()}
    routes = {name: {"route": {"hash_policy": POLICIES[policy]}} for name, (policy, _) in names.items()}
    policies = {name: decoded(POLICIES[policy]) for name, (policy, _) in names.items()}
    calls: list[Call] = [(name, path, headers) for name in names for path, headers in REQUESTS]
    async with balanced(clusters, tmp_path, size=12, routes=routes) as envoy:
        await envoy.change([place("a", 1, [envoy.endpoint(n) for n in range(12)])])
        with_key = [call for call in calls if _has_key(call, policies[call[0]])]
        found = await differences(envoy, with_key, policies)
        assert not found, f"{len(found)} of {len(with_key)} differ\n" + "\n".join(found[:10])
        # Without a key any endpoint will do: over many requests, several.
        without = next(call for call in calls if not _has_key(call, policies[call[0]]))
        hosts = {dict(got.headers)["x-host"] for got in await envoy.ask([without] * 40)}
        assert len(hosts) > 3


def _has_key(call: Call, policies: Sequence[Any]) -> bool:
    _, path, headers = call
    head = RequestHead("GET", "http", "x", path, [(n.encode(), v.encode()) for n, v in headers])
    return key_of(policies, head, "127.0.0.1", random)[0] is not None
