"""A call for tasks, of each of the four kinds.

Rules:

- It begins at once, in a task of its own.
- But for a call with one request and one response that is awaited at once, as most are: if its first try
  could begin, whoever awaits it needs no other task for the rest. If nobody does by the next turn of the
  loop, it is given a task then.
"""

import asyncio
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator, Sequence
from functools import partial
from typing import Any

import grpc

from meshlib.core.actions import Facts, Flow
from meshlib.dataplane import exchange
from meshlib.dataplane.drive import Answer, AsyncBody, FlightFailed
from meshlib.errors import ControlError
from meshlib_grpc.aio_sender import AsyncHands, AsyncSender
from meshlib_grpc.alone import told
from meshlib_grpc.asked import Said, deserialized, missing, said, serialized
from meshlib_grpc.asynchronous import AsyncStreamed
from meshlib_grpc.bodies import AsyncMessages, Message
from meshlib_grpc.errors import Status, of_control, of_failure
from meshlib_grpc.metadata import Metadata, status_headers, to_metadata
from meshlib_grpc.outcome import CANCELLED, LEFT, OK, UNKNOWN
from meshlib_grpc.unary import WELL, Unary, Wishes

_NO_FACTS = Facts()


class _Call(grpc.aio.Call):  # type: ignore[misc]
    """What all four have in common."""

    def __init__(
        self,
        sender: AsyncSender,
        request: exchange.Request,
        body: Message | AsyncMessages,
        wishes: Wishes,
        deserialize: Any,
    ) -> None:
        self._sender = sender
        self._request = request
        self._body = body
        self._deserialize = deserialize
        self._hands = hands = AsyncHands(sender, request, body, wishes)
        if self._streams():
            hands.wanted = asyncio.Event()
        self._callbacks: list[Callable[[Any], None]] = []
        self._how: Said | None = None
        self._answer: Answer | None = None
        self._error: Status | None = None
        self._response: Any = None
        self._cancelled = False
        self._is_over = False
        self._over: asyncio.Event | None = None
        """Is set at the end; None: nobody waits for that."""
        self._until: float | None = None
        if request.patience is not None:
            self._until = asyncio.get_running_loop().time() + request.patience
        if self._may_be_dropped:
            sender.streams.add(self)
        else:
            sender.calls.add(self)
        self._task: asyncio.Task[None] | None = None
        """In which it goes on; None: it does in that of whoever awaits it."""
        self._begin()

    _may_be_dropped = False
    _unread: Sequence[bytes] = ()
    """What had come when it ended, the last first."""
    _reading = False
    _noting: asyncio.Task[None] | None = None
    """Takes note of its end, if nobody reads who does."""

    def _begin(self) -> None:
        # A stream that the application drops is ended: its task must not keep it.
        found = weakref.ref(self) if self._may_be_dropped else lambda: self
        self._go_on(_run(found, partial(self._sender.send, self._request, self._hands)))

    def _go_on(self, work: Coroutine[Any, Any, None]) -> None:
        self._task = asyncio.get_running_loop().create_task(work, name="meshlib-grpc-call")

    async def _decided(self) -> None:
        """Waits until it is known which try counts; of a call with one response, until its end."""
        if self._task is None:
            await self._ended()
        else:
            await asyncio.wait({self._task})

    def _streams(self) -> bool:
        return True

    def __del__(self) -> None:
        if hasattr(self, "_task") and not self._is_over:
            self.cancel()

    def _answered(self, answer: Answer) -> Awaitable[None] | None:
        """There is an answer; gives what is still to be awaited."""
        self._answer = answer
        if isinstance(self._body, AsyncMessages):
            self._body.once()
        if answer.own or self._hands.last is None:
            raise said(answer, None).status()
        body, last = answer.body, self._hands.last
        if isinstance(body, AsyncBody) and isinstance(last, AsyncStreamed) and body.watched is not None:
            watched = body.watched
            last.told = lambda ended: watched.trailed(status_headers(ended.code.value[0]))
            if last.ended is not None:
                last.told(last.ended)
        if self._may_be_dropped and isinstance(last, AsyncStreamed):
            last.heard = told(weakref.ref(self))
            self.hear()
        return None

    def hear(self) -> None:
        """gRPC has told of its end: if nobody reads, who looks here afterwards, it is taken note of."""
        last = self._hands.last
        if self._is_over or self._reading or self._noting is not None:
            return
        if isinstance(last, AsyncStreamed) and last.call.done():
            self._noting = asyncio.get_running_loop().create_task(self._note(), name="meshlib-grpc-end")

    async def _note(self) -> None:
        answer = self._answer
        assert answer is not None and isinstance(answer.body, AsyncBody)  # noqa: S101, PT018 - it is a stream
        error: Status | None = None
        unread: list[bytes] = []
        try:
            async for message in answer.body:
                unread.append(message)  # noqa: PERF401 - those before an error, too
        except FlightFailed as failed:
            error = of_failure(failed)
        if self._is_over:
            return
        self._unread = unread[::-1]
        if error is not None:
            self._fail(error)
        else:
            self._read_to_the_end(answer)

    def _read_to_the_end(self, answer: Answer) -> None:
        last = self._hands.last
        assert isinstance(last, AsyncStreamed)  # noqa: S101 - there were messages
        self._finish(said(answer, last.ended or LEFT, last.head))

    def _fail(self, error: Status) -> None:
        error._initial_metadata = grpc.aio.Metadata.from_tuple(tuple(error._initial_metadata))  # noqa: SLF001
        error._trailing_metadata = grpc.aio.Metadata.from_tuple(tuple(error._trailing_metadata))  # noqa: SLF001
        self._error = error
        self._tell()

    def _finish(self, how: Said) -> None:
        self._how = how
        if how.code is OK:
            self._tell()
        else:
            self._fail(how.status())

    def _tell(self) -> None:
        self._body.drop()
        if not self._is_over:
            self._is_over = True
            self._sender.calls.discard(self)
            if self._over is not None:
                self._over.set()
            callbacks, self._callbacks = self._callbacks, []
            for call in callbacks:
                call(self)

    async def ended(self) -> None:
        """Waits for the end, and for its task."""
        await self._ended()
        await self._decided()

    async def _ended(self) -> None:
        if not self._is_over:
            self._over = self._over or asyncio.Event()
            await self._over.wait()

    async def _message(self) -> Any:
        """The next message; EOF: the call went well. Status; CancelledError."""
        assert self._task is not None  # noqa: S101 - it is a stream
        await self._task
        if self._noting is not None:
            await asyncio.wait({self._noting})
        if self._error is not None and not self._unread:
            if self._cancelled:
                raise asyncio.CancelledError
            raise self._error
        answer = self._answer
        if answer is None or not isinstance(answer.body, AsyncBody):
            return grpc.aio.EOF
        self._reading = True
        try:
            if self._unread:
                *self._unread, first = self._unread
                return deserialized(first, self._deserialize)
            if self._how is not None:
                return grpc.aio.EOF
            return deserialized(await anext(answer.body), self._deserialize)
        except StopAsyncIteration:
            self._read_to_the_end(answer)
        except FlightFailed as error:
            self._fail(of_failure(error))
        except Status as error:
            answer.body.close()
            self._unread = ()
            self._fail(error)
        except asyncio.CancelledError:
            self.cancel()
            raise
        finally:
            self._reading = False
            self.hear()
        if self._error is not None:
            raise self._error
        return grpc.aio.EOF

    # What an application asks

    @property
    def meshlib(self) -> Facts:
        """By which rule, where to, how often; once there is a response."""
        if self._answer is not None:
            return self._answer.facts
        return _NO_FACTS if self._error is None else self._error.meshlib

    async def initial_metadata(self) -> Any:
        """Of the response, as the rules leave it."""
        if self._hands.wanted is not None:
            self._hands.wanted.set()
        await self._decided()
        if self._how is not None:
            return _metadata(self._how.initial)
        return _metadata(() if self._answer is None else to_metadata(self._answer.headers))

    async def trailing_metadata(self) -> Any:
        """Waits for the end."""
        await self._ended()
        if self._error is not None:
            return self._error.trailing_metadata()
        return _metadata(() if self._how is None else self._how.trailing)

    async def code(self) -> grpc.StatusCode:
        """Waits for the end."""
        await self._ended()
        return OK if self._error is None else self._error.code()

    async def details(self) -> str | None:
        """Waits for the end."""
        await self._ended()
        return "" if self._error is None else self._error.details()

    async def debug_error_string(self) -> str | None:
        """Waits for the end."""
        await self._ended()
        return "" if self._error is None else self._error.debug_error_string()

    async def wait_for_connection(self) -> None:
        """Waits until it is known which try counts. Status."""
        await self._decided()
        if self._error is not None:
            raise self._error

    def cancelled(self) -> bool:
        """Whether the application ended it."""
        return self._cancelled

    def done(self) -> bool:
        """Whether it has ended."""
        return self._is_over

    def time_remaining(self) -> float | None:
        """Seconds for which the application waits; None: for ever."""
        return None if self._until is None else max(0.0, self._until - asyncio.get_running_loop().time())

    def cancel(self) -> bool:
        """Ends it."""
        if self._is_over:
            return False
        self._cancelled = True
        if self._task is None:
            self._hands.cancel()
        else:
            self._task.cancel()
        if self._answer is not None and isinstance(self._answer.body, AsyncBody):
            self._answer.body.close()
        self._unread = ()
        self._fail(Status(CANCELLED, details=LEFT.details))
        return True

    def add_done_callback(self, callback: Any) -> None:
        """Calls it with the call at its end, or now."""
        if self._is_over:
            callback(self)
        else:
            self._callbacks.append(callback)


async def _run(found: Callable[[], _Call | None], send: Callable[[], Awaitable[Answer]]) -> None:
    """Until it is decided which try counts; of a call with one response, to its end. `found` gives the call;
    None: the application has dropped it.
    """
    error: Status
    try:
        try:
            answer = await send()
        except FlightFailed as raised:
            raise of_failure(raised) from None
        except ControlError as raised:
            raise of_control(raised) from raised
        call = found()
        if call is not None:
            left = call._answered(answer)  # noqa: SLF001 - its other half
            if left is not None:
                await left
        elif isinstance(answer.body, AsyncBody):
            answer.body.close()
        return
    except Status as raised:
        error = raised
    except asyncio.CancelledError:
        if (call := found()) is not None:
            call._cancelled = True  # noqa: SLF001
            call._fail(Status(CANCELLED, details=LEFT.details))  # noqa: SLF001
        raise
    except BaseException as raised:
        if (call := found()) is not None:
            call._fail(Status(UNKNOWN, details=repr(raised)))  # noqa: SLF001
        raise
    if (call := found()) is not None:
        call._fail(error)  # noqa: SLF001


class _Single(_Call):
    """With one response."""

    def __await__(self) -> Generator[Any, None, Any]:
        task = self._task
        if not (self._is_over if task is None else task.done()):
            try:
                yield from self._ended().__await__() if task is None else task
            except asyncio.CancelledError:
                self.cancel()
                raise
        if self._error is not None:
            if self._cancelled:
                raise asyncio.CancelledError
            raise self._error
        return self._response


class UnaryUnaryCall(_Single, grpc.aio.UnaryUnaryCall):  # type: ignore[misc]
    """One request, one response."""

    def _streams(self) -> bool:
        return False

    def _begin(self) -> None:
        self._flow = self._sender.begin(self._request, self._hands)
        """What follows the first try, until somebody goes on with it."""
        if self._flow is None:
            super()._begin()
        elif self._hands.begun:
            asyncio.get_running_loop().call_soon(self._look)
        else:
            self._look()

    def _look(self) -> None:
        """If nobody awaits it, a task does."""
        if self._flow is not None:
            self._go_on(self._rest(self._flow))

    async def _decided(self) -> None:
        self._look()
        await super()._decided()

    def _rest(self, flow: Flow) -> Coroutine[Any, Any, None]:
        self._flow = None
        return _run(lambda: self, partial(self._sender.run, self._request, flow, self._hands))

    def __await__(self) -> Generator[Any, None, Any]:
        if self._flow is not None and not self._is_over:
            self._hands.inline = True
            yield from self._rest(self._flow).__await__()
        return (yield from super().__await__())

    def _answered(self, answer: Answer) -> Awaitable[None] | None:
        super()._answered(answer)
        last = self._hands.last
        assert isinstance(last, Unary)  # noqa: S101 - it is no stream
        if last.call is None:
            return self._ended_badly(answer, last)
        if last.missing:
            return self._missing(answer, last.call)
        whole = last.whole
        self._response = deserialized(b"" if whole is None else whole, self._deserialize)
        self._tell()
        return None

    async def _ended_badly(self, answer: Answer, last: Unary) -> None:
        body = answer.body
        if isinstance(body, AsyncBody):  # its head came before
            if body.watched is not None:
                body.watched.trailed(status_headers(last.ended.code.value[0]))
            try:
                async for _ in body:
                    pass
            except FlightFailed as error:
                raise of_failure(error) from None
        self._finish(said(answer, last.ended, last.head))

    async def _missing(self, answer: Answer, call: Any) -> None:
        raise missing(answer, WELL._replace(trailing=tuple(await call.trailing_metadata() or ())))

    async def trailing_metadata(self) -> Any:
        """Waits for the end."""
        await self._ended()
        last = self._hands.last
        if self._error is None and isinstance(last, Unary) and last.call is not None:
            return await last.call.trailing_metadata()
        return await super().trailing_metadata()


class _Writing(_Call):
    """With a stream of requests, which may be written one by one."""

    def __init__(
        self,
        sender: AsyncSender,
        request: Any,
        body: AsyncMessages,
        wishes: Wishes,
        deserialize: Any,
        serialize: Any,
    ) -> None:
        super().__init__(sender, request, body, wishes, deserialize)
        self._messages = body
        self._serialize = serialize

    @property
    def _done_writing_flag(self) -> bool:
        """gRPC looks at it where an interceptor gives this call."""
        return self._messages.done

    async def write(self, request: Any) -> None:
        """Sends one. Status: it can't be made bytes. InvalidStateError: no more were to be written."""
        if self._is_over:
            raise asyncio.InvalidStateError("RPC already finished.")
        if self._messages.given or self._messages.done:
            raise asyncio.InvalidStateError("The messages of this call are not written one by one any more.")
        await self._messages.write(serialized(request, self._serialize))

    async def done_writing(self) -> None:
        """No more are written."""
        if not self._messages.given:
            self._messages.end()


class StreamUnaryCall(_Writing, _Single, grpc.aio.StreamUnaryCall):  # type: ignore[misc]
    """A stream of requests, one response."""

    def _answered(self, answer: Answer) -> Awaitable[None]:
        super()._answered(answer)
        return self._collected(answer)

    async def _collected(self, answer: Answer) -> None:
        body, last = answer.body, self._hands.last
        assert isinstance(body, AsyncBody) and isinstance(last, AsyncStreamed)  # noqa: S101, PT018 - streams
        try:
            found = [one async for one in body]
        except FlightFailed as error:
            raise of_failure(error) from None
        how = said(answer, last.ended or LEFT, last.head)
        if how.code is OK and len(found) != 1:
            raise Status(grpc.StatusCode.INTERNAL, details="The response has not one message.")
        if how.code is OK:
            self._response = deserialized(found[0], self._deserialize)
        self._finish(how)


class _Reading(_Call):
    """With a stream of responses."""

    _may_be_dropped = True

    async def read(self) -> Any:
        """The next response; `grpc.aio.EOF`: there is none. Status."""
        return await self._message()

    async def __aiter__(self) -> AsyncIterator[Any]:
        while (message := await self._message()) is not grpc.aio.EOF:
            yield message


class UnaryStreamCall(_Reading, grpc.aio.UnaryStreamCall):  # type: ignore[misc]
    """One request, a stream of responses."""


class StreamStreamCall(_Writing, _Reading, grpc.aio.StreamStreamCall):  # type: ignore[misc]
    """Streams both ways."""


def _metadata(found: Metadata) -> grpc.aio.Metadata:
    return grpc.aio.Metadata.from_tuple(tuple(found))
