"""How a first call waits, what it is told, and what a process keeps; a source that the test plays."""

import asyncio
import logging
import threading
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from support.resources import DECODERS, routed, served_by, target

import meshlib
from meshlib.bootstrap import Bootstrap, bootstrap
from meshlib.core.view import View
from meshlib.dataplane.mesh import Mesh
from meshlib.dataplane.source import Changed
from meshlib.dataplane.views import Views
from meshlib.errors import Closed, ControlUnavailable, RefusedResource
from meshlib.xds.kinds import Kind
from meshlib.xds.node import Client
from meshlib.xds.snapshot import Resource


class Source:
    """Says what the test tells it to, at once or when it is asked."""

    def __init__(self, settings: Bootstrap, client: Client, views: Views, changed: Changed) -> None:
        self.client, self.views, self.changed = client, views, changed
        self.connected = False
        self.since: float | None = None
        self.failure = ""
        self.from_disk: set[str] = set()
        self.calls: list[str] = []
        self.answers: dict[str, tuple[Resource, ...]] = {}
        self.disk: dict[str, tuple[Resource, ...]] = {}

    def want(self, name: str) -> None:
        self.calls.append(f"want {name}")
        self.views.want((name,))
        if name in self.answers:
            self.answer(name, self.answers[name])

    def answer(self, name: str, resources: tuple[Resource, ...]) -> None:
        for one in resources:
            self.views.apply(one.kind, "5.1", {one.name: one})
        self.connected, self.since = True, 0.0
        self.changed([name])

    def done(self, name: str) -> None:
        self.calls.append(f"done {name}")

    def touch(self, name: str) -> None:
        self.calls.append(f"touch {name}")

    def load(self, name: str) -> bool:
        self.calls.append(f"load {name}")
        for one in self.disk.get(name, ()):
            self.views.apply(one.kind, "4.1", {one.name: one})
            self.from_disk.add(name)
        return name in self.views.targets

    def lacking(self, name: str) -> str:
        return f"the disk lacks {name}"

    def close(self) -> None:
        self.calls.append("close")

    def before_fork(self) -> None:
        self.calls.append("before")

    def after_fork_in_parent(self) -> None:
        self.calls.append("parent")

    def after_fork_in_child(self, node: Any) -> None:
        self.calls.append(f"child {node.id != self.client.id}")


@pytest.fixture
def mesh() -> Iterator[Mesh]:
    made = Mesh(bootstrap({}, first_call_timeout=0), Source, DECODERS)
    yield made
    made.close()


def source_of(mesh: Mesh) -> Source:
    assert isinstance(mesh._source, Source)
    return mesh._source


A = target("a:80", "one")


def test_the_first_call_asks_and_later_ones_only_touch(mesh: Mesh) -> None:
    source = source_of(mesh)
    source.answers["a:80"] = A
    assert source.calls == []
    assert "not started; no configuration, 0 targets" in repr(mesh)
    mesh.prepare("a:80")
    mesh.prepare("a:80")
    assert source.calls == ["want a:80", "done a:80", "touch a:80"]
    assert mesh.view.tables.keys() == {"a:80"}
    assert mesh.connected
    assert "configuration 5.1, 1 targets" in repr(mesh)


async def test_the_same_with_asyncio(mesh: Mesh) -> None:
    source_of(mesh).answers["a:80"] = A
    await mesh.aprepare("a:80")
    await mesh.aprepare("a:80")
    assert source_of(mesh).calls == ["want a:80", "done a:80", "touch a:80"]


def test_threads_and_tasks_wait_for_one_answer() -> None:
    with Mesh(bootstrap({}, first_call_timeout=30), Source, DECODERS) as mesh:
        asked = threading.Barrier(4)

        done: list[str] = []

        def wait() -> None:
            asked.wait(60)
            mesh.prepare("a:80")
            done.append("thread")

        async def both() -> None:
            async def one() -> None:
                await mesh.aprepare("a:80")
                done.append("task")

            await asyncio.gather(one(), one())

        threads = [threading.Thread(target=wait) for _ in range(2)]
        threads.append(threading.Thread(target=lambda: (asked.wait(60), asyncio.run(both()))))
        for thread in threads:
            thread.start()
        asked.wait(60)
        while len(mesh._waiters.get("a:80", ())) < 4:
            assert len(done) == 0
        source_of(mesh).answer("a:80", A)
        for thread in threads:
            thread.join(5)
        assert sorted(done) == ["task", "task", "thread", "thread"]
        assert mesh._waiters == {}


@pytest.mark.parametrize(
    ("failure", "advice"),
    [
        ("no certificate from x: UNAUTHENTICATED: the token expired 3 s ago", "`meshlib ca token` makes"),
        ("PERMISSION_DENIED: the node says NAMESPACE 'a'", "`meshlib ca token` makes"),
        ("UNAVAILABLE: its certificate is not trusted: self-signed", "MESHLIB_CA_FINGERPRINT or"),
        ("UNAVAILABLE: Connection refused", "Is `meshlib control` running?"),
    ],
)
def test_what_to_do_about_it_is_said(mesh: Mesh, failure: str, advice: str) -> None:
    source_of(mesh).failure = failure
    with pytest.raises(ControlUnavailable) as raised:
        mesh.prepare("a:80")
    assert failure in str(raised.value)
    assert advice in str(raised.value)


def test_nothing_is_known(mesh: Mesh) -> None:
    source_of(mesh).failure = "UNAVAILABLE: Connection refused"
    with pytest.raises(ControlUnavailable) as raised:
        mesh.prepare("a:80")
    assert str(raised.value) == (
        "a:80: the control service 127.0.0.1:15010 was not reached within 0 s (UNAVAILABLE: Connection "
        "refused), and the disk lacks a:80. Is `meshlib control` running? MESHLIB_CONTROL says where"
    )
    assert "not connected to 127.0.0.1:15010 (UNAVAILABLE: Connection refused)" in repr(mesh)


def test_a_part_of_the_answer_is_missing(mesh: Mesh) -> None:
    source_of(mesh).answers["a:80"] = A[:2]
    said = r"^a:80: the control service 127\.0\.0\.1:15010 did not send cluster one within 0 s$"
    with pytest.raises(ControlUnavailable, match=said):
        mesh.prepare("a:80")


def test_there_is_no_room(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    source = source_of(mesh)
    source.connected = True
    monkeypatch.setattr(source, "want", lambda _: None)
    with pytest.raises(ControlUnavailable) as raised:
        mesh.prepare("a:80")
    assert str(raised.value) == (
        "a:80: all 1000 hosts that may be held (MESHLIB_MAX_TARGETS) are still waited for, and its turn did "
        "not come within 0 s"
    )


def test_the_view_that_knows_a_target_is_given(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    source = source_of(mesh)
    source.answers = {"a:80": A, "b:80": target("b:80", "two")}
    first = mesh.prepare("a:80")
    assert mesh.prepare("a:80") is first is mesh.view
    # It is forgotten between the look at the targets and the one at the view.
    monkeypatch.setattr(source, "touch", lambda name: mesh._views.forget([name]))
    again = mesh.prepare("a:80")
    assert again.tables.keys() == {"a:80"}
    assert source.calls[-2:] == ["want a:80", "done a:80"]


def test_disk_serves_while_control_is_down(mesh: Mesh, caplog: pytest.LogCaptureFixture) -> None:
    source = source_of(mesh)
    source.failure = "UNAVAILABLE: gone"
    source.disk = {"a:80": A, "b:80": target("b:80", "two")}
    mesh.prepare("a:80")
    mesh.prepare("b:80")
    assert mesh.view.tables.keys() == {"a:80", "b:80"}
    assert "configuration 4.1, 2 targets, 2 of them from disk" in repr(mesh)
    said = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert ["serving by the last good configuration" in record.message for record in said] == [True]


def test_what_is_refused_is_raised_until_it_is_good(mesh: Mesh) -> None:
    source = source_of(mesh)
    source.answers["a:80"] = (Resource(Kind.LISTENER, "a:80", "1", b"\xff"),)
    for _ in range(2):
        with pytest.raises(RefusedResource, match=r"^listener a:80: "):
            mesh.prepare("a:80")
    source.answers["a:80"] = A
    mesh.prepare("a:80")


def test_what_was_forgotten_is_asked_for_again(mesh: Mesh) -> None:
    source = source_of(mesh)
    source.answers["a:80"] = A
    mesh.prepare("a:80")
    mesh._views.forget(["a:80"])
    assert mesh.view.tables.keys() == set()
    mesh.prepare("a:80")
    assert mesh.view.tables.keys() == {"a:80"}
    assert source.calls == ["want a:80", "done a:80", "want a:80", "done a:80"]


def test_close(mesh: Mesh) -> None:
    source_of(mesh).answers["a:80"] = A
    mesh.prepare("a:80")
    closed: list[str] = []
    mesh.on_close(lambda: closed.append("transport"))
    mesh.close()
    mesh.close()
    assert (closed, source_of(mesh).calls.count("close"), mesh.closed) == (["transport"], 1, True)
    with pytest.raises(Closed, match="the mesh is closed"):
        mesh.prepare("a:80")
    assert "closed" in repr(mesh)


def test_close_wakes_who_waits() -> None:
    mesh = Mesh(bootstrap({}, first_call_timeout=30), Source, DECODERS)
    raised: list[Exception] = []

    def wait() -> None:
        try:
            mesh.prepare("a:80")
        except Closed as error:
            raised.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    while not mesh._waiters:
        pass
    mesh.close()
    thread.join(5)
    assert len(raised) == 1


def test_the_ledger_forgets_what_a_view_does_not_name(mesh: Mesh) -> None:
    source = source_of(mesh)
    source.answers["a:80"] = A
    mesh.prepare("a:80")
    mesh.ledger.cluster("one").host("127.0.0.1:1")
    mesh.ledger.cluster("gone")
    source.answers["b:80"] = target("b:80", "two")
    mesh.prepare("b:80")
    assert mesh.ledger.clusters.keys() == {"one"}


def test_tables_of_keys_are_made_when_they_arrive_and_this_process_has_an_address() -> None:
    mesh = Mesh(bootstrap({}, first_call_timeout=0, address="10.1.2.3"), Source)
    with mesh:
        cluster, listed = served_by("one", 1)
        said = cluster.message()
        said.lb_policy = 2
        source_of(mesh).answers["a:80"] = (
            *routed("a:80", "one"),
            Resource.of(Kind.CLUSTER, "one", said),
            listed,
        )
        view = mesh.prepare("a:80")
        state = mesh.ledger.cluster("one")
        assert state.ready.fits(view.clusters["one"], view.endpoints["one"], state)
        assert mesh.ledger.address == "10.1.2.3"
        mesh.before_fork()
        mesh.after_fork_in_child()
        assert mesh.ledger.address == "10.1.2.3"


class Listener:
    def __init__(self) -> None:
        self.told: list[set[str]] = []
        self.heard = threading.Event()

    def endpoints_changed(self, view: View, clusters: Iterable[str]) -> None:
        self.told.append({name for name in clusters if name in view.clusters})
        if "two" in view.clusters:
            self.heard.set()


def test_who_lives_is_told_of_clusters_that_changed_also_while_a_fork_holds_its_locks(mesh: Mesh) -> None:
    listener, gone = Listener(), Listener()
    mesh.told_to(gone)
    mesh.told_to(listener)
    del gone
    source = source_of(mesh)
    source.answers["a:80"] = target("a:80", "one")
    mesh.prepare("a:80")
    assert listener.told[-1] == {"one"}
    source.views.want(("b:80",))
    publishing = threading.Thread(target=source.answer, args=("b:80", target("b:80", "two")), daemon=True)
    with mesh._guard:  # which a fork takes before the source's lock, that is held here in truth
        publishing.start()
        assert listener.heard.wait(5)
    publishing.join(5)
    assert listener.told[-1] == {"two"}


def test_a_child_tells_nobody_of_its_parents(mesh: Mesh) -> None:
    listener = Listener()
    mesh.told_to(listener)
    mesh.after_fork_in_child()
    source_of(mesh).answers["a:80"] = target("a:80", "one")
    mesh.prepare("a:80")
    assert listener.told == []


def test_a_child_keeps_what_is_known_and_nothing_learned(mesh: Mesh) -> None:
    source = source_of(mesh)
    source.answers["a:80"] = A
    mesh.prepare("a:80")
    ledger, view = mesh.ledger, mesh.view
    mesh.before_fork()
    mesh.after_fork_in_parent()
    assert mesh.ledger is ledger
    mesh.before_fork()
    mesh.after_fork_in_child()
    assert mesh.ledger is not ledger
    assert mesh.view is view
    source.calls.clear()
    mesh.prepare("a:80")
    assert source.calls == ["want a:80", "done a:80"]


def test_the_process_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MESHLIB_NAMESPACE", "books")
    one = meshlib.default()
    assert meshlib.default() is one
    assert one.bootstrap.namespace == "books"
    one.close()
    other = meshlib.default()
    assert other is not one
    other.close()


def test_connect_takes_settings() -> None:
    with meshlib.connect("control:1", namespace="books", labels={"app": "x"}) as mesh:
        assert (mesh.bootstrap.control, mesh.bootstrap.namespace) == ("control:1", "books")
        assert "books/default: not started" in repr(mesh)
    with pytest.raises(meshlib.ConfigError, match=r"^control: found 'control'; allowed is host:port"):
        meshlib.connect("control")
