"""Responses that are held back until a test lets them go: how a breaker is caught in the act."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from meshlib.testing.clock import Clock

if TYPE_CHECKING:
    from meshlib.testing.calls import Call


class Hold:
    """Holds what an upstream answers. Use it in `with`, or `release` it."""

    def __init__(self, concerns: Callable[["Call"], bool], service: str, clock: Clock) -> None:
        self._concerns = concerns
        self._service = service
        self._clock = clock
        self._held: list[Call] = []
        self.open = True
        """Whether it holds what comes."""

    def __repr__(self) -> str:
        return f"<Hold of {self._service}: {f'{len(self._held)} held' if self.open else 'released'}>"

    @property
    def calls(self) -> "tuple[Call, ...]":
        """Those that are held now."""
        return tuple(self._held)

    def concerns(self, call: "Call") -> bool:
        """Whether it holds that call."""
        return self.open and self._concerns(call)

    def take(self, call: "Call") -> None:
        """It is held."""
        self._held.append(call)
        self._clock.changed()

    def drop(self, call: "Call") -> None:
        """It is held no more."""
        self._held.remove(call)

    def release(self) -> None:
        """Lets all go, and holds nothing any more."""
        self.open = False
        self._clock.changed()

    def wait(self, calls: int = 1) -> None:
        """Until that many are held, by other threads. Stuck: they do not come."""
        self._clock.wait(lambda: len(self._held) >= calls, self._lacking(calls))

    async def arrived(self, calls: int = 1) -> None:
        """Until that many are held, by other tasks. Stuck: they do not come."""
        await self._clock.await_(lambda: len(self._held) >= calls, self._lacking(calls))

    def _lacking(self, calls: int) -> str:
        return f"fewer than {calls} calls to {self._service} are held"

    def __enter__(self) -> "Hold":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
