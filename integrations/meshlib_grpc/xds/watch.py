"""Looks at the rules of one host that gRPC's own xDS client calls, and says what it ignores of them.

Rules:

- The mesh's own view is looked at: it is subscribed to the same rules, for as long as a channel lives.
- Told is once, and again only when something else is ignored.
- It never disturbs a call: a host of which nothing is known yet is asked for in the background.
"""

import asyncio
import logging
import time
import weakref
from typing import Any

from meshlib.core.view import View
from meshlib.dataplane.mesh import Mesh
from meshlib.errors import ControlError, RequestError
from meshlib_grpc.xds.gaps import ignored

log = logging.getLogger(__name__)

AGAIN_SECONDS = 5.0
"""After which a host that is not known is asked for again."""


class Watch:
    """Of one host, in the loop of the keeper."""

    def __init__(self, mesh: Mesh, target: str) -> None:
        """Does nothing yet."""
        self.users: weakref.WeakSet[Any] = weakref.WeakSet()
        """The channels that call it."""
        self._mesh = mesh
        self._target = target
        self._view: View | None = None
        self._told: tuple[str, ...] = ()
        self._asking: asyncio.Task[None] | None = None
        self._asked_at = 0.0

    @property
    def is_used(self) -> bool:
        """Whether there is such a channel."""
        return len(self.users) > 0

    def look(self) -> None:
        """Once more; in a running loop."""
        view = self._mesh.known(self._target)
        if view is None:
            self._ask()
        elif view is not self._view:
            self._view = view
            self._tell(ignored(view, self._target))

    def end(self) -> None:
        """Nobody calls it any more."""
        if self._asking is not None:
            self._asking.cancel()

    def _ask(self) -> None:
        if self._mesh.closed or time.monotonic() - self._asked_at < AGAIN_SECONDS:
            return
        if self._asking is None or self._asking.done():
            self._asked_at = time.monotonic()
            self._asking = asyncio.create_task(self._known())

    async def _known(self) -> None:
        try:
            await self._mesh.aprepare(self._target)
        except (ControlError, RequestError) as error:
            log.info("what gRPC ignores of the rules of %s is not known: %s", self._target, error)

    def _tell(self, found: tuple[str, ...]) -> None:
        if found != self._told:
            self._told = found
            if found:
                log.warning(
                    "gRPC does not do by itself what the rules of %s say; meshlib_grpc.channel does:\n%s",
                    self._target,
                    "\n".join(f"  {one}" for one in found),
                )
