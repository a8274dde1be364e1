"""The agent of one Envoy: its folder, its secrets, its Envoy, and what it says of them.

    secrets ──SDS──► Envoy ◄──ADS over mTLS── control service
                           (of a node by way of the agent: `relay.py`)

Rules:

- Its folder is removed when it ends, and Envoy ends with it. One that is killed leaves the folder, in which
  there are no secrets, to the next (`folder.py`), and no Envoy.
- The control service's roots are asked for again and again: the control stream is Envoy's, and does not tell
  the agent of new ones.
- Where it listens is told of an Envoy that has its configuration; one that waits for it listens nowhere yet.
"""

import asyncio
import contextlib
import json
import logging
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from meshlib.agent.admin import Admin, AdminUnreachable, Listening
from meshlib.agent.bootstrap import (
    ADMIN_SOCKET,
    ADS_SOCKET,
    SDS_SOCKET,
    Edge,
    gateway_bootstrap,
    node_bootstrap,
)
from meshlib.agent.bounds import Bounds
from meshlib.agent.capture import Captures
from meshlib.agent.folder import BASE_ID, has_room, own_folder
from meshlib.agent.last_good import Store
from meshlib.agent.log import OPTIONS, Log
from meshlib.agent.member import Join
from meshlib.agent.node import Node
from meshlib.agent.process import Envoy, envoy_path
from meshlib.agent.refusal import Teller
from meshlib.agent.relay import Members, Relay
from meshlib.agent.sds import SecretServer
from meshlib.agent.secrets import Secrets, Svid
from meshlib.bootstrap import Bootstrap
from meshlib.errors import ConfigError

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.25
PARTING_SECONDS = 5
"""After the time to drain, before an Envoy that another took over from is ended."""
CONTROL_SOCKET = "control.sock"
"""By which a node's agent reaches the control service."""
Beside: TypeAlias = contextlib.AbstractAsyncContextManager[object]


class Certificates(Protocol):
    """Where the workload's certificate comes from, and who renews it."""

    @property
    def held(self) -> Svid | None:
        """The one in force."""

    def ensure(self) -> Svid:
        """One that is good now; may wait for the network. MeshError: none can be had."""

    def watch_roots(self) -> None:
        """Asks for the roots again and again."""


async def wait_ready(admin: Admin) -> None:
    """Until an Envoy serves."""
    while not await admin.ready():  # noqa: ASYNC110 - another process says so
        await asyncio.sleep(LOOK_SECONDS)


class Gateway:
    """A gateway that runs."""

    def __init__(self, envoy: Envoy, admin: Admin) -> None:
        self.envoy, self.admin = envoy, admin

    async def wait_ready(self) -> None:
        """Until it serves."""
        await wait_ready(self.admin)

    async def follow(self, listens: Callable[[Sequence[Listening]], None]) -> None:
        """Tells of its listeners whenever they are others; for ever."""
        told: tuple[Listening, ...] | None = None
        while True:
            with contextlib.suppress(AdminUnreachable):
                now = await self.admin.listening() if await self.admin.ready() else told
                if now is not None and now != told:
                    told = now
                    listens(now)
            await asyncio.sleep(LOOK_SECONDS)


@contextlib.asynccontextmanager
async def run_gateway(
    settings: Bootstrap,
    edge: Edge,
    certificates: Certificates | None,
    *,
    drain_seconds: float = 30.0,
    arguments: Sequence[str] = (),
) -> AsyncIterator[Gateway]:
    """A gateway for the time of the block; `arguments` are more of Envoy's own.

    `certificates` None: control is talked to in plain text. ConfigError: there is no Envoy, or the bootstrap
    can't be made. MeshError: the workload can't get a certificate.
    """
    if certificates is not None:
        _same(settings, await _ensured(certificates))
    running = run_envoy(
        "gateway",
        lambda folder: gateway_bootstrap(settings, edge, folder),
        certificates,
        Secrets(lambda: None if certificates is None else certificates.held),
        drain_seconds=drain_seconds,
        arguments=arguments,
    )
    async with running as (envoy, admin):
        yield Gateway(envoy, admin)


@contextlib.asynccontextmanager
async def run_node(
    settings: Bootstrap,
    name: str,
    bounds: Bounds,
    certificates: Certificates | None,
    secrets: Secrets,
    join: Join,
    captures: Captures,
    own_address: Callable[[], str],
    control: Callable[[Path], Beside],
    store: Store | None,
    *,
    open_at_end: bool = False,
    drain_seconds: float = 30.0,
    arguments: Sequence[str] = (),
) -> AsyncIterator[tuple[Node, Envoy, Admin]]:
    """A node for the time of the block, at whose end its workloads leave. As `Node` and `run_gateway`.

    `control` serves at a socket what leads to the control service; `store`: as of `Relay`.
    """
    made: list[Node] = []

    @contextlib.asynccontextmanager
    async def relay(folder: Path) -> AsyncIterator[None]:
        socket = folder / CONTROL_SOCKET
        members: Members = lambda: made[0].known() if made else ()  # noqa: E731
        async with control(socket), Relay(folder / ADS_SOCKET, socket, members, store):
            yield

    running = run_envoy(
        "node",
        lambda folder: node_bootstrap(settings, name, bounds, folder),
        certificates,
        secrets,
        drain_seconds=drain_seconds,
        arguments=arguments,
        beside=relay,
    )
    captures.sweep()
    async with running as (envoy, admin):
        node = Node(admin, captures, join, own_address, refused=envoy.refused_of, open_at_end=open_at_end)
        made.append(node)
        try:
            yield node, envoy, admin
        finally:
            await node.close()


@contextlib.asynccontextmanager
async def run_envoy(
    name: str,
    bootstrap: Callable[[Path], Mapping[str, Any]],
    certificates: Certificates | None,
    secrets: Secrets,
    *,
    drain_seconds: float,
    arguments: Sequence[str],
    beside: Callable[[Path], Beside] | None = None,
) -> AsyncIterator[tuple[Envoy, Admin]]:
    """An Envoy and its secrets for the time of the block; `bootstrap` makes its own, given its folder.

    `beside`: what else is served in it, for longer than the Envoy runs.
    """
    binary = envoy_path()
    if certificates is not None:
        await _ensured(certificates)
    async with contextlib.AsyncExitStack() as stack:
        folder = stack.enter_context(own_folder(name))
        has_room(folder)
        path = folder / "envoy.json"
        path.write_text(json.dumps(bootstrap(folder)))
        if certificates is not None:
            await stack.enter_async_context(SecretServer(secrets, folder / SDS_SOCKET))
            certificates.watch_roots()
        if beside is not None:
            await stack.enter_async_context(beside(folder))
        admin = Admin(folder / ADMIN_SOCKET)
        seconds = max(1, int(drain_seconds))
        times = ("--drain-time-s", str(seconds), "--parent-shutdown-time-s", str(seconds + PARTING_SECONDS))
        command = [
            str(binary),
            "-c",
            str(path),
            *OPTIONS,
            "--skip-deprecated-logs",
            *times,
            *arguments,
        ]
        said = Log(Teller(admin))
        envoy = Envoy(command, admin, base_id=folder / BASE_ID, log=said, drain_seconds=drain_seconds)
        await envoy.start()
        await stack.enter_async_context(_task(envoy.run()))
        yield envoy, admin


async def _ensured(certificates: Certificates) -> Svid:
    """One that is good now. It is got on a thread of its own: nobody who stops waits for it to end."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Svid] = loop.create_future()

    def settle(found: Svid | Exception) -> None:
        if done.cancelled():
            return
        if isinstance(found, Exception):
            done.set_exception(found)
        else:
            done.set_result(found)

    def get() -> None:
        found: Svid | Exception
        try:
            found = certificates.ensure()
        except Exception as error:  # noqa: BLE001 - handed on
            found = error
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(settle, found)

    threading.Thread(target=get, name="certificate", daemon=True).start()
    return await done


def _same(settings: Bootstrap, held: Svid) -> None:
    """ConfigError: the certificate is another's; the control service would refuse what the Envoy says."""
    said = f"/ns/{settings.namespace}/sa/{settings.service_account}"
    if not held.principal.endswith(said):
        raise ConfigError(
            f"the certificate is of {held.principal}, but MESHLIB_NAMESPACE and MESHLIB_SERVICE_ACCOUNT say "
            f"{settings.namespace}/{settings.service_account}; the token decides who it is"
        )


@contextlib.asynccontextmanager
async def _task(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    running = asyncio.create_task(work)
    try:
        yield
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
