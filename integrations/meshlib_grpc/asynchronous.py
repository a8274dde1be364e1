"""Attempts over gRPC's own channels, for tasks. One event loop."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator
from typing import Any, NamedTuple

import grpc

from meshlib.core.actions import Attempt
from meshlib.core.mtls import ClientTls
from meshlib.core.request import Failed
from meshlib.core.view import View
from meshlib.dataplane.http.alarm import Alarm
from meshlib.dataplane.http.failures import closed
from meshlib.dataplane.http.limits import NO_TIMEOUTS, Broken, OwnTimeouts
from meshlib.dataplane.http.pools import MOST_IDLE
from meshlib.dataplane.http.secure import MakeContexts
from meshlib_grpc.bodies import AsyncMessages, Message, Reading, messages
from meshlib_grpc.channels import Channels, Wanted
from meshlib_grpc.looks import AsyncLooks, Seen
from meshlib_grpc.metadata import sendable
from meshlib_grpc.options import Options, options_of, target_of
from meshlib_grpc.outcome import LEFT, Ended, begun, failure, of_status, ok, timeout_of, too_late
from meshlib_grpc.pin import Pinned, alook
from meshlib_grpc.place import Place, Taken, aconfirmed
from meshlib_grpc.pool import LOOKS, Carrier, Pool, key_of
from meshlib_grpc.streamed import Trying
from meshlib_grpc.unary import NO_WISHES, WELL, Unary, Wishes, unary_of

_UNSENT = "Internal error from Core"
_MOMENT, _LOOK = 1.0, 0.002
"""Seconds for which the status is waited for, and between two looks."""


class AsyncStreamed(Trying):
    """A try of a call that goes on for a while; decided upon as of `Streamed`."""

    def __init__(
        self,
        call: Any,
        attempt: Attempt,
        clock: Callable[[], float],
        place: Place,
        reading: Reading | None,
    ) -> None:
        super().__init__(call, attempt, clock, place, reading)
        self._reading: asyncio.Future[Any] | None = None
        self._noted: Ended | None = None
        self.heard: Callable[[], None] = lambda: None
        """Is called when gRPC tells of the end."""
        call.add_done_callback(self._note)

    async def settle(self, wanted: asyncio.Event) -> "Failed | AsyncStreamed":
        """Waits for the first message or the status; once it is `wanted`, the first metadata is enough."""
        attempt = self._attempt
        reading = self._reading = asyncio.ensure_future(self.call.read())
        asking = asyncio.ensure_future(self._metadata(wanted))
        left = None if attempt.try_deadline is None else max(0.0, attempt.try_deadline - self._clock())
        try:
            done, _ = await asyncio.wait({reading, asking}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            self.close()
            raise
        finally:
            asking.cancel()
        if not done:
            self.close()
            return too_late(attempt, self._clock())
        if reading not in done:
            self.head = begun(asking.result())
            return self
        try:
            message = reading.result()
        except grpc.aio.AioRpcError as error:
            ended, initial = await self._why(error), error.initial_metadata() or ()
            connection = await aconfirmed(ended, self._place)
            self._end(ended, connection)
            return self._came_to(of_status(ended, initial, attempt, self._clock, connection))
        self._place.answered()
        self.head = begun(await self.call.initial_metadata())
        if message is grpc.aio.EOF:
            await self._end_well()
        return self

    async def _metadata(self, wanted: asyncio.Event) -> Any:
        await wanted.wait()
        initial = await self.call.initial_metadata()
        if not initial and self.call.done():
            await asyncio.Event().wait()  # the status is about to come
        return initial

    async def __aiter__(self) -> AsyncGenerator[bytes, None]:
        """The messages. Broken: they broke off, or the time ran out."""
        if self.broken is not None:
            raise Broken(self.broken)
        while self.ended is None:
            reading, self._reading = self._reading, None
            try:
                message = await (self.call.read() if reading is None else reading)
            except grpc.aio.AioRpcError as error:
                ended = await self._why(error)
                connection = await aconfirmed(ended, self._place)
                self._end(ended, connection)
                broken = failure(ended, self._attempt, self._clock, connection, head=True)
                if broken is not None:
                    raise Broken(broken) from None
                return
            if message is grpc.aio.EOF:
                await self._end_well()
                return
            yield message

    async def more(self) -> None:
        """Not asked for: gRPC's calls are iterated."""

    def close(self) -> None:
        """Ends it."""
        if self.ended is None:
            self.call.cancel()
            if self._reading is not None:
                self._reading.cancel()
            self._end(LEFT)

    def _note(self, call: Any) -> None:
        """The status is there. Another may take its place (see `_why`)."""
        code, details = _at_once(call.code()), _at_once(call.details())
        if code is not None and self._noted is None:
            self._noted = Ended(code, details or "", tuple(_at_once(call.trailing_metadata()) or ()))
        self.heard()

    async def _why(self, error: grpc.aio.AioRpcError) -> Ended:
        """How it ended. That a message can't be sent because the call has ended is a status of its own for
        gRPC's library, before the call's or after it.
        """
        ended = ended_of(error)
        if self._noted is not None and ended.details == _UNSENT:
            ended = self._noted
        until = self._clock() + _MOMENT
        while ended.details == _UNSENT and self._clock() < until:
            await asyncio.sleep(_LOOK)
            details, trailing = await self.call.details(), await self.call.trailing_metadata()
            ended = Ended(await self.call.code(), details or "", tuple(trailing or ()))
        return ended

    async def _end_well(self) -> None:
        self._end(WELL._replace(trailing=tuple(await self.call.trailing_metadata() or ())))


def _at_once(asking: Any) -> Any:
    """What a coroutine gives that does not wait; None: it would."""
    try:
        asking.send(None)
    except StopIteration as found:
        return found.value
    asking.close()
    return None


class _Sent(grpc.aio.Metadata):  # type: ignore[misc]
    """Metadata that go out as they are. gRPC makes others such, which takes longer than all else here."""

    def __init__(self, headers: list[tuple[str, str | bytes]]) -> None:
        self._headers = headers

    def __iter__(self) -> Iterator[tuple[str, str | bytes]]:
        return iter(self._headers)

    def __len__(self) -> int:
        return len(self._headers)


class Started(NamedTuple):
    """A try of a call with one request and one response, which has begun."""

    call: Any
    carrier: Carrier[grpc.aio.Channel]
    until: float | None
    """When it must have ended."""
    attempt: Attempt
    message: bytes
    wishes: Wishes


class Connections:
    """The channels of a client for one event loop."""

    def __init__(
        self,
        clock: Callable[[], float],
        view: Callable[[], View],
        contexts: MakeContexts,
        options: Options,
        most_idle: int = MOST_IDLE,
    ) -> None:
        """As of `blocking.Connections`."""
        self.clock = clock
        self._options = options
        self._closing: set[asyncio.Task[None]] = set()
        self._pool: Pool[grpc.aio.Channel] = Pool(
            clock, view, self._close, self._expect, most_idle, state=_state
        )
        self._alarm = Alarm(self._pool.look)
        self._looks = AsyncLooks()
        self._channels = Channels(self._pool, clock, contexts, self._renew)
        self._loop = asyncio.get_running_loop()

    def __repr__(self) -> str:
        return f"<Connections {self._pool!r}>"

    def _close(self, channel: grpc.aio.Channel) -> None:
        if self._loop.is_closed():
            return
        task = self._loop.create_task(channel.close(None), name="meshlib-grpc-close")
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def unary(
        self,
        attempt: Attempt,
        message: bytes,
        wishes: Wishes = NO_WISHES,
        looks: int = LOOKS,
        wanted: Wanted | None = None,
    ) -> Unary | Failed:
        """One try of a call with one request and one response. `wanted`: what `start` gave."""
        carrier = await self._carrier(attempt, wanted)
        if isinstance(carrier, Failed):
            return carrier
        return await self.outcome(self._start(carrier, attempt, message, wishes), looks)

    def start(self, attempt: Attempt, message: bytes, wishes: Wishes) -> "Started | Failed | Wanted":
        """Begins such a try without waiting; Wanted: it has to wait for a channel, which `unary` makes."""
        found = self._channels.find(attempt)
        return self._start(found, attempt, message, wishes) if isinstance(found, Carrier) else found

    def _start(
        self, carrier: Carrier[grpc.aio.Channel], attempt: Attempt, message: bytes, wishes: Wishes
    ) -> "Started":
        try:
            head, until = attempt.head, timeout_of(attempt, 0.0)
            call = carrier.stub("unary_unary", head.path)(
                message,
                timeout=None if until is None else until - self.clock(),
                metadata=_Sent(sendable(head.headers)),
                credentials=wishes.credentials,
                compression=wishes.compression,
            )
        except BaseException:
            self._pool.release(carrier)
            raise
        return Started(call, carrier, until, attempt, message, wishes)

    async def outcome(self, started: "Started", looks: int = LOOKS) -> Unary | Failed:
        """What becomes of it; it is over then."""
        call, carrier, until, attempt, message, wishes = started
        broken = False
        try:
            try:
                whole = await call
            except grpc.aio.AioRpcError as error:
                outcome = await failed(error, attempt, self.clock, Taken(self._pool, carrier))
                if not isinstance(outcome, Failed):
                    return outcome
                broken = not outcome.connected
                if looks == 1 or not carrier.again(outcome):
                    return outcome
            else:
                carrier.connected = True
                if until is not None and (now := self.clock()) >= until:
                    return too_late(attempt, now)
                return Unary(ok(await call.initial_metadata()), whole, WELL, call)
        finally:
            self._pool.release(carrier, broken=broken)
        return await self.unary(attempt, message, wishes, looks - 1)

    async def begin(
        self, attempt: Attempt, body: Message | AsyncMessages, wishes: Wishes = NO_WISHES
    ) -> AsyncStreamed | Failed:
        """Begins one try of any call."""
        carrier = await self._carrier(attempt)
        if isinstance(carrier, Failed):
            return carrier
        whole, now = attempt.deadline, self.clock()
        left = None if whole is None else whole - now
        metadata, path = _Sent(sendable(attempt.head.headers)), attempt.head.path
        credentials, compression = wishes
        reading = None if isinstance(body, Message) else body.reading()
        try:
            wanted = {"timeout": left, "metadata": metadata, "credentials": credentials}
            if reading is None:
                assert isinstance(body, Message)  # noqa: S101 - it is no stream
                call = carrier.stub("unary_stream", path)(body.message, compression=compression, **wanted)
            else:
                call = carrier.stub("stream_stream", path)(reading.each(), compression=compression, **wanted)
        except BaseException:
            self._pool.release(carrier)
            if reading is not None:
                reading.leave()
            raise
        return AsyncStreamed(call, attempt, self.clock, Taken(self._pool, carrier), reading)

    async def _carrier(
        self, attempt: Attempt, wanted: Wanted | None = None
    ) -> Carrier[grpc.aio.Channel] | Failed:
        """A channel for the attempt, which may be used."""
        found = wanted or self._channels.find(attempt)
        if not isinstance(found, Wanted):
            return found
        if attempt.tls is None:
            return self._pool.add(attempt, self._made(attempt, None), None)
        going = self._look(attempt, attempt.tls, found)
        await asyncio.wait({going}, timeout=timeout_of(attempt, self.clock()))
        if self._channels.closed:
            return closed()
        if not going.done():
            return too_late(attempt, self.clock())
        seen = going.result()
        if isinstance(seen, Failed):
            return seen
        made = self._pool.find(attempt, self.clock())
        return made or self._pool.add(attempt, self._made(attempt, seen), found.secured)

    def _look(self, attempt: Attempt, tls: ClientTls, wanted: Wanted) -> "asyncio.Task[Seen]":
        """Finds out who answers. There is a channel then."""

        async def seen() -> Seen:
            found = await alook(attempt, tls, wanted.contexts, wanted.seconds)
            if isinstance(found, Pinned):
                channel = self._made(attempt, found)
                # Now: when somebody calls, the peer that was looked at may have another certificate.
                channel.get_state(try_to_connect=True)
                self._pool.add(attempt, channel, wanted.secured, idle=True)
            return found

        return self._looks.share((key_of(attempt), wanted.secured), seen)

    def _renew(self, attempt: Attempt, carrier: Carrier[grpc.aio.Channel], wanted: Wanted) -> None:
        assert attempt.tls is not None  # noqa: S101 - it was made by TLS

        def leave(done: "asyncio.Task[Seen]") -> None:
            if done.cancelled() or done.exception() is not None or isinstance(done.result(), Failed):
                self._pool.leave(carrier)

        self._look(attempt, attempt.tls, wanted).add_done_callback(leave)

    def _made(self, attempt: Attempt, pinned: Pinned | None) -> grpc.aio.Channel:
        target, options = target_of(attempt), options_of(attempt, pinned, self._options)
        if pinned is None:
            return grpc.aio.insecure_channel(target, options)
        return grpc.aio.secure_channel(target, pinned.credentials(), options)

    async def send(
        self, attempt: Attempt, body: bytes | AsyncGenerator[bytes, None], own: OwnTimeouts = NO_TIMEOUTS
    ) -> Unary | Failed:
        """A copy for a mirror: its response is read to the end and not looked at."""
        assert isinstance(body, bytes)  # noqa: S101 - copies are sent when they are known whole
        made = await self.begin(attempt, _copy(body))
        if isinstance(made, Failed):
            return made
        settled = await made.settle(asyncio.Event())
        if not isinstance(settled, Failed):
            async for _ in settled:
                pass
        return Unary(ok(()), b"", WELL)

    def _expect(self, seconds: float) -> None:
        self._alarm.set(seconds)

    def endpoints_changed(self, view: View, clusters: Iterable[str]) -> None:
        """On any thread: as of `blocking.Connections`."""
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._pool.keep_to, view, tuple(clusters))

    def close(self) -> None:
        """Closes what is idle now, and the rest when its last call ends."""
        self._channels.closed = True
        self._alarm.cancel()
        self._pool.close()

    async def closed(self) -> None:
        """Ends what goes on, and waits until it has ended."""
        self._pool.close(now=True)
        await asyncio.gather(*self._looks.close(), *self._closing, return_exceptions=True)


def _state(channel: grpc.aio.Channel) -> int:
    return channel.get_state().value[0]  # type: ignore[no-any-return]


async def failed(
    error: grpc.aio.AioRpcError, attempt: Attempt, clock: Callable[[], float], place: Place
) -> Unary | Failed:
    """What a call with one response came to that ended with an error of gRPC's. Whether a message came before
    nothing tells: gRPC's library for tasks drops it.
    """
    ended, initial = ended_of(error), error.initial_metadata() or ()
    return unary_of(ended, initial, attempt, clock, await aconfirmed(ended, place))


def ended_of(error: grpc.aio.AioRpcError) -> Ended:
    """How a call ended that gRPC has an error for."""
    return Ended(error.code(), error.details() or "", tuple(error.trailing_metadata() or ()))


def _copy(body: bytes) -> AsyncMessages:
    async def each() -> AsyncIterator[bytes]:
        for one in messages(body):
            yield one

    return AsyncMessages(each())
