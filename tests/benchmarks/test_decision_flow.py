"""What the whole of a decision costs: match, pick, slots, headers, learn; everything but the socket.

    pytest tests/benchmarks/test_decision_flow.py --benchmark-enable

Goal: at most 10 microseconds at 100 rules, and flat in the number of services.
"""

import random
import time
from contextlib import suppress
from dataclasses import replace

import pytest
from benchmarks.test_decision import FEW, HEADERS, view
from pytest_benchmark.fixture import BenchmarkFixture

from meshlib.core.actions import Attempt, BodyEnded, Deliver
from meshlib.core.balance.cluster import Cluster
from meshlib.core.balance.endpoints import Endpoint, EndpointSet, LocalityEndpoints
from meshlib.core.ledger import Ledger
from meshlib.core.outbound import flow
from meshlib.core.request import RequestHead, ResponseHead

ANSWER = ResponseHead(200, ((b"content-type", b"text/plain"), (b"content-length", b"2")))


class Empty:
    def replayable(self) -> bool:
        return True

    def once(self) -> None:
        pass


@pytest.mark.parametrize(("services", "rules"), [(10, 1), (10, 10), (10, 100), (1_000, 100), (10_000, 100)])
def test_whole_decision(benchmark: BenchmarkFixture, services: int, rules: int) -> None:
    services = services if benchmark.enabled else min(services, FEW)
    tables = view(services, rules)
    group = LocalityEndpoints("", 0, 1, tuple(Endpoint("127.0.0.1", 7000 + n) for n in range(3)))
    names = {
        c.name for t in tables.tables.values() for h in t.hosts for r in h.routes for c in r.action.clusters
    }
    whole = replace(
        tables,
        clusters={name: Cluster(name, name) for name in names},
        endpoints={name: EndpointSet((group,)) for name in names},
    )
    ledger, dice, body, name = Ledger(), random.Random(1), Empty(), f"service-{services - 1}:9080"

    def decide() -> int:
        head = RequestHead("GET", "http", name, "/productpage?u=normal", HEADERS)
        steps = flow(head, body, whole, name, ledger, time.monotonic, dice, ("127.0.0.1", 9080))
        attempt = steps.send(None)
        assert type(attempt) is Attempt
        deliver = steps.send(ANSWER)
        assert type(deliver) is Deliver
        with suppress(StopIteration):
            steps.send(BodyEnded())
        return attempt.number

    assert benchmark(decide) == 1
