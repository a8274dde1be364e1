"""A program that is run as a workload of a node: `meshlib node run`.

Rules:

- It is started when its workload is ready: what it sends first is in the mesh already.
- Others are sent to it when it listens at its ports; or after a while, if that can't be seen.
- It is told nothing of the mesh that is not its affair: no MESHLIB_ variable of the node, above all no token;
  but where the SPIFFE Workload API is, and without capture where its proxy is.
- Signals are passed on: one that ends it, when others have heard that it leaves. Its exit status is the exit
  status. With it ends what it started, see `watcher.py`.
- If the node's agent goes, the program stays, cut off if it is captured; it is enrolled again by the next.
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from meshlib.agent import netns, node_socket
from meshlib.agent.listening import listening
from meshlib.agent.netns import Namespace
from meshlib.agent.node_socket import NodeRefused, NodeUnreachable
from meshlib.agent.watcher import Watcher
from meshlib.agent.workload import Workload
from meshlib.bootstrap import PREFIX
from meshlib.errors import ConfigError

log = logging.getLogger(__name__)

AGAIN_SECONDS = 0.25
SIGNALS = ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2")
LOOPBACK = "127.0.0.1"

ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
PATIENCE = 2.0
"""Seconds to be ready, before it is said why it is not."""
LISTEN_SECONDS, PATIENT_SECONDS = 60.0, 10.0
"""For a program to listen: then others are sent to it as it is; and before it is said that it does not."""
LOOK_SECONDS = 0.05


class Agent(Protocol):
    """The agent of a node."""

    def enrolling(self, workload: Workload) -> AsyncGenerator[Mapping[str, Any], None]:
        """Enrols for as long as it is iterated: `why` it is not ready, again whenever that changes."""

    async def started(self, name: str, process_id: int) -> None:
        """The program of a workload runs."""

    async def listens(self, name: str) -> None:
        """The program of a workload is there for others."""

    async def drain(self, *names: str) -> None:
        """Workloads of these names leave soon; returns when others have heard of it."""


@dataclass
class _State:
    """What is known of the program."""

    ready: asyncio.Event = field(default_factory=asyncio.Event)
    process_id: int = 0
    """0: it does not run yet."""
    listens: bool = False
    """Whether others are sent to it."""


async def run_program(
    workload: Workload,
    command: Sequence[str],
    agent: Agent,
    *,
    subnet: str | None,
    told: Mapping[str, str] | None = None,
) -> int:
    """Its exit status; one of 128 and more is a signal's.

    `subnet`: where the address of its own namespace comes from, which goes with it; None: it is in that of
    the node. `told`: more variables of its environment. ConfigError.
    """
    watcher, isolated = (Watcher(None), None) if subnet is None else await _isolated(subnet)
    try:
        if isolated is None:
            workload = _with_ports(workload)
        else:
            workload = replace(workload, netns=isolated.path, address=str(isolated.address))
        state, environ = _State(), environment(workload, os.environ) | dict(told or {})
        async with _enrolled(workload, agent, state) as enrolment:
            await _first(state.ready, enrolment)
            return await _run(workload, command, environ, watcher, agent, state)
    finally:
        await asyncio.to_thread(watcher.end)


def _with_ports(workload: Workload) -> Workload:
    """Where the application is to listen, and its proxy."""
    known = dict(workload.app_ports)
    free = {port: known.get(port) or _free_port() for _, port in workload.ports}
    proxy = workload.proxy_port or _free_port()
    return replace(workload, app_ports=tuple(sorted(free.items())), proxy_port=proxy)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def environment(workload: Workload, given: Mapping[str, str]) -> dict[str, str]:
    """What the program is told."""
    told = {name: value for name, value in given.items() if not name.startswith(PREFIX)}
    _, port = workload.ports[0]
    told["PORT"] = str(dict(workload.app_ports).get(port, port))
    if not workload.captured:
        proxy, no = f"http://{LOOPBACK}:{workload.proxy_port}", f"localhost,{LOOPBACK},::1"
        told |= {"HTTP_PROXY": proxy, "http_proxy": proxy, "NO_PROXY": no, "no_proxy": no}
    return told


@contextlib.asynccontextmanager
async def _enrolled(workload: Workload, agent: Agent, state: _State) -> "AsyncIterator[asyncio.Task[None]]":
    task = asyncio.create_task(_stay(workload, agent, state))
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _stay(workload: Workload, agent: Agent, state: _State) -> None:
    """Enrolled for ever; with another agent after the one that goes."""
    gone, telling = False, _Telling(workload.name)
    while True:
        try:
            async with contextlib.aclosing(agent.enrolling(workload)) as said, telling:
                async for one in said:
                    why = telling.why = str(one.get("why", ""))
                    if not why:
                        gone = False
                        state.ready.set()
                        if state.process_id:
                            await agent.started(workload.name, state.process_id)
                        if state.listens:
                            await agent.listens(workload.name)
        except NodeRefused:
            if not state.ready.is_set():
                raise
        except NodeUnreachable as error:
            if not state.ready.is_set():
                raise ConfigError(str(error)) from None
        if not gone:
            gone = True
            cut = "; the program is cut off until there is one again" if workload.captured else ""
            log.warning("the node's agent is gone%s", cut)
        await asyncio.sleep(AGAIN_SECONDS)


class _Telling:
    """Says why a workload is not ready, and again when that is something else; after a while of patience."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._told = self._why = ""
        self._patient = asyncio.get_running_loop().time() + PATIENCE
        self._later: asyncio.TimerHandle | None = None

    @property
    def why(self) -> str:
        """What is known now; empty: it is ready."""
        return self._why

    @why.setter
    def why(self, why: str) -> None:
        self._why = why
        self._tell()

    async def __aenter__(self) -> None:
        """What is told of one agent is told again of the next."""
        self._told = ""
        self._later = asyncio.get_running_loop().call_at(self._patient, self._tell)

    async def __aexit__(self, *_: object) -> None:
        self._why = ""
        if self._later is not None:
            self._later.cancel()

    def _tell(self) -> None:
        if self._why and self._why != self._told and asyncio.get_running_loop().time() >= self._patient:
            log.warning("%s is not ready: %s", self._name, self._why)
            self._told = self._why


async def _first(ready: asyncio.Event, enrolment: "asyncio.Task[None]") -> None:
    waiting = asyncio.create_task(ready.wait())
    try:
        await asyncio.wait((waiting, enrolment), return_when=asyncio.FIRST_COMPLETED)
        if enrolment.done():
            enrolment.result()
    finally:
        waiting.cancel()


async def _run(
    workload: Workload,
    command: Sequence[str],
    environ: Mapping[str, str],
    watcher: Watcher,
    agent: Agent,
    state: _State,
) -> int:
    words, needed = watcher.command(command)
    try:
        program = await asyncio.create_subprocess_exec(
            *words, env=environ, start_new_session=True, pass_fds=needed
        )
    except OSError as error:
        print(f"meshlib: {command[0]}: {error.strerror}", file=sys.stderr)
        return 127 if isinstance(error, FileNotFoundError) else 126
    watcher.watch(program.pid)
    state.process_id = program.pid
    with contextlib.suppress(NodeUnreachable):
        await agent.started(workload.name, program.pid)

    async def leave(number: int) -> None:
        with contextlib.suppress(OSError, ConfigError, TimeoutError):
            async with asyncio.timeout(PATIENCE):
                await agent.drain(workload.name)
        _tell(program.pid, number)

    looking = asyncio.create_task(_look(workload, agent, state))
    with _passed_on(program.pid, leave):
        status = await program.wait()
    looking.cancel()
    await asyncio.gather(looking, return_exceptions=True)
    return status if status >= 0 else 128 - status


async def _look(workload: Workload, agent: Agent, state: _State) -> None:
    """Tells when the program listens at all its ports."""
    own = dict(workload.app_ports)
    wanted = {own.get(port, port) for _, port in workload.ports}
    loop = asyncio.get_running_loop()
    began, told = loop.time(), False
    while missing := sorted(wanted - listening(wanted, state.process_id, workload.netns)):
        waited, ports = loop.time() - began, ", ".join(map(str, missing))
        if waited > PATIENT_SECONDS and not told:
            log.warning("nobody is sent to %s before it listens at %s", workload.name, ports)
            told = True
        elif waited > LISTEN_SECONDS:
            log.warning("%s is not seen to listen at %s; others are sent to it now", workload.name, ports)
            break
        await asyncio.sleep(LOOK_SECONDS)
    state.listens = True
    with contextlib.suppress(NodeUnreachable):
        await agent.listens(workload.name)


@contextlib.contextmanager
def _passed_on(group: int, leave: Callable[[int], Coroutine[Any, Any, None]]) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    found = [getattr(signal, name) for name in SIGNALS]
    leaving: list[asyncio.Task[None]] = []

    def heard(number: int) -> None:
        if number in ENDING and not leaving:
            leaving.append(loop.create_task(leave(number)))
        else:
            _tell(group, number)

    for number in found:
        loop.add_signal_handler(number, heard, number)
    try:
        yield
    finally:
        for number in found:
            loop.remove_signal_handler(number)
        for task in leaving:
            task.cancel()


def _tell(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        # A terminal tells all who are in front of it.
        os.kill(group, number) if number not in ENDING[1:] else os.killpg(group, number)


async def _isolated(subnet: str) -> tuple[Watcher, Namespace]:
    """A new namespace, and its watcher, who lives in it. ConfigError: it can't be made."""
    import ipaddress

    try:
        with netns.making():
            made = await netns.create(ipaddress.IPv4Network(subnet))
            try:
                watcher = Watcher(made)
                await asyncio.to_thread(watcher.settle)
            except BaseException:
                await netns.remove(made)
                raise
        return watcher, made
    except OSError as error:
        raise ConfigError(f"a network namespace can't be made: {error}") from None


class AgentAt:
    """The agent at a socket."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def enrolling(self, workload: Workload) -> AsyncGenerator[Mapping[str, Any], None]:
        """As `Agent`. NodeUnreachable; NodeRefused."""
        return node_socket.talk(self._path, {"do": "enrol", "workload": workload.said()})

    async def started(self, name: str, process_id: int) -> None:
        """As `Agent`."""
        await node_socket.ask(self._path, {"do": "started", "name": name, "pid": process_id})

    async def listens(self, name: str) -> None:
        """As `Agent`."""
        await node_socket.ask(self._path, {"do": "listens", "name": name})

    async def drain(self, *names: str) -> None:
        """As `Agent`."""
        for name in names:
            await node_socket.ask(self._path, {"do": "drain", "name": name})
