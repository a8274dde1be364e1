"""What all of gunicorn's workers have in common in the mesh.

Nothing is served before it is known what is asked of callers: without a policy the worker does not boot, and
gunicorn ends with the reason.
"""

from typing import Any

from gunicorn.arbiter import Arbiter
from gunicorn.errors import HaltServer

import meshlib
from meshlib.dataplane.gate import Gate
from meshlib_gunicorn.presence import listening, present

LINGER = 2.0
"""Seconds in which a worker that was told to stop still serves who has come, as gunicorn's gthread does."""


class Meshed:
    """Stands before gunicorn's class among the bases."""

    sockets: Any
    cfg: Any
    log: Any
    gate: Gate
    """Of the port; in the worker only."""
    patience: float
    """Seconds for a caller's handshake, and again for the head of each request; in the worker only."""

    def __init__(self, *args: Any, **named: Any) -> None:
        """In the arbiter, before the fork."""
        super().__init__(*args, **named)
        try:
            self.presence = present(self.sockets, self.log)
        except meshlib.ConfigError as error:
            raise HaltServer(str(error), Arbiter.WORKER_BOOT_ERROR) from None  # gunicorn ends, and says why

    def load_wsgi(self) -> None:
        """In the worker: the policy first, then the application."""
        if self.cfg.is_ssl:
            raise meshlib.ConfigError("certfile, keyfile: the mesh secures the port; leave them out")
        self.gate = Gate(meshlib.default(), listening(self.sockets).getsockname()[1])
        self.patience = self.gate.mesh.bootstrap.request_headers_timeout
        self.gate.prepare()
        super().load_wsgi()  # type: ignore[misc]
