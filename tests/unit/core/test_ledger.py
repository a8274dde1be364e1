"""What is learned outlives a view, and goes with the cluster or endpoint that it is about."""

import sys
import threading

from meshlib.core.balance.cluster import Cluster, Limits
from meshlib.core.balance.endpoints import Endpoint, EndpointSet, LocalityEndpoints
from meshlib.core.breaker import Slots
from meshlib.core.ledger import ClusterState, Ledger
from meshlib.core.view import View


def view(**ports: tuple[int, ...]) -> View:
    return View(
        "1",
        clusters={name: Cluster(name, name) for name in ports},
        endpoints={
            name: EndpointSet((LocalityEndpoints("", 0, 1, tuple(Endpoint("10.0.0.1", p) for p in each)),))
            for name, each in ports.items()
        },
    )


def test_prune_forgets_what_a_view_no_longer_names() -> None:
    ledger = Ledger()
    for name in ("a", "b"):
        for port in (1, 2):
            ledger.cluster(name).host(f"10.0.0.1:{port}").failures_5xx = port
    kept = ledger.cluster("a")
    ledger.prune(view(a=(2, 3)), ["c"])
    assert set(kept.hosts) == {"10.0.0.1:1", "10.0.0.1:2"}
    ledger.prune(view(a=(2, 3)), ["a", "b"])
    assert set(ledger.clusters) == {"a"}
    assert ledger.cluster("a") is kept
    assert {key: host.failures_5xx for key, host in kept.hosts.items()} == {"10.0.0.1:2": 2}


def test_slots_are_counted_while_held() -> None:
    state = ClusterState()
    limits = Limits(max_requests=2, max_retries=1)
    with Slots(state, lambda: 0.0) as one, Slots(state, lambda: 0.0) as other:
        one.begin(state.host("a"))
        other.begin(state.host("b"))
        assert (state.active, state.host("a").active) == (2, 1)
        assert one.goes_on(limits)
        with Slots(state, lambda: 0.0) as third:
            third.begin(state.host("b"))
            assert not third.goes_on(limits)
            third.waits()
            assert (state.active, state.waiting) == (3, 1)
            assert other.goes_on(limits)
            assert not third.goes_on(limits)
            third.waits()
        assert (state.active, state.waiting) == (2, 0)
        other.end()
        assert (state.active, state.host("b").active) == (1, 0)
        other.begin(state.host("a"))
        assert (state.active, state.host("a").active) == (2, 2)
    assert (state.active, state.host("a").active, state.host("b").active) == (0, 0, 0)
    with Slots(state, lambda: 0.0) as one, Slots(state, lambda: 0.0) as other:
        assert one.take_retry(limits)
        assert not other.take_retry(limits)
        assert one.take_retry(limits)
        assert state.retries == 1
    assert state.retries == 0


def test_threads_lose_no_count() -> None:
    state, rounds, threads = ClusterState(), 5_000, 8

    def work() -> None:
        host = state.host("a")
        for _ in range(rounds):
            with Slots(state, lambda: 0.0) as slots:
                slots.begin(host)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        workers = [threading.Thread(target=work) for _ in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    finally:
        sys.setswitchinterval(before)
    assert (state.active, state.host("a").active) == (0, 0)
