"""The calls under way, and what ends them from outside.

A call ends with its reason, which its client reads, when

- the token that it began with ends; a connection that showed a certificate needs no token;
- its connection holds too much;
- what it rests on was taken back from the caller;
- the control service stops.
"""

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from meshlib.control.serve.callers import Caller, Denied

T = TypeVar("T")
STOPPING = "the control service is stopping"


@dataclass(eq=False, slots=True)
class _Call:
    connection: str
    ends: float | None
    over: "asyncio.Future[Denied]"
    right: Callable[[], None] | None = None
    """Raises Denied, once the caller may do this no more."""


class Calls:
    """Those of one server. One event loop."""

    def __init__(self) -> None:
        """There are none."""
        self._there: dict[asyncio.Task[Any] | None, _Call] = {}
        """By the task that talks."""
        self._tasks: set[asyncio.Task[Any]] = set()
        self._stopped = False

    async def run(self, connection: str, caller: Caller, talk: Coroutine[Any, Any, T]) -> T:
        """The result of `talk`, on the connection of that name. Denied: it was ended, and why."""
        call = _Call(connection, caller.ends, asyncio.get_running_loop().create_future())
        talking = asyncio.create_task(talk)
        talking.add_done_callback(_noted)
        self._there[talking] = call
        if (task := asyncio.current_task()) is not None:  # it goes on until the status is sent
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        if self._stopped:
            call.over.set_result(Denied("UNAVAILABLE", STOPPING))
        try:
            waited: set[asyncio.Future[Any]] = {talking, call.over}
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        finally:
            del self._there[talking]
            if not talking.done():
                talking.cancel()
                await asyncio.wait({talking})
        if call.over.done():
            raise call.over.result()
        return talking.result()

    def lapsed(self, now: float) -> None:
        """Ends those whose token has ended at `now`, in seconds since 1970."""
        self._end(
            lambda call: call.ends is not None and now >= call.ends,
            Denied("UNAUTHENTICATED", "the token that this call began with has ended; come back"),
        )

    def rests_on(self, right: Callable[[], None]) -> None:
        """The call whose task this is goes on for as long as `right` raises no Denied, see `reconsider`."""
        self._there[asyncio.current_task()].right = right

    def reconsider(self) -> None:
        """Ends those whose callers may not go on."""
        for call in self._there.values():
            if call.right is None or call.over.done():
                continue
            try:
                call.right()
            except Denied as error:
                call.over.set_result(error)

    def refused(self, connection: str, why: str) -> None:
        """Ends those of a connection that is about to be closed."""
        self._end(lambda call: call.connection == connection, Denied("RESOURCE_EXHAUSTED", why))

    async def stop(self, seconds: float) -> None:
        """Ends all, and those that are still to come, and waits so long for them to be gone."""
        self._stopped = True
        self._end(lambda _: True, Denied("UNAVAILABLE", STOPPING))
        if self._tasks:
            with suppress(TimeoutError):
                await asyncio.wait(self._tasks, timeout=seconds)

    def _end(self, which: Callable[[_Call], bool], why: Denied) -> None:
        for call in self._there.values():
            if not call.over.done() and which(call):
                call.over.set_result(why)


def _noted(talking: "asyncio.Future[Any]") -> None:
    """How it ended is known: nobody may be left to ask, if the call was ended or its client has gone."""
    if not talking.cancelled():
        talking.exception()
