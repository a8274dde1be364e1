"""The messages of a request, as a body that can be sent again.

A body is framed as on the wire (gRPC over HTTP/2, Length-Prefixed-Message), so that a mirror's copy can be
read back. Rules for a stream of messages:

- They are kept up to a limit, for as long as they may be sent again: not where no retry is possible, not when
  the response was handed out, and none when the call has ended.
- What comes between two tries is kept for the next, whatever the limit: nobody has taken it.
"""

import asyncio
import threading
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from typing import Any

from meshlib.dataplane.body import RequestBody

_PREFIX = 5


def framed(message: bytes) -> bytes:
    """A message with its length before it."""
    return b"\0" + len(message).to_bytes(4, "big") + message


def messages(body: bytes) -> Iterator[bytes]:
    """The messages of a body."""
    at = 0
    while at < len(body):
        end = at + _PREFIX + int.from_bytes(body[at + 1 : at + _PREFIX], "big")
        yield body[at + _PREFIX : end]
        at = end


class Message(RequestBody):
    """The only one of a request."""

    __slots__ = ("message",)

    def __init__(self, message: bytes) -> None:
        self.message = message
        self._size = len(message) + _PREFIX

    def replayable(self) -> bool:
        """Always."""
        return True

    def whole(self) -> bool:
        """Always."""
        return True

    @property
    def size(self) -> int:
        """Its bytes."""
        return self._size

    def drop(self) -> None:
        """Nobody wants it any more."""
        self.message = b""

    def when_known(self, tell: Callable[[bytes | None], None]) -> None:
        """At once."""
        tell(framed(self.message))


class _Fed(RequestBody):
    """Messages that come one by one, and are kept for as long as they are not too long."""

    __slots__ = ("_again", "_base", "_bytes", "_done", "_error", "_kept_messages", "_readings", "_taken")

    def __init__(self) -> None:
        super().__init__(b"")
        self._kept_messages: list[bytes] = []
        self._base = 0
        """The number of the first that is kept."""
        self._bytes = 0
        self._taken = 0
        """The number of the next that no try has taken."""
        self._done = False
        self._error: BaseException | None = None
        self._again = True
        """Whether it may have to be sent again."""
        self._readings: set[Reading] = set()
        """Those of tries that have not ended."""

    def once(self) -> None:
        """Nothing need be kept that a try has taken."""
        self._again = False
        self._trim()

    def reading(self) -> "Reading":
        """That of another try."""
        made = Reading(self)
        self._readings.add(made)
        return made

    def leave(self, reading: "Reading") -> None:
        """Its try has ended; another may begin."""
        self._readings.discard(reading)

    def each(self, reading: "Reading | None" = None) -> Any:
        """The messages from the first, for one try."""
        raise NotImplementedError

    def drop(self) -> None:
        """The call has ended."""
        self._done = True
        self._tell(None)
        self._base += len(self._kept_messages)
        self._kept_messages.clear()

    def replayable(self) -> bool:
        """Whether all are kept that there were."""
        return self._base == 0 and self._error is None

    def whole(self) -> bool:
        """Whether no more come, and all are kept."""
        return self._done and self.replayable()

    @property
    def size(self) -> int:
        """Bytes of those that came."""
        return self._bytes

    def when_known(self, tell: Callable[[bytes | None], None]) -> None:
        """As of `RequestBody`."""
        if self._base or self._error is not None:
            tell(None)
        elif self._done:
            tell(b"".join(map(framed, self._kept_messages)))
        else:
            self._told.append(tell)

    def _add(self, message: bytes) -> None:
        self._kept_messages.append(message)
        self._bytes += len(message) + _PREFIX
        self._trim()

    def _trim(self) -> None:
        """What every try has taken goes, if it need not be kept. Where there is none, another may begin."""
        needed = self._again or self._told  # a mirror waits for the whole
        if not self._readings or (needed and self._bytes <= self.limit):
            return
        gone = max(0, min(one.taken for one in self._readings) - self._base)
        del self._kept_messages[:gone]
        self._base += gone
        if gone:
            self._tell(None)

    def _finish(self, error: BaseException | None) -> None:
        self._done, self._error = True, error
        if self._told:
            lost = error is not None or self._base
            self._tell(None if lost else b"".join(map(framed, self._kept_messages)))

    def _get(self, number: int) -> bytes | None:
        """The message of that number; None: it is not here yet."""
        at = number - self._base
        if at < 0:
            if self._done:  # and dropped
                return None
            raise RuntimeError("the messages can't be sent again")
        if at >= len(self._kept_messages):
            return None
        self._taken = max(self._taken, number + 1)
        return self._kept_messages[at]


class Reading:
    """The messages of one try."""

    __slots__ = ("body", "taken")

    def __init__(self, body: _Fed) -> None:
        self.body = body
        self.taken = 0
        """How many it has taken."""

    def each(self) -> Any:
        """The messages from the first."""
        return self.body.each(self)

    def leave(self) -> None:
        """The try has ended."""
        self.body.leave(self)


class Messages(_Fed):
    """For threads. A try that was given up may still stand in the application's iterator when the next one
    begins: what it is given then is for both.
    """

    __slots__ = ("_changed", "_feed", "_pulled", "_serialize", "unserialized")

    def __init__(self, source: Iterable[Any], serialize: Callable[[Any], bytes] | None = None) -> None:
        """`serialize` makes bytes of what the source gives; None: it is bytes."""
        super().__init__()
        self._feed = iter(source)
        self._serialize = serialize
        self.unserialized = False
        """Whether one could not be made bytes."""
        self._changed = threading.Condition()
        self._pulled = False
        """Whether a thread stands in the iterator."""

    def each(self, reading: Reading | None = None) -> Iterator[bytes]:
        """As of `_Fed`."""
        number, reading = 0, reading or self.reading()
        while True:
            with self._changed:
                while (message := self._get(number)) is None:
                    if self._error is not None:
                        raise self._error
                    if self._done:
                        return
                    if not self._pulled:
                        self._pulled = True
                        break
                    self._changed.wait()
            if message is None:
                self._pull()
            else:
                number = reading.taken = number + 1
                yield message

    def _pull(self) -> None:
        message, error, done = b"", None, False
        try:
            given = next(self._feed)
        except StopIteration:
            done = True
        except BaseException as raised:  # noqa: BLE001 - raised by `each`
            done, error = True, raised
        else:
            try:
                message = given if self._serialize is None else self._serialize(given)
                if message is None:
                    raise TypeError("None is no message")
            except Exception as raised:  # noqa: BLE001 - raised by `each`
                done, error, self.unserialized = True, raised, True
        with self._changed:
            self._pulled = False
            if done:
                self._finish(error)
            else:
                self._add(message)
            self._changed.notify_all()

    def once(self) -> None:
        """As of `_Fed`."""
        with self._changed:
            super().once()

    def reading(self) -> Reading:
        """As of `_Fed`."""
        with self._changed:
            return super().reading()

    def leave(self, reading: Reading) -> None:
        """As of `_Fed`."""
        with self._changed:
            super().leave(reading)

    def drop(self) -> None:
        """As of `_Fed`."""
        with self._changed:
            super().drop()
            self._changed.notify_all()


class AsyncMessages(_Fed):
    """For tasks: what an iterator gives, or what the application writes."""

    __slots__ = ("_changed", "_pulling", "_source_of")

    def __init__(self, source: AsyncIterable[bytes] | None) -> None:
        """`source` None: they are written."""
        super().__init__()
        self._source_of: AsyncIterator[bytes] | None = None if source is None else aiter(source)
        self._changed: asyncio.Future[None] | None = None
        self._pulling: asyncio.Task[None] | None = None

    @property
    def given(self) -> bool:
        """Whether an iterator gives them."""
        return self._source_of is not None

    @property
    def done(self) -> bool:
        """Whether no more come."""
        return self._done

    async def each(self, reading: Reading | None = None) -> AsyncGenerator[bytes, None]:
        """As of `_Fed`."""
        number, reading = 0, reading or self.reading()
        while True:
            message = self._get(number)
            if message is not None:
                number = reading.taken = number + 1
                self._notify()
                yield message
            elif self._error is not None:
                raise self._error
            elif self._done:
                return
            else:
                if self._pulling is None and self._source_of is not None:
                    # A task of its own: a try that is cancelled must not cancel the application's iterator.
                    self._pulling = asyncio.create_task(
                        self._pull(self._source_of), name="meshlib-grpc-messages"
                    )
                await self._change()

    async def _pull(self, source: AsyncIterator[bytes]) -> None:
        try:
            message = await anext(source)
        except StopAsyncIteration:
            self._finish(None)
        except BaseException as raised:
            self._finish(raised)
            if isinstance(raised, asyncio.CancelledError):
                raise
        else:
            self._add(message)
        finally:
            self._pulling = None
            self._notify()

    async def write(self, message: bytes) -> None:
        """Adds one, and waits until a try has taken it."""
        number = self._base + len(self._kept_messages)
        self._add(message)
        self._notify()
        while self._taken <= number and not self._done:
            await self._change()

    def end(self) -> None:
        """No more are written, or wanted."""
        if self._pulling is not None:
            self._pulling.cancel()
        if not self._done:
            self._finish(None)
        self._notify()

    def drop(self) -> None:
        """As of `_Fed`."""
        self.end()
        super().drop()

    async def _change(self) -> None:
        if self._changed is None:
            self._changed = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._changed)

    def _notify(self) -> None:
        changed, self._changed = self._changed, None
        if changed is not None and not changed.done():
            changed.set_result(None)
