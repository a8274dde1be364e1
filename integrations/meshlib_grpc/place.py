"""The place of a call on a channel, and whether what gRPC says of the connection is so.

gRPC's library has statuses of its own for what happens to a connection, and nothing but their words tells
them from those of a server; a server that hands on what its own client was told says the same ones. Rules:

- What words say of the connection counts only if the channel confirms it: it has none now (see `pool`: a
  channel is one connection, so it did not get another). Otherwise the status is the server's.
- The channel may hear of it a moment after the call.
- Of a channel of the application's own nothing is known: what is not certain is the server's status.
"""

import asyncio
import time
from typing import Any, Protocol

from meshlib.core.request import Failed
from meshlib_grpc.outcome import Doubt, Ended, doubt_of
from meshlib_grpc.pool import Carrier, Pool

_MOMENTS = (0.0, 0.001, 0.004, 0.01, 0.03)
"""Seconds between two looks at the channel."""


class Place(Protocol):
    """Of one call."""

    def answered(self) -> None:
        """There is a connection."""

    def is_lost(self) -> bool:
        """Whether it has no connection any more."""

    def is_failing(self) -> bool:
        """Whether no connection could be made."""

    def again(self, failed: Failed) -> bool:
        """As of a `Carrier`."""

    def release(self, *, broken: bool = False) -> None:
        """The call has ended; `broken`: there was no connection."""


class Taken:
    """On a channel of the pool."""

    __slots__ = ("_carrier", "_pool")

    def __init__(self, pool: Pool[Any], carrier: Carrier[Any]) -> None:
        self._pool = pool
        self._carrier = carrier

    def answered(self) -> None:
        """As of `Place`."""
        self._carrier.connected = True

    def is_lost(self) -> bool:
        """As of `Place`."""
        return self._pool.is_lost(self._carrier)

    def is_failing(self) -> bool:
        """As of `Place`."""
        return self._pool.is_failing(self._carrier)

    def again(self, failed: Failed) -> bool:
        """As of `Place`."""
        return self._carrier.again(failed)

    def release(self, *, broken: bool = False) -> None:
        """As of `Place`."""
        self._pool.release(self._carrier, broken=broken)


class _Elsewhere:
    def answered(self) -> None:
        pass

    def is_lost(self) -> bool:
        return False

    def is_failing(self) -> bool:
        return False

    def again(self, failed: Failed) -> bool:
        return False

    def release(self, *, broken: bool = False) -> None:
        pass


ELSEWHERE: Place = _Elsewhere()
"""On a channel of the application's own."""


def confirmed(ended: Ended, place: Place) -> Doubt | None:
    """What became of the connection of a call that ended so; None: nothing."""
    doubt = _likely(ended, place)
    if doubt is None or doubt is Doubt.NOT_CONNECTED:
        return doubt
    for seconds in _MOMENTS:
        if place.is_lost():
            return doubt
        time.sleep(seconds)
    return None


async def aconfirmed(ended: Ended, place: Place) -> Doubt | None:
    """As `confirmed`, for tasks."""
    doubt = _likely(ended, place)
    if doubt is None or doubt is Doubt.NOT_CONNECTED:
        return doubt
    for seconds in _MOMENTS:
        if place.is_lost():
            return doubt
        await asyncio.sleep(seconds)
    return None


def _likely(ended: Ended, place: Place) -> Doubt | None:
    """What is known without waiting: that a connection was lost shows a moment later."""
    doubt = doubt_of(ended)
    if place is ELSEWHERE or (doubt is Doubt.NOT_CONNECTED and not place.is_failing()):
        return None
    return doubt
