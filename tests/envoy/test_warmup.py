"""New endpoints warm up: over a window a real Envoy gives them what our weights say."""

import functools
import time
from collections import Counter
from pathlib import Path
from typing import Any

from support.oracle_balance import balanced

from meshlib.core.balance.policies import warmth

WINDOW, REQUESTS = 2.0, 300
SLACK = 8 / REQUESTS
"""Turns are no draws: a share is true but for a few of them."""


def slow(aggression: float, least: float) -> dict[str, Any]:
    said = {
        "slow_start_window": f"{WINDOW}s",
        "aggression": {"default_value": aggression, "runtime_key": "none"},
        "min_weight_percent": {"value": least},
    }
    return {"lb_policy": "ROUND_ROBIN", "round_robin_lb_config": {"slow_start_config": said}}


CLUSTERS = {"steady": slow(1.0, 10.0), "eager": slow(3.0, 10.0), "wary": slow(0.5, 1.0)}


async def test_the_share_of_a_new_endpoint_grows_as_envoys(tmp_path: Path) -> None:
    """Two endpoints come, and a third one later. When Envoy saw what, is known within bounds."""
    async with balanced(CLUSTERS, tmp_path, size=3) as envoy:
        endpoints = [envoy.endpoint(n) for n in range(3)]
        new = envoy.address(2)
        old_from = time.monotonic()
        await envoy.change([{"lb_endpoints": endpoints[:2]}])
        old_to = time.monotonic()
        await envoy.ask([("steady", "/", ())] * REQUESTS)
        new_from = time.monotonic()
        await envoy.change([{"lb_endpoints": endpoints}])
        new_to = time.monotonic()
        batches = 0
        while (start := time.monotonic()) < new_to + WINDOW or not batches:
            for name, cluster in envoy.clusters.items():
                assert cluster.warmup is not None
                start = time.monotonic()
                theirs = Counter(
                    dict(got.headers)["x-host"] for got in await envoy.ask([(name, "/", ())] * REQUESTS)
                )
                end = time.monotonic()
                warm = functools.partial(warmth, cluster.warmup)
                least = _share(warm(new_to, start), warm(old_from, end))
                most = _share(warm(new_from, end), warm(old_to, start))
                assert least - SLACK < theirs[new] / REQUESTS < most + SLACK, (name, start - new_to, theirs)
            batches += 1
        whole = Counter(
            dict(got.headers)["x-host"] for got in await envoy.ask([("wary", "/", ())] * REQUESTS)
        )
        assert abs(whole[new] / REQUESTS - 1 / 3) < SLACK


def _share(own: float, other: float) -> float:
    """Of one endpoint of that weight beside two of another."""
    return own / (own + 2 * other)
