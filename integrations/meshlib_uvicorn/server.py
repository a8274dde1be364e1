"""A uvicorn.Server whose port is the mesh's."""

import asyncio
import copy
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Sequence
from types import FrameType
from typing import Any

import uvicorn

from meshlib.core.request import Peer
from meshlib.dataplane.accept import Acceptor
from meshlib.dataplane.doorstep import PATIENCE, Port
from meshlib_asgi.peers import WithPeer
from meshlib_uvicorn.head_size import sized
from meshlib_uvicorn.heads import bounded

_LOOK = 0.05
"""Seconds between two looks at whether connections are left."""
STARTUP_FAILURE = 3
"""uvicorn's exit code for an application that did not start."""


async def _at_once() -> None:
    """Nothing keeps the server."""


class Server(uvicorn.Server):
    """Takes connections at sockets that it is given, as the mesh says."""

    def __init__(
        self,
        config: uvicorn.Config,
        port: Port,
        before_exit: Callable[[], Awaitable[None]] = _at_once,
        *,
        patience: float = PATIENCE,
        linger: float = 0.0,
    ) -> None:
        """`port` says what is asked of callers: a `meshlib.dataplane.gate.Gate`.

        `patience`: seconds that a caller has for the handshake, and again for the head of each request.
        `linger`: seconds at the end in which connections stay, whose callers were not told that it leaves.
        `before_exit` is awaited between the first signal to stop and the end of taking connections: the time
        to tell others. A second signal does not wait for it.
        """
        super().__init__(config)
        self._port = port
        self._patience = patience
        self._linger, self._lingers = linger, False
        self._before_exit = before_exit
        self._leaving: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self.opened = asyncio.Event()
        """Set once connections are taken."""

    async def begin(self, sockets: Sequence[socket.socket]) -> "asyncio.Task[None]":
        """Starts to serve and waits until connections are taken; the task, done if they never are."""
        serving = asyncio.create_task(self.serve(list(sockets)))
        opened = asyncio.create_task(self.opened.wait())
        await asyncio.wait({opened, serving}, return_when=asyncio.FIRST_COMPLETED)
        opened.cancel()
        return serving

    async def startup(self, sockets: Sequence[socket.socket] | None = None) -> None:
        """Starts the application, then takes connections at `sockets`, which are needed."""
        self._loop = asyncio.get_running_loop()
        await self.lifespan.startup()
        if self.lifespan.should_exit:
            sys.exit(STARTUP_FAILURE)
        sized(self.config.http_protocol_class)
        if not sockets:
            raise ValueError("sockets: listening sockets are needed")
        self.servers: list[Any] = [Acceptor(sockets, self._port, self._protocol, patience=self._patience)]
        self.started = True
        self.opened.set()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """On the first signal the others are told before the end."""
        if self._loop is None or self._leaving is not None or sig not in (signal.SIGTERM, signal.SIGINT):
            super().handle_exit(sig, frame)
            return
        self._captured_signals.append(sig)
        self._loop.call_soon_threadsafe(self._leave)

    def _leave(self) -> None:
        self._leaving = asyncio.ensure_future(self._exit())

    async def _exit(self) -> None:
        try:
            await self._before_exit()
        finally:
            self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Takes no more connections; those that there are may bring the request that is on its way."""
        loop = asyncio.get_running_loop()
        until, self._lingers = loop.time() + self._linger, True
        for acceptor in self.servers if self._linger else ():
            acceptor.stop()
        while loop.time() < until and not self.force_exit and self._held:  # noqa: ASYNC110 - as uvicorn does
            await asyncio.sleep(_LOOK)
        await super().shutdown(sockets)

    @property
    def _held(self) -> bool:
        """Whether there are connections."""
        return bool(self.server_state.connections) or any(one.strangers for one in self.servers)

    def _protocol(self, peer: Peer) -> Any:
        """uvicorn's protocol for one connection. A WebSocket takes the application from its config, too."""
        config = copy.copy(self.config)
        config.loaded_app = WithPeer(self.config.loaded_app, peer)
        http: Any = config.http_protocol_class
        protocol = bounded(sized(http), self._patience)
        made = protocol(config=config, server_state=self.server_state, app_state=self.lifespan.state)
        made.lingers = lambda: self._lingers
        return made
