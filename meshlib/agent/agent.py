"""The agent of one gateway: its folder, its secrets, its Envoy, and what it says of them.

    secrets ──SDS──► Envoy ◄──ADS over mTLS── control service

Rules:

- Its folder is removed when it ends, and Envoy ends with it. One that is killed leaves the folder, in which
  there are no secrets, and no Envoy.
- The control service's roots are asked for again and again: the control stream is Envoy's, and does not tell
  the agent of new ones.
"""

import asyncio
import contextlib
import json
import logging
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, Protocol

from meshlib.agent.admin import Admin, AdminUnreachable, Listening
from meshlib.agent.bootstrap import ADMIN_SOCKET, SDS_SOCKET, Edge, gateway_bootstrap
from meshlib.agent.process import Envoy, envoy_path
from meshlib.agent.sds import SecretServer
from meshlib.agent.secrets import Secrets, Svid
from meshlib.bootstrap import Bootstrap

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.25


class Certificates(Protocol):
    """Where the workload's certificate comes from, and who renews it."""

    @property
    def held(self) -> Svid | None:
        """The one in force."""

    def ensure(self) -> Svid:
        """One that is good now; may wait for the network. MeshError: none can be had."""

    def watch_roots(self) -> None:
        """Asks for the roots again and again."""


class Gateway:
    """A gateway that runs."""

    def __init__(self, envoy: Envoy, admin: Admin) -> None:
        self.envoy, self.admin = envoy, admin

    async def wait_ready(self) -> None:
        """Until it serves."""
        while not await self.admin.ready():  # noqa: ASYNC110 - another process says so
            await asyncio.sleep(LOOK_SECONDS)

    async def follow(self, listens: Callable[[Sequence[Listening]], None]) -> None:
        """Tells of its listeners whenever they are others; for ever."""
        told: tuple[Listening, ...] | None = None
        while True:
            with contextlib.suppress(AdminUnreachable):
                now = await self.admin.listening()
                if now != told:
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
    binary = envoy_path()
    if certificates is not None:
        await asyncio.to_thread(certificates.ensure)
    async with contextlib.AsyncExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="meshlib-gateway-"))  # 0700
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        path = folder / "envoy.json"
        path.write_text(json.dumps(gateway_bootstrap(settings, edge, folder)))
        if certificates is not None:
            held = certificates
            await stack.enter_async_context(SecretServer(Secrets(lambda: held.held), folder / SDS_SOCKET))
            certificates.watch_roots()
        admin = Admin(folder / ADMIN_SOCKET)
        options = (
            "--use-dynamic-base-id",
            "--skip-deprecated-logs",
            "--drain-time-s",
            str(max(1, int(drain_seconds))),
        )
        command = [str(binary), "-c", str(path), "-l", "warning", *options, *arguments]
        envoy = Envoy(command, admin, drain_seconds=drain_seconds)
        await stack.enter_async_context(_task(envoy.run()))
        yield Gateway(envoy, admin)


@contextlib.asynccontextmanager
async def _task(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    running = asyncio.create_task(work)
    try:
        yield
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
