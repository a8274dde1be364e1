"""What connections may cost of which nobody knows yet who is at the other end.

A workload that joins comes without a certificate, asks for the roots, shows a token: some KB, in a second.
gRPC keeps what it reads until a message is whole, so what strangers may send is counted before it. Rules:

- Each has so many bytes and so many seconds to prove who it is; all of them together have so many bytes.
- If all together say too much, the one that said most goes.
- Who has proved it is a stranger no more.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StrangerLimits:
    """The bounds."""

    seconds: float = 30.0
    bytes: int = 256 * 1024
    all_bytes: int = 32 * 1024 * 1024


@dataclass(slots=True)
class _Stranger:
    end: Callable[[], None]
    timer: asyncio.TimerHandle
    said: int = 0


class Strangers:
    """Those of one port. One event loop."""

    def __init__(self, limits: StrangerLimits) -> None:
        """Nobody is there yet."""
        self._limits = limits
        self._there: dict[object, _Stranger] = {}
        self._said = 0

    def __len__(self) -> int:
        return len(self._there)

    def came(self, who: object, end: Callable[[], None]) -> None:
        """A connection whose caller is not known; `end` ends it."""
        timer = asyncio.get_running_loop().call_later(self._limits.seconds, end)
        self._there[who] = _Stranger(end, timer)

    def known(self, who: object) -> None:
        """It proved who it is, or is gone."""
        if (stranger := self._there.pop(who, None)) is not None:
            stranger.timer.cancel()
            self._said -= stranger.said

    def said(self, who: object, size: int) -> None:
        """It sent so many bytes. Ends a connection that says too much."""
        stranger = self._there.get(who)
        if stranger is None:
            return
        stranger.said += size
        self._said += size
        if stranger.said > self._limits.bytes:
            self._end(who)
        elif self._said > self._limits.all_bytes:
            self._end(max(self._there, key=lambda one: self._there[one].said))

    def _end(self, who: object) -> None:
        stranger = self._there[who]
        self.known(who)
        stranger.end()
