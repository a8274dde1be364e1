"""How workloads join a node and leave it, with a control service and an Envoy that are played."""

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from meshlib.agent.admin import Admin, AdminUnreachable, Listening
from meshlib.agent.capture import Captures
from meshlib.agent.command import CommandFailed
from meshlib.agent.node import Node, clean
from meshlib.agent.node_socket import (
    NodeRefused,
    NodeUnreachable,
    alone,
    answering,
    ask,
    left_behind,
    serve,
    talk,
)
from meshlib.agent.workload import Workload
from meshlib.errors import ConfigError, ControlUnavailable

A = Workload("a", (("http", 9080),), address="10.0.0.1")
B = Workload("b", (("http", 9080),), address="10.0.0.2")


class Played(Admin):
    """An Envoy whose listeners are said."""

    def __init__(self) -> None:
        self.names: set[str] | None = set()
        self.where = ""

    async def listening(self) -> tuple[Listening, ...]:
        if self.names is None:
            raise AdminUnreachable("it is not there")
        return tuple(Listening(f"{name}/inbound", "", self.where) for name in self.names)


class Kept:
    """A namespace that is held."""

    def __init__(self, link: str = "") -> None:
        self.link, self.why, self.closed = link, "", False

    async def lost(self) -> str:
        return self.why

    def close(self) -> None:
        self.closed = True


class Rules(Captures):
    """Which namespaces have rules; says what becomes of them."""

    def __init__(self, record: Path, said: list[str]) -> None:
        super().__init__(record)
        self.said = said
        self.kept = Kept()
        self.there: Callable[[str], bool] = lambda _: True

    async def capture(self, netns: str) -> Kept:  # type: ignore[override]
        if not self.there(netns):
            raise CommandFailed(f"{netns} is not a network namespace")
        self.said.append(f"{netns} closes")
        if self.kept.why:
            self.kept = Kept(self.kept.link)
        return self.kept

    async def release(self, netns: str) -> None:
        self.said.append(f"{netns} opens")


class Part:
    """A workload's part in the mesh."""

    def __init__(self, said: list[str], name: str) -> None:
        self.said, self.name, self.joined = said, name, True
        said.append(f"{name} joins")

    def serve(self) -> None:
        self.said.append(f"{self.name} serves")

    def drain(self) -> None:
        self.said.append(f"{self.name} drains")

    def part(self) -> None:
        self.said.append(f"{self.name} parts")

    def close(self, *, stays: bool = False) -> None:
        self.said.append(f"{self.name} {'comes back' if stays else 'leaves'}")


class Stage:
    """A node with all that it is made of."""

    def __init__(self, folder: Path) -> None:
        self.admin, self.said = Played(), list[str]()
        self.refusals: dict[str, list[str]] = {}
        self.joining = A
        self.captures, self.rules = Captures(folder / "captured"), Rules(folder / "captured", self.said)
        self.node = Node(self.admin, self.captures, self.join, lambda: "10.9.9.9")
        self.socket = folder / "own" / "node.sock"

    def join(self, workload: Workload) -> Part:
        self.joining = workload
        if self.refusals.get(workload.name):
            raise ControlUnavailable(self.refusals[workload.name].pop(0))
        return Part(self.said, workload.name)


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    monkeypatch.setattr("meshlib.agent.node.LOOK_SECONDS", 0.001)
    monkeypatch.setattr("meshlib.agent.node.WATCH_SECONDS", 0.001)
    monkeypatch.setattr("meshlib.agent.node.pause", lambda failures: 0.001)
    return Stage(tmp_path)


async def test_it_is_ready_when_it_is_registered_and_its_listeners_are_there(stage: Stage) -> None:
    stage.admin.names = None
    member = stage.node.enrol(A)
    while member.why != "waiting for the control service":
        await asyncio.sleep(0.001)
    assert not member.ready.is_set()
    stage.admin.names = {"a"}
    await member.ready.wait()
    assert member.why == ""
    await stage.node.withdraw("a")
    await stage.node.withdraw("a")
    assert stage.said == ["a joins", "a serves", "a drains", "a leaves"]
    assert stage.node.members == []


async def test_one_that_was_ready_is_not_without_its_envoy(stage: Stage) -> None:
    stage.admin.names = {"a"}
    member = stage.node.enrol(A)
    await member.ready.wait()
    for names, why in (
        ({"a"}, ""),
        (None, "its Envoy is not there"),
        (set(), "no configuration"),
        ({"a"}, ""),
    ):
        stage.admin.names = names
        await asyncio.sleep(0.002)
        assert why in await stage.node.why(member)
        assert bool(await stage.node.why(member)) is bool(why)
    await stage.node.close()


async def test_what_fails_is_tried_again_and_told_once(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    stage.refusals["a"], stage.admin.names = ["not now"] * 5, {"a"}
    member = stage.node.enrol(A)
    await member.ready.wait()
    assert caplog.text.count("workload a can't join: not now") == 1
    await stage.node.close()


async def test_two_of_one_name_or_namespace_are_not_both_there(stage: Stage) -> None:
    stage.node.enrol(A)
    with pytest.raises(ConfigError, match="name: there is a workload 'a' on this node already"):
        stage.node.enrol(A)
    stage.node.enrol(Workload("c", A.ports, netns="/nowhere"))
    with pytest.raises(ConfigError, match="netns: /nowhere is that of c"):
        stage.node.enrol(Workload("d", A.ports, netns="/nowhere"))
    await stage.node.close()


async def test_one_namespace_by_two_paths_is_one(captured: Stage, tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    (tmp_path / "again").symlink_to("a")
    first = replace(IN_POD, netns=str(tmp_path / "a"))
    second = replace(IN_POD, name="b", netns=str(tmp_path / "again"))
    await captured.node.enrol(first).ready.wait()
    with pytest.raises(ConfigError, match=r"netns: .*/again is that of a, by the path .*/a$"):
        captured.node.enrol(second)
    # Of a list it is the first, and who takes its place in the list does not find it open.
    await captured.node.withdraw("a")
    await captured.node.listed([first, second])
    await captured.node.members[0].ready.wait()
    assert [one.workload.name for one in captured.node.members] == ["a"]
    captured.said.clear()
    await captured.node.listed([second])
    await captured.node.members[0].ready.wait()
    assert captured.said[:3] == ["a drains", "a leaves", f"{tmp_path}/again closes"]
    await captured.node.close()


async def test_who_has_a_namespace_that_is_made_later_has_it_alone(captured: Stage, tmp_path: Path) -> None:
    captured.admin.names = set()
    captured.rules.there = os.path.exists
    for name in ("a", "b"):
        captured.refusals[name] = ["not now"] * 10_000
        captured.node.enrol(replace(IN_POD, name=name, netns=str(tmp_path / name)))
    a, b = captured.node.members
    await asyncio.sleep(0.01)
    (tmp_path / "b").touch()
    while not b.captured:
        await asyncio.sleep(0.001)
    (tmp_path / "a").symlink_to("b")
    while f"{tmp_path}/a is that of b" not in a.why:
        await asyncio.sleep(0.001)
    await captured.node.withdraw("a")
    assert f"{tmp_path}/a opens" not in captured.said
    await captured.node.close()


async def test_who_lost_its_namespace_is_closed_anew_leaves_and_joins(
    captured: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    captured.rules.kept.link = captured.admin.where = "/links/1"
    member = captured.node.enrol(replace(IN_POD, address="10.0.0.1"))
    await member.ready.wait()
    assert (captured.joining.netns, member.workload.netns) == ("/links/1", IN_POD.netns)
    first = captured.rules.kept
    captured.said.clear()
    captured.admin.names = set()
    first.why = "another network namespace is at /nowhere/a"
    while captured.said != ["/nowhere/a closes", "a parts", "a joins", "a leaves"]:
        await asyncio.sleep(0.001)
    assert not member.ready.is_set()
    assert first.closed
    assert not captured.rules.kept.closed
    assert "workload a: another network namespace is at /nowhere/a; it is closed anew" in caplog.text
    captured.admin.names = {"a"}
    await member.ready.wait()
    assert captured.said[-1] == "a serves"
    await captured.node.close()
    assert captured.rules.kept.closed


async def test_who_lost_its_namespace_leaves_until_there_is_one_again(captured: Stage) -> None:
    member = captured.node.enrol(IN_POD)
    await member.ready.wait()
    captured.said.clear()
    captured.rules.there = lambda _: False
    captured.rules.kept.why = "the network namespace /nowhere/a is gone"
    while captured.said != ["a parts"] or "is not a network namespace" not in member.why:
        await asyncio.sleep(0.001)
    assert await captured.node.why(member)
    captured.rules.there = lambda _: True
    await member.ready.wait()
    while len(captured.said) < 5:
        await asyncio.sleep(0.001)
    assert sorted(captured.said[1:]) == ["/nowhere/a closes", "a joins", "a leaves", "a serves"]
    await captured.node.close()


async def test_what_is_lost_while_it_joins_is_closed_anew(captured: Stage) -> None:
    captured.refusals["a"] = ["not now"] * 10_000
    member = captured.node.enrol(IN_POD)
    while not captured.said:
        await asyncio.sleep(0.001)
    captured.rules.kept.why = "somebody changed its rules in /nowhere/a"
    while captured.said != ["/nowhere/a closes"] * 2:
        await asyncio.sleep(0.001)
    captured.refusals.clear()
    await member.ready.wait()
    await captured.node.withdraw("a")
    assert captured.said[2:-1] == ["a joins", "a serves", "a drains", "a leaves"]


async def test_who_leaves_while_it_is_closed_anew_is_gone(captured: Stage) -> None:
    member = captured.node.enrol(IN_POD)
    await member.ready.wait()
    captured.rules.there = lambda _: False
    captured.rules.kept.why = "the network namespace /nowhere/a is gone"
    while member.ready.is_set():
        await asyncio.sleep(0)
    await captured.node.withdraw("a")
    assert captured.said.count("a leaves") == 1
    assert captured.node.members == []
    assert captured.rules.kept.closed


async def test_listeners_in_another_namespace_are_not_its_own(captured: Stage) -> None:
    captured.rules.kept.link = "/links/2"
    member = captured.node.enrol(IN_POD)
    captured.admin.where = "/links/1"
    while member.why != "waiting for the control service":
        await asyncio.sleep(0.001)
    await asyncio.sleep(0.01)
    assert not member.ready.is_set()
    captured.admin.where = "/links/2"
    await member.ready.wait()
    await captured.node.close()


async def test_what_can_not_be_cleaned_stays_and_the_rest_goes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = tmp_path / "captured"
    for name in ("a", "b", "c"):
        (tmp_path / name).touch()
    (tmp_path / "other").symlink_to("c")
    record.write_text(json.dumps([str(tmp_path / name) for name in ("a", "b", "c")]))
    monkeypatch.setattr("meshlib.agent.netns.left_over", list)

    class Stubborn(Captures):
        async def release(self, netns: str) -> None:
            if netns.endswith("/a"):
                raise CommandFailed("nft says no")
            await super().release(netns)

    assert await clean(Stubborn(record), {f"{tmp_path}/other"}) == [f"the rules in {tmp_path}/b"]
    assert f"the rules in {tmp_path}/a can't be removed: nft says no" in caplog.text
    assert json.loads(record.read_text()) == [f"{tmp_path}/a"]


async def test_a_namespace_that_is_not_there_is_waited_for(stage: Stage) -> None:
    member = stage.node.enrol(Workload("c", A.ports, netns="/nowhere"))
    while "is not a network namespace" not in member.why and "root is needed" not in member.why:
        await asyncio.sleep(0.001)
    await stage.node.close()
    assert stage.said == []
    assert stage.captures.held == frozenset()


async def test_the_proxy_and_the_application_need_two_ports(stage: Stage) -> None:
    member = stage.node.enrol(Workload("c", A.ports, address="127.0.0.1"))
    while "appPorts: the proxy is at 127.0.0.1:9080" not in member.why:
        await asyncio.sleep(0.001)
    await stage.node.close()


async def test_without_an_address_it_has_the_nodes(stage: Stage) -> None:
    stage.admin.names = {"c"}
    member = stage.node.enrol(Workload("c", A.ports))
    await member.ready.wait()
    assert member.workload.address == "10.9.9.9"
    await stage.node.close()


async def test_of_a_file_only_what_changed_leaves_and_comes(stage: Stage) -> None:
    stage.admin.names = {"a", "b"}
    await stage.node.listed([A, B])
    await asyncio.gather(*(one.ready.wait() for one in stage.node.members))
    heavier = Workload("b", B.ports, address=B.address, weight=2)
    await stage.node.listed([A, heavier])
    await asyncio.gather(*(one.ready.wait() for one in stage.node.members))
    assert sorted(stage.said[:4]) == ["a joins", "a serves", "b joins", "b serves"]
    assert stage.said[4:] == ["b drains", "b leaves", "b joins", "b serves"]
    await stage.node.listed([])
    assert stage.node.members == []


async def test_one_of_a_file_that_is_there_already_is_told(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    stage.node.enrol(A)
    await stage.node.listed([A, B])
    assert [one.workload.name for one in stage.node.members] == ["a", "b"]
    assert "workload a: name: there is a workload" in caplog.text
    await stage.node.listed([])
    assert [one.workload.name for one in stage.node.members] == ["a"]
    await stage.node.close()


async def test_who_leaves_while_it_joins_is_not_there(stage: Stage) -> None:
    stage.node.enrol(A)
    await asyncio.sleep(0)
    await stage.node.withdraw("a")
    assert stage.said in ([], ["a joins", "a leaves"])


@pytest.fixture
def captured(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> Stage:
    monkeypatch.setattr("meshlib.agent.node.os.geteuid", lambda: 0)
    stage.node = Node(stage.admin, stage.rules, stage.join, lambda: "10.9.9.9")
    stage.admin.names = {"a", "b"}
    return stage


IN_POD = Workload("a", A.ports, address=A.address, netns="/nowhere/a")


async def test_who_leaves_is_open_and_a_node_that_ends_opens_nobody(captured: Stage) -> None:
    await captured.node.listed([IN_POD])
    await captured.node.members[0].ready.wait()
    await captured.node.listed([])
    assert captured.said == [
        "/nowhere/a closes",
        "a joins",
        "a serves",
        "a drains",
        "a leaves",
        "/nowhere/a opens",
    ]
    captured.said.clear()
    await captured.node.listed([IN_POD])
    await captured.node.members[0].ready.wait()
    await captured.node.close()
    assert captured.said == ["/nowhere/a closes", "a joins", "a serves", "a drains", "a comes back"]


async def test_without_a_list_what_was_captured_stays_closed(
    captured: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meshlib.agent.node.netns.ours", list)
    monkeypatch.setattr("meshlib.agent.node.netns.left_over", list)
    there = {"/nowhere/a": 1, "/nowhere/b": 2}
    monkeypatch.setattr("meshlib.agent.node.netns.number", there.get)
    captured.rules._held = frozenset([*there, "/nowhere/gone"])
    await captured.node.enrol(IN_POD).ready.wait()
    captured.said.clear()
    assert await captured.node.clean_closed() == (["the rules in /nowhere/gone"], ["/nowhere/b"])
    assert captured.said == ["/nowhere/gone opens"]
    assert await captured.node.clean() == ["the rules in /nowhere/b", "the rules in /nowhere/gone"]


async def test_a_node_that_ends_opens_all_if_it_is_told_to(captured: Stage) -> None:
    node = Node(captured.admin, captured.rules, captured.join, lambda: "", open_at_end=True)
    await node.enrol(IN_POD).ready.wait()
    await node.close()
    assert captured.said[-2:] == ["a comes back", "/nowhere/a opens"]


async def test_who_is_changed_is_not_open_meanwhile(captured: Stage) -> None:
    await captured.node.listed([IN_POD])
    await captured.node.members[0].ready.wait()
    await captured.node.listed([replace(IN_POD, weight=2)])
    await captured.node.members[0].ready.wait()
    await captured.node.listed([replace(IN_POD, name="b")])
    await captured.node.members[0].ready.wait()
    assert captured.said.count("/nowhere/a closes") == 3
    assert "/nowhere/a opens" not in captured.said
    await captured.node.close()


async def test_the_namespace_of_a_program_is_never_open(captured: Stage) -> None:
    made = replace(IN_POD, netns="/run/netns/meshlib-192.0.2.1")
    await captured.node.enrol(made).ready.wait()
    await captured.node.withdraw("a")
    assert captured.said[-1] == "a leaves"


@contextlib.asynccontextmanager
async def served(stage: Stage) -> AsyncIterator[None]:
    with alone(stage.socket):
        async with serve(stage.socket, stage.node, {"name": "vm1"}):
            yield


async def test_over_the_socket_it_is_one_for_as_long_as_the_connection_stands(stage: Stage) -> None:
    async with served(stage):
        assert await ask(stage.socket, {"do": "about"}) == {"name": "vm1"}
        enrolling = talk(stage.socket, {"do": "enrol", "workload": A.said()})
        assert (await anext(enrolling))["why"] == "joining"
        stage.admin.names = {"a"}
        while (await anext(enrolling))["why"]:
            pass
        (listed,) = (await ask(stage.socket, {"do": "list"}))["workloads"]
        assert (listed["name"], listed["address"], listed["why"]) == ("a", "10.0.0.1", "")
        assert await ask(stage.socket, {"do": "started", "name": "a", "pid": 7}) == {}
        assert [one.process_id for one in stage.node.members] == [7]
        assert stage.said == ["a joins"]
        assert await ask(stage.socket, {"do": "listens", "name": "a"}) == {}
        assert await ask(stage.socket, {"do": "listens", "name": "nobody"}) == {}
        assert await ask(stage.socket, {"do": "drain", "name": "a"}) == {}
        assert stage.said == ["a joins", "a serves", "a drains"]
        await enrolling.aclose()
        while stage.node.members:
            await asyncio.sleep(0.001)
        while "a leaves" not in stage.said:
            await asyncio.sleep(0.001)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"do": "enrol"}, "allowed is an object"),
        ({"do": "enrol", "workload": {"name": "a"}}, "ports: found None"),
        ({"do": "dance"}, "do: found 'dance'; allowed are about, list, enrol, started, listens, drain"),
        ({}, "do: found None"),
        ({"do": "started", "pid": "x"}, "no JSON object"),
        ([], "no JSON object"),
    ],
)
async def test_what_is_asked_wrongly_is_refused(stage: Stage, asked: dict[str, str], said: str) -> None:
    async with served(stage):
        with pytest.raises(NodeRefused, match=said):
            await ask(stage.socket, asked)


@pytest.mark.parametrize("text", [b"", b"\n", b"{", b"\xff\n", b"x" * 2_000_000])
async def test_what_is_no_question_ends_that_talk_only(stage: Stage, text: bytes) -> None:
    async with served(stage):
        reader, writer = await asyncio.open_unix_connection(stage.socket)
        writer.write(text)
        writer.write_eof()
        with contextlib.suppress(ConnectionError):
            assert b"no JSON object" in await reader.read()
        writer.close()
        assert await ask(stage.socket, {"do": "about"}) == {"name": "vm1"}


async def test_one_agent_a_socket(stage: Stage) -> None:
    with pytest.raises(NodeUnreachable, match="no `meshlib node` answers"):
        await ask(stage.socket, {"do": "about"})
    async with served(stage):
        with pytest.raises(ConfigError, match="another `meshlib node` serves"), alone(stage.socket):
            pass
        assert stage.socket.stat().st_mode & 0o777 == 0o600
    assert not stage.socket.exists()


async def test_an_agent_is_waited_for(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meshlib.agent.node_socket.LOOK_SECONDS", 0.001)
    with pytest.raises(NodeUnreachable):
        await answering(stage.socket, 0.005)
    waiting = asyncio.create_task(answering(stage.socket, 30))
    await asyncio.sleep(0.005)
    async with served(stage):
        assert await waiting == {"name": "vm1"}


def test_a_socket_is_left_behind_when_nobody_answers(tmp_path: Path) -> None:
    path = tmp_path / "node.sock"
    assert not left_behind(path)
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))
        made.listen()
        assert not left_behind(path)
    assert left_behind(path)
    (tmp_path / "text").touch()
    assert not left_behind(tmp_path / "text")


def test_a_folder_that_others_write_to_is_not_used(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with (
        pytest.raises(ConfigError, match="is not a folder that only this user"),
        alone(tmp_path / "node.sock"),
    ):
        pass


async def test_an_agent_of_somebody_else_is_not_spoken_to(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with served(stage):
        monkeypatch.setattr("meshlib.agent.node_socket._owner", lambda _: 12345)
        with pytest.raises(NodeRefused, match="is somebody else's"):
            await ask(stage.socket, {"do": "about"})


async def test_an_agent_that_ends_hangs_up_without_a_word(stage: Stage) -> None:
    errors: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))
    async with served(stage):
        enrolling = talk(stage.socket, {"do": "enrol", "workload": A.said()})
        await anext(enrolling)
    assert [one async for one in enrolling] == []
    await stage.node.close()
    assert errors == []
