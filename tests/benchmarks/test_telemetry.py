"""What it costs a request to be told of: both sides, by what wants to be told.

    pytest tests/benchmarks/test_telemetry.py --benchmark-enable -s

Goal: next to nothing while nobody wants to be told, and at most 40 microseconds inbound with metrics.
What is done with a measurement afterwards, on a thread of its own, by the SDK or by the mesh's own
MeterProvider, stands behind it.
Without --benchmark-enable a short round only checks that everything works.
"""

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON
from support.telemetry import Told

import meshlib
from meshlib.bootstrap import bootstrap
from meshlib.core.actions import Facts
from meshlib.core.request import Peer, RequestHead
from meshlib.dataplane.body import RequestBody
from meshlib.dataplane.telemetry import metrics
from meshlib.dataplane.telemetry.inbound import Inbound
from meshlib.dataplane.telemetry.outbound import watch
from meshlib.dataplane.telemetry.watch import Telemetry

WHO = bootstrap({}, service="productpage", state_dir="", labels="app=productpage,version=v1")
CLUSTER = "outbound|9080|v2|reviews.default.svc.cluster.local"
FACTS = Facts("r", "VirtualService default/reviews", "a.yaml:1", CLUSTER, "10.0.0.1:9080", 1)
HEADERS = [
    (b"content-type", b"application/json"),
    (b"content-length", b"100"),
    (b"server", b"x"),
    (b"date", b"now"),
]
PEER = Peer(("10.0.0.7", 4711), ("10.0.0.8", 9080), "spiffe://cluster.local/ns/default/sa/a", "", True)
VARIANTS = {
    "nobody": {"tracers": None, "meters": None},
    "metrics": {"tracers": None},
    "metrics of the mesh": {"tracers": None},
    "spans, not sampled": {"meters": None},
    "spans": {"meters": None},
    "metrics and spans": {},
    "access log": {"tracers": None, "meters": None},
}


def head() -> RequestHead:
    pairs = ((b"accept", b"*/*"), (b"user-agent", b"python-httpx/0.28"), (b"accept-encoding", b"gzip"))
    more = ((b"connection", b"keep-alive"), (b"x-request-id", b"d8f16ad9-2265-4b1f-88db-000000000001"))
    return RequestHead("GET", "http", "reviews:9080", "/reviews/0?a=b", [*pairs, *more])


def outbound(telemetry: Telemetry) -> None:
    watched = watch(telemetry, "reviews:9080", head(), RequestBody(b""))
    if watched is not None:
        watched.answered(200, HEADERS, FACTS, b"HTTP/1.1", own=False)
        watched.received += 100
        watched.end()


def inbound(telemetry: Telemetry) -> None:
    made = head()
    if telemetry.wants(9080):
        watched = Inbound(telemetry, made, PEER, 9080, "HTTP/1.1")
        token = watched.attach()
        watched.answered(200, HEADERS)
        watched.sent += 100
        watched.end()
        watched.detach(token)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("side", [outbound, inbound])
def test_a_request(
    variant: str,
    side: Callable[[Telemetry], None],
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rounds, requests = (15, 1000) if request.config.getoption("--benchmark-enable") else (1, 10)
    made = meshlib.MeterProvider if variant == "metrics of the mesh" else MeterProvider
    told = Told(ALWAYS_OFF if "not sampled" in variant else ALWAYS_ON, made)
    monkeypatch.setattr(metrics, "EVERY_SECONDS", 3600.0)
    settings = replace(WHO, access_log=os.devnull) if variant == "access log" else WHO
    telemetry = told.telemetry(settings, **VARIANTS[variant])
    if variant == "nobody":
        # As in a process that has an SDK's API loaded, and no SDK: the worst case.
        assert not telemetry.wants(9080)
    taken = []
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(requests):
            side(telemetry)
        watched = time.perf_counter() - start
        start = time.perf_counter()
        for _ in range(requests):
            head()
        taken.append((watched - (time.perf_counter() - start)) / requests * 1e6)
        told.spans_forgotten()
    print(f"\n{side.__name__:8} {variant:19}: {statistics.median(taken):6.1f} us", end="")
    if variant.startswith("metrics") and "spans" not in variant:
        start = time.perf_counter()
        ((count, _),) = told.requests()
        assert count == rounds * requests
        print(f", and {(time.perf_counter() - start) / count * 1e6:.1f} us to count them", end="")
    told.close()
