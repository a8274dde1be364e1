"""A gunicorn worker that serves ASGI applications with uvicorn, at a port that the mesh secures."""

import asyncio
import os
import signal
import sys
from typing import Any

import uvicorn
from gunicorn.workers.base import Worker

from meshlib_asgi import MeshMiddleware
from meshlib_gunicorn.worker import LINGER, Meshed
from meshlib_uvicorn.server import STARTUP_FAILURE, Server

_LOOK = 1.0
"""Seconds between two looks at whether the arbiter lives, which is told each time that the worker does."""


class UvicornWorker(Meshed, Worker):  # type: ignore[misc]
    """uvicorn under gunicorn's arbiter, in the mesh."""

    def init_signals(self) -> None:
        """uvicorn hears the signals that end it by itself."""
        for number in self.SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGUSR1, self.handle_usr1)
        signal.siginterrupt(signal.SIGUSR1, False)

    def run(self) -> None:
        """The worker's main loop."""
        sys.exit(asyncio.run(self._serve()))

    async def _serve(self) -> int:
        self._server = server = Server(
            uvicorn.Config(MeshMiddleware(self.wsgi, self.gate), **self._options()),
            self.gate,
            patience=self.patience,
            linger=LINGER,  # a worker may go while its server stays, and nobody is told
        )
        asyncio.get_running_loop().add_signal_handler(
            signal.SIGQUIT, server.handle_exit, signal.SIGQUIT, None
        )
        serving = await server.begin([one.sock for one in self.sockets])
        if not serving.done():
            self.presence.booted()
        await serving
        return 0 if server.started else STARTUP_FAILURE

    def _options(self) -> dict[str, Any]:
        """gunicorn's settings as uvicorn's."""
        return {
            "interface": "asgi3",
            "log_config": None,
            "lifespan": "auto",
            "timeout_keep_alive": self.cfg.keepalive,
            "timeout_graceful_shutdown": self.cfg.graceful_timeout,
            "timeout_notify": min(self.timeout or _LOOK, _LOOK),
            "callback_notify": self._alive,
            "limit_max_requests": self.max_requests,
            "backlog": self.cfg.backlog,
            "proxy_headers": False,  # who calls is what the connection shows
            "server_header": False,
        }

    async def _alive(self) -> None:
        self.notify()
        if self.ppid != os.getppid():
            self.log.info("Parent changed, shutting down: %s", self)
            self._server.should_exit = True
