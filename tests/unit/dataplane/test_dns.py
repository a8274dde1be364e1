"""Looking names up in the background: by a resolver and a clock of the test's own, and no network."""

import queue
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from meshlib.core.balance.cluster import Cluster, Resolution, Upstream
from meshlib.core.balance.dns import Family, Named
from meshlib.core.balance.endpoints import Endpoint, EndpointSet, LocalityEndpoints
from meshlib.dataplane import dns
from meshlib.dataplane.dns import AsWritten, Resolver, look_up

SOON = 10.0
"""Nothing here takes that long."""


class Script:
    """A system's resolver that waits for what the test says it answers."""

    def __init__(self) -> None:
        self.asked: queue.Queue[str] = queue.Queue()
        self.answers: dict[str, queue.Queue[tuple[str, ...] | Exception]] = {}
        self.told: queue.Queue[set[str]] = queue.Queue()
        self.now = 100.0

    def look_up(self, host: str, _family: Family) -> tuple[str, ...]:
        waits = self.answers.setdefault(host, queue.Queue())
        self.asked.put(host)
        said = waits.get(timeout=SOON)
        if isinstance(said, Exception):
            raise said
        return said

    def answer(self, host: str, *addresses: str) -> None:
        self.answers.setdefault(host, queue.Queue()).put(addresses)

    def fail(self, host: str, error: Exception) -> None:
        self.answers.setdefault(host, queue.Queue()).put(error)

    def next(self) -> str:
        return self.asked.get(timeout=SOON)


class Case:
    def __init__(self, **more: Any) -> None:
        self.script = Script()
        self.resolver = Resolver(self.script.told.put, self.script.look_up, lambda: self.script.now, **more)

    def told(self) -> set[str]:
        return self.script.told.get(timeout=SOON)

    def later(self, seconds: float) -> None:
        self.script.now += seconds
        with self.resolver._lock:
            self.resolver._lock.notify_all()

    def keys(self, who: str) -> list[str] | None:
        found = self.resolver.endpoints(who)
        return None if found is None else [one.key for group in found.localities for one in group.endpoints]


@contextmanager
def running(**more: Any) -> Iterator[Case]:
    case = Case(**more)
    try:
        yield case
    finally:
        case.resolver.close()
        for waits in case.script.answers.values():
            waits.put(())
        for thread in threading.enumerate():
            if thread.name.startswith("meshlib-dns"):
                thread.join(SOON)


def cluster(
    *hosts: str, refresh: float = 60.0, retry: float = 5.0, connect: float = 10.0, logical: bool = False
) -> Cluster:
    listed = EndpointSet((LocalityEndpoints("", 0, 1, tuple(Endpoint(host, 80) for host in hosts)),))
    asks = Named(listed, logical, Family.V4_PREFERRED, refresh, retry)
    return Cluster("c", "c", resolution=Resolution.DNS, upstream=Upstream(connect), named=asks)


def test_every_address_is_told_once_it_is_known() -> None:
    with running() as case:
        case.resolver.follow("c", cluster("a.example", "10.0.0.9"))
        assert case.script.next() == "a.example"
        assert case.keys("c") is None
        case.script.answer("a.example", "10.0.0.1", "10.0.0.2")
        assert case.told() == {"c"}
        assert case.keys("c") == ["10.0.0.1:80", "10.0.0.2:80", "10.0.0.9:80"]


def test_addresses_alone_are_known_at_once_and_nobody_is_asked() -> None:
    with running() as case:
        case.resolver.follow("c", cluster("10.0.0.9"))
        assert case.keys("c") == ["10.0.0.9:80"]
        assert case.resolver._thread is None


def test_a_name_is_asked_for_again_when_its_time_has_come() -> None:
    with running() as case:
        case.resolver.follow("c", cluster("a.example", refresh=30.0))
        case.script.answer("a.example", "10.0.0.1")
        assert (case.script.next(), case.told()) == ("a.example", {"c"})
        case.later(29.9)
        assert case.script.asked.empty()
        case.later(0.1)
        assert case.script.next() == "a.example"
        case.script.answer("a.example", "10.0.0.2")
        assert case.told() == {"c"}
        assert case.keys("c") == ["10.0.0.2:80"]


def test_the_same_answer_is_not_told() -> None:
    with running() as case:
        case.resolver.follow("c", cluster("a.example"))
        for _ in range(3):
            case.script.next()
            case.script.answer("a.example", "10.0.0.1")
            wait_for(lambda: not case.resolver._running)
            case.later(60.0)
        case.script.next()
        assert case.told() == {"c"}
        assert case.script.told.empty()


def test_the_last_good_answer_stays_while_nobody_answers(caplog: pytest.LogCaptureFixture) -> None:
    with running() as case:
        case.resolver.follow("c", cluster("a.example", retry=5.0))
        case.script.answer("a.example", "10.0.0.1")
        assert (case.script.next(), case.told()) == ("a.example", {"c"})
        for _ in range(2):
            case.later(60.0)
            case.script.next()
            case.script.fail("a.example", socket.gaierror(socket.EAI_AGAIN, "Temporary failure"))
            wait_for(lambda: not case.resolver._running)
        assert case.keys("c") == ["10.0.0.1:80"]
        case.later(5.0)
        assert case.script.next() == "a.example"
        case.script.answer("a.example", "10.0.0.2")
        assert case.told() == {"c"}
    assert caplog.text.count("a.example can't be looked up: [Errno -3] Temporary failure") == 1


def wait_for(holds: Callable[[], bool]) -> None:
    done = threading.Event()
    for _ in range(10_000):
        if holds():
            return
        done.wait(0.001)
    raise AssertionError


def test_that_there_is_no_such_name_is_an_answer() -> None:
    with running() as case:
        case.resolver.follow("c", cluster("a.example"))
        case.script.answer("a.example", "10.0.0.1")
        assert case.told() == {"c"}
        case.script.next()
        case.later(60.0)
        case.script.answer("a.example")
        assert case.told() == {"c"}
        assert case.keys("c") == []


def test_a_logical_name_keeps_its_last_address() -> None:
    with running() as case:
        case.resolver.follow("c", cluster("a.example", logical=True))
        case.resolver.follow("d", cluster("a.example"))
        case.script.answer("a.example", "10.0.0.1", "10.0.0.2")
        assert (case.script.next(), case.told()) == ("a.example", {"c", "d"})
        case.later(60.0)
        case.script.answer("a.example")
        assert case.told() == {"c", "d"}
        found = case.resolver.endpoints("c")
        assert found is not None
        assert found.localities[0].endpoints[0].at == ("10.0.0.1", 80)
        assert case.keys("d") == []


@pytest.mark.parametrize(("connect", "patience"), [(2.0, 60.0), (60.0, 2.0)])
def test_the_first_answer_is_not_waited_for_for_ever(connect: float, patience: float) -> None:
    with running(patience=patience) as case:
        case.resolver.follow("c", cluster("a.example", connect=connect))
        case.script.next()
        case.later(1.9)
        assert case.keys("c") is None
        case.later(0.1)
        assert case.told() == {"c"}
        assert case.keys("c") == []
        case.script.answer("a.example", "10.0.0.1")
        assert case.told() == {"c"}
        assert case.keys("c") == ["10.0.0.1:80"]


def test_a_name_is_looked_up_once_for_all_who_ask() -> None:
    with running() as case:
        case.resolver.follow("c", cluster("a.example", refresh=60.0))
        case.resolver.follow("d", cluster("a.example", refresh=20.0))
        case.script.answer("a.example", "10.0.0.1")
        case.script.next()
        assert case.told() == {"c", "d"}
        case.resolver.follow("c", None)
        assert (case.keys("c"), case.keys("d")) == (None, ["10.0.0.1:80"])
        case.later(20.0)
        assert case.script.next() == "a.example"
        case.script.answer("a.example", "10.0.0.3")
        assert case.told() == {"d"}


def test_a_changed_cluster_asks_for_other_names() -> None:
    with running() as case:
        case.resolver.follow("c", cluster("a.example"))
        case.script.answer("a.example", "10.0.0.1")
        assert (case.script.next(), case.told()) == ("a.example", {"c"})
        case.resolver.follow("c", cluster("b.example"))
        assert case.script.next() == "b.example"
        assert case.keys("c") is None
        case.script.answer("b.example", "10.0.0.2")
        assert case.told() == {"c"}
        assert case.keys("c") == ["10.0.0.2:80"]
        assert [question[0] for question in case.resolver._names] == ["b.example"]


def test_when_nobody_asks_any_more_nothing_runs() -> None:
    with running() as case:
        case.resolver.follow("c", cluster("a.example"))
        thread = case.resolver._thread
        assert thread is not None
        case.resolver.follow("c", None)
        case.resolver.follow("never", None)
        thread.join(SOON)
        assert (case.resolver._thread, case.resolver._names) == (None, {})
        case.script.answer("a.example", "10.0.0.1")
        case.resolver.follow("c", cluster("b.example"))
        case.script.answer("b.example", "10.0.0.2")
        assert case.told() == {"c"}


def test_only_so_many_are_looked_up_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dns, "MOST", 2)
    with running() as case:
        case.resolver.follow("c", cluster("a.example", "b.example", "d.example"))
        first = {case.script.next(), case.script.next()}
        assert case.script.asked.empty()
        for host in first:
            case.script.answer(host, "10.0.0.1")
        (last,) = {"a.example", "b.example", "d.example"} - first
        assert case.script.next() == last
        case.script.answer(last, "10.0.0.2")
        while case.keys("c") is None:
            case.told()
        assert len(case.keys("c") or ()) == 3


def test_what_the_system_does_not_foresee_does_not_end_it() -> None:
    with running() as case:
        case.resolver.follow("c", cluster("a.example", retry=1.0))
        case.script.next()
        case.script.fail("a.example", ValueError("odd"))
        wait_for(lambda: not case.resolver._running)
        case.later(1.0)
        case.script.answer("a.example", "10.0.0.1")
        assert case.told() == {"c"}


def test_a_forks_child_knows_what_its_parent_knew_and_asks_anew() -> None:
    with running() as case:
        resolver = case.resolver
        resolver.follow("c", cluster("a.example"))
        case.script.answer("a.example", "10.0.0.1")
        assert (case.script.next(), case.told()) == ("a.example", {"c"})
        resolver.before_fork()
        resolver.after_fork_in_parent()
        thread, old = resolver._thread, resolver._lock
        resolver.before_fork()
        resolver.after_fork_in_child()
        assert resolver._thread is None
        assert case.keys("c") == ["10.0.0.1:80"]
        assert case.script.asked.empty()
        resolver.start()
        assert case.script.next() == "a.example"
        assert thread is not resolver._thread
        # A child has no such thread; here it is still there.
        resolver.close()
        old.notify_all()
        old.release()
        assert thread is not None
        thread.join(SOON)


def test_after_the_end_nobody_is_told() -> None:
    with running() as case:
        case.resolver.follow("c", cluster("a.example"))
        case.script.next()
        case.resolver.close()
        case.resolver.follow("d", cluster("b.example"))
        case.script.answer("a.example", "10.0.0.1")
        wait_for(lambda: not case.resolver._running)
        assert case.script.told.empty()
        assert case.script.asked.empty()


def test_as_written_names_stay_names() -> None:
    names = AsWritten()
    one = cluster("a.example")
    names.follow("c", one)
    assert one.named is not None
    assert names.endpoints("c") == one.named.endpoints
    names.follow("c", None)
    assert names.endpoints("c") is None


FOUND = {
    ("both", socket.AF_INET): ["10.0.0.1", "10.0.0.2", "10.0.0.1"],
    ("both", socket.AF_INET6): ["fd00::1"],
    ("both", socket.AF_UNSPEC): ["fd00::1", "10.0.0.1"],
    ("old", socket.AF_INET): ["10.0.0.1"],
    ("old", socket.AF_UNSPEC): ["10.0.0.1"],
    ("new", socket.AF_INET6): ["fd00::1"],
    ("new", socket.AF_UNSPEC): ["fd00::1"],
}


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch) -> None:
    def getaddrinfo(host: str, _port: None, family: int, kind: int) -> list[Any]:
        if host == "down":
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        found = FOUND.get((host, family))
        if found is None:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(family, kind, 6, "", (address, 0)) for address in found]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


@pytest.mark.parametrize(
    ("host", "family", "addresses"),
    [
        ("both", Family.V4_ONLY, ("10.0.0.1", "10.0.0.2")),
        ("both", Family.V6_ONLY, ("fd00::1",)),
        ("both", Family.AUTO, ("fd00::1",)),
        ("both", Family.V4_PREFERRED, ("10.0.0.1", "10.0.0.2")),
        ("both", Family.ALL, ("fd00::1", "10.0.0.1")),
        ("old", Family.V6_ONLY, ()),
        ("old", Family.AUTO, ("10.0.0.1",)),
        ("new", Family.V4_ONLY, ()),
        ("new", Family.V4_PREFERRED, ("fd00::1",)),
        ("none", Family.AUTO, ()),
        ("none", Family.ALL, ()),
    ],
)
def test_families_are_envoys(system: None, host: str, family: Family, addresses: tuple[str, ...]) -> None:
    assert look_up(host, family) == addresses


def test_a_system_that_does_not_answer_is_no_answer(system: None) -> None:
    with pytest.raises(socket.gaierror, match="Temporary"):
        look_up("down", Family.ALL)


def test_a_name_that_dns_can_not_have_has_no_address() -> None:
    assert look_up("x" * 64 + ".example", Family.ALL) == ()


def test_the_real_system_knows_this_machine() -> None:
    assert look_up("localhost", Family.V4_ONLY) == ("127.0.0.1",)
