"""Looks at peers that go on: whoever wants the same one shares it.

A look takes as long as a connection may take, whoever waits for it and for how long; what it finds is there
for who comes later. It is made on a thread of its own, or as a task: it waits for nobody else's.
"""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Hashable
from concurrent.futures import Future
from typing import Any

from meshlib.core.request import Failed
from meshlib_grpc.pin import Pinned

Seen = Pinned | Failed


class Looks:
    """For threads. Thread-safe."""

    def __init__(self) -> None:
        self._going: dict[Hashable, Future[Seen]] = {}
        self._lock = threading.Lock()

    def share(self, key: Hashable, look: Callable[[], Seen]) -> "Future[Seen]":
        """The look that `key` is for, which begins if it does not go on."""
        with self._lock:
            going = self._going.get(key)
            if going is not None:
                return going
            going = self._going[key] = Future()
        work = (key, look, going)
        try:
            threading.Thread(target=self._run, args=work, name="meshlib-grpc-look", daemon=True).start()
        except RuntimeError:  # there are no more threads to be had
            self._run(*work)
        return going

    def _run(self, key: Hashable, look: Callable[[], Seen], going: "Future[Seen]") -> None:
        seen: Seen | None = None
        error: BaseException | None = None
        try:
            seen = look()
        except BaseException as raised:  # noqa: BLE001 - raised where it is waited for
            error = raised
        with self._lock:
            del self._going[key]
        if error is not None:
            going.set_exception(error)
        elif seen is not None:
            going.set_result(seen)


class AsyncLooks:
    """For tasks. One event loop."""

    def __init__(self) -> None:
        self._going: dict[Hashable, asyncio.Task[Seen]] = {}

    def share(self, key: Hashable, look: Callable[[], Coroutine[Any, Any, Seen]]) -> "asyncio.Task[Seen]":
        """As of `Looks`."""
        going = self._going.get(key)
        if going is None:
            loop = asyncio.get_running_loop()
            going = self._going[key] = loop.create_task(look(), name="meshlib-grpc-look")
            going.add_done_callback(lambda _: self._going.pop(key))
        return going

    def close(self) -> "list[asyncio.Task[Seen]]":
        """Gives them up; these are about to end."""
        going = list(self._going.values())
        for one in going:
            one.cancel()
        return going
