"""When others are sent to a program: it listens, or that can't be seen for too long."""

import asyncio
import os
import socket
from collections.abc import AsyncGenerator, Mapping
from typing import Any

import pytest

from meshlib.agent import program
from meshlib.agent.workload import Workload


class Heard:
    """An agent that keeps what it is told."""

    def __init__(self) -> None:
        self.said: list[str] = []

    async def enrolling(self, _: Workload) -> AsyncGenerator[Mapping[str, Any], None]:
        yield {"why": ""}

    async def started(self, name: str, process_id: int) -> None:
        self.said.append(f"{name} is {process_id}")

    async def listens(self, name: str) -> None:
        self.said.append(f"{name} listens")

    async def drain(self, *names: str) -> None:
        self.said.append(f"{names} drain")


class Refusing(Heard):
    """An agent that says once why it is not, and again when it is something else."""

    def __init__(self, *why: str) -> None:
        super().__init__()
        self.why = why
        self.go = asyncio.Event()

    async def enrolling(self, _: Workload) -> AsyncGenerator[Mapping[str, Any], None]:
        for one in self.why:
            yield {"why": one}
            await self.go.wait()
        yield {"why": ""}
        await asyncio.Event().wait()


async def test_why_it_is_not_ready_is_said_though_it_was_known_at_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program, "PATIENCE", 0.005)
    state, agent = program._State(), Refusing("may not speak for it", "not now")
    async with program._enrolled(Workload("a", (("http", 9080),)), agent, state):
        while not caplog.records:
            await asyncio.sleep(0.001)
        agent.go.set()
        await state.ready.wait()
    assert [one.getMessage() for one in caplog.records] == [
        "a is not ready: may not speak for it",
        "a is not ready: not now",
    ]


async def test_who_is_ready_in_time_has_nothing_to_say(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program, "PATIENCE", 0.005)
    state, agent = program._State(), Refusing("joining")
    async with program._enrolled(Workload("a", (("http", 9080),)), agent, state):
        await asyncio.sleep(0)
        agent.go.set()
        await state.ready.wait()
        await asyncio.sleep(0.01)
    assert caplog.text == ""


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("LISTEN_SECONDS", 0.02), ("PATIENT_SECONDS", 0.0), ("LOOK_SECONDS", 0.001)):
        monkeypatch.setattr(program, name, seconds)


async def test_it_listens_when_all_its_ports_do(caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        ports = tuple(made.getsockname()[1] for made in (one, two))
        workload = Workload("a", (("http", 9080), ("tcp", ports[1])), app_ports=((9080, ports[0]),))
        agent, state = Heard(), program._State(process_id=os.getpid())
        await program._look(workload, agent, state)
    assert (agent.said, state.listens, caplog.text) == (["a listens"], True, "")


@pytest.mark.usefixtures("hurried")
async def test_what_is_not_seen_to_listen_is_called_in_the_end_and_that_is_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        agent, state = Heard(), program._State(process_id=os.getpid())
        await program._look(Workload("a", (("http", port),)), agent, state)
    assert agent.said == ["a listens"]
    assert [one.getMessage() for one in caplog.records] == [
        f"nobody is sent to a before it listens at {port}",
        f"a is not seen to listen at {port}; others are sent to it now",
    ]
