"""Attempts over gRPC's own channels, for threads.

A call with one request and one response is made in one go (`unary`), in the thread of who waits for it; any
other is begun (`begin`) and waited for later.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Any

import grpc

from meshlib.core.actions import Attempt
from meshlib.core.mtls import ClientTls
from meshlib.core.request import Failed, Failure
from meshlib.core.view import View
from meshlib.dataplane.http.cut import Cut
from meshlib.dataplane.http.limits import NO_TIMEOUTS, Broken, OwnTimeouts
from meshlib.dataplane.http.pools import MOST_IDLE
from meshlib.dataplane.http.secure import MakeContexts
from meshlib.dataplane.http.upkeep import caretaker
from meshlib_grpc.bodies import Message, Messages, messages
from meshlib_grpc.channels import Channels, Wanted
from meshlib_grpc.deadlines import Deadlines
from meshlib_grpc.looks import Looks, Seen
from meshlib_grpc.metadata import sendable
from meshlib_grpc.options import Options, options_of, target_of
from meshlib_grpc.outcome import NOTHING, Ended, ok, timeout_of, too_late
from meshlib_grpc.pin import Pinned, look
from meshlib_grpc.place import Place, Taken, confirmed
from meshlib_grpc.pool import LOOKS, Carrier, Pool, key_of
from meshlib_grpc.streamed import Streamed
from meshlib_grpc.unary import NO_WISHES, WELL, Unary, Wishes, unary_of


class Connections:
    """The channels of a client. Thread-safe."""

    def __init__(
        self,
        clock: Callable[[], float],
        view: Callable[[], View],
        contexts: MakeContexts,
        options: Options,
        most_idle: int = MOST_IDLE,
    ) -> None:
        """`view` is what is known now; `contexts` gives those of the workload; `options` are the
        application's own for gRPC's channels; `most_idle`: how many stay idle where another is made.
        """
        self.clock = clock
        self._options = options
        self._pool: Pool[grpc.Channel] = Pool(
            clock, view, lambda channel: channel.close(), self._expect, most_idle, state=_state
        )
        self._looks = Looks()
        self._deadlines = Deadlines(clock)
        self._channels = Channels(self._pool, clock, contexts, self._renew)

    def __repr__(self) -> str:
        return f"<Connections {self._pool!r}>"

    def unary(
        self,
        attempt: Attempt,
        message: bytes,
        wishes: Wishes = NO_WISHES,
        cut: Cut | None = None,
        looks: int = LOOKS,
    ) -> Unary | Failed:
        """One try of a call with one request and one response."""
        carrier = self._carrier(attempt)
        if isinstance(carrier, Failed):
            return carrier
        broken = False
        try:
            head = attempt.head
            stub = carrier.stub("unary_unary", head.path)
            until = timeout_of(attempt, 0.0)
            left = None if until is None else until - self.clock()
            credentials, compression = wishes
            try:
                asked = (message, left, sendable(head.headers), credentials, None, compression)
                whole, call = stub.with_call(*asked) if cut is None else _waited(stub.future(*asked), cut)
            except Broken as error:
                return error.failed
            except grpc.RpcError as error:
                outcome = failed(error, attempt, self.clock, Taken(self._pool, carrier))
                if not isinstance(outcome, Failed):
                    return outcome
                broken = not outcome.connected
                if looks == 1 or not carrier.again(outcome):
                    return outcome
            else:
                carrier.connected = True
                if until is not None and (now := self.clock()) >= until:
                    return too_late(attempt, now)
                initial = call.initial_metadata()
                return Unary(ok(initial) if initial else NOTHING, whole, WELL, call)
        finally:
            self._pool.release(carrier, broken=broken)
        return self.unary(attempt, message, wishes, cut, looks - 1)

    def begin(
        self, attempt: Attempt, body: Message | Messages, wishes: Wishes = NO_WISHES
    ) -> Streamed | Failed:
        """Begins one try of any call."""
        carrier = self._carrier(attempt)
        return carrier if isinstance(carrier, Failed) else self._begin(carrier, attempt, body, wishes)

    def begin_now(
        self, attempt: Attempt, body: Message | Messages, wishes: Wishes
    ) -> Streamed | Failed | None:
        """As `begin`, without waiting; None: it has to wait for a channel, which is being made."""
        carrier = self._find(attempt)
        if isinstance(carrier, Future):
            return None
        return carrier if isinstance(carrier, Failed) else self._begin(carrier, attempt, body, wishes)

    def _begin(
        self, carrier: Carrier[grpc.Channel], attempt: Attempt, body: Message | Messages, wishes: Wishes
    ) -> Streamed:
        whole, now = attempt.deadline, self.clock()
        left = None if whole is None else whole - now
        metadata, path = sendable(attempt.head.headers), attempt.head.path
        credentials, compression = wishes
        reading = None if isinstance(body, Message) else body.reading()
        try:
            if reading is None:
                assert isinstance(body, Message)  # noqa: S101 - it is no stream
                call = carrier.stub("unary_stream", path)(
                    body.message, left, metadata, credentials, None, compression
                )
            else:
                stub = carrier.stub("stream_stream", path)
                call = stub(reading.each(), left, metadata, credentials, None, compression)
        except BaseException:
            self._pool.release(carrier)
            if reading is not None:
                reading.leave()
            raise
        return Streamed(call, attempt, self.clock, Taken(self._pool, carrier), reading, self._deadlines)

    def _carrier(self, attempt: Attempt) -> Carrier[grpc.Channel] | Failed:
        """A channel for the attempt, which may be used."""
        found = self._channels.find(attempt)
        if not isinstance(found, Wanted):
            return found
        made = self._wanted(attempt, found)
        if not isinstance(made, Future):
            return made
        try:
            seen = made.result(timeout_of(attempt, self.clock()))
        except TimeoutError:
            return too_late(attempt, self.clock())
        if isinstance(seen, Failed):
            return seen
        there = self._pool.find(attempt, self.clock())
        return there or self._pool.add(attempt, self._made(attempt, seen), seen.secured)

    def _find(self, attempt: Attempt) -> "Carrier[grpc.Channel] | Failed | Future[Seen]":
        """A channel for the attempt, or the look that has to be waited for."""
        found = self._channels.find(attempt)
        return self._wanted(attempt, found) if isinstance(found, Wanted) else found

    def _wanted(self, attempt: Attempt, wanted: Wanted) -> "Carrier[grpc.Channel] | Future[Seen]":
        if attempt.tls is None:
            return self._pool.add(attempt, self._made(attempt, None), None)
        return self._look(attempt, attempt.tls, wanted)

    def _look(self, attempt: Attempt, tls: ClientTls, wanted: Wanted) -> "Future[Seen]":
        """Finds out who answers. There is a channel then."""

        def seen() -> Seen:
            there = self._pool.peer_of(attempt, wanted.secured)  # since this was asked for
            if isinstance(there, Pinned):
                return there
            found = look(attempt, tls, wanted.contexts, wanted.seconds)
            if isinstance(found, Pinned):
                found = found._replace(secured=wanted.secured)
                channel = self._made(attempt, found)
                _connect(channel)
                self._pool.add(attempt, channel, wanted.secured, idle=True, peer=found)
            return found

        return self._looks.share((key_of(attempt), wanted.secured), seen)

    def _renew(self, attempt: Attempt, carrier: Carrier[grpc.Channel], wanted: Wanted) -> None:
        assert attempt.tls is not None  # noqa: S101 - it was made by TLS

        def leave(done: "Future[Seen]") -> None:
            if done.exception() is not None or isinstance(done.result(), Failed):
                self._pool.leave(carrier)

        self._look(attempt, attempt.tls, wanted).add_done_callback(leave)

    def _made(self, attempt: Attempt, pinned: Pinned | None) -> grpc.Channel:
        target, options = target_of(attempt), options_of(attempt, pinned, self._options)
        if pinned is None:
            return grpc.insecure_channel(target, options)
        return grpc.secure_channel(target, pinned.credentials(), options)

    def send(
        self,
        attempt: Attempt,
        body: bytes | Iterable[bytes],
        own: OwnTimeouts = NO_TIMEOUTS,
        cut: Cut | None = None,
    ) -> Unary | Failed:
        """A copy for a mirror: its response is read to the end and not looked at."""
        assert isinstance(body, bytes)  # noqa: S101 - copies are sent when they are known whole
        carrier = self._carrier(attempt)
        if isinstance(carrier, Failed):
            return carrier
        try:
            stub = carrier.stub("stream_stream", attempt.head.path)
            left = timeout_of(attempt, self.clock())
            call = stub(messages(body), left, sendable(attempt.head.headers))
            for _ in call:
                pass
        except grpc.RpcError as error:
            return Failed(Failure.RESET, str(error.details()))
        finally:
            self._pool.release(carrier)
        return Unary(NOTHING, b"", WELL)

    def _expect(self, seconds: float) -> None:
        caretaker.expect(self, seconds)

    def look(self) -> None:
        """Closes what is of no use any more."""
        self._pool.look()

    def endpoints_changed(self, view: View, clusters: Iterable[str]) -> None:
        """On any thread: closes what leads to endpoints of these clusters that are not listed any more."""
        self._pool.keep_to(view, clusters)

    def close(self) -> None:
        """Closes what is idle now, and the rest when its last call ends."""
        self._channels.closed = True
        caretaker.forget(self)
        self._pool.close()

    def end(self) -> None:
        """Closes all, and ends the calls."""
        self._pool.close(now=True)
        self._deadlines.close()

    def abandon(self) -> None:
        """In the child of a fork: gRPC knows itself what to do with its own."""
        self._channels.closed = True


def _waited(call: Any, cut: Cut) -> tuple[bytes, Any]:
    """What a call gives, and the call. Broken: it was cut off."""
    try:
        cut.during(None, call.cancel)
        return call.result(), call
    except (Broken, grpc.FutureCancelledError):
        call.cancel()
        raise Broken(Failed(Failure.RESET, "given up")) from None
    finally:
        cut.over()


def _connect(channel: grpc.Channel) -> None:
    """Begins now: when somebody calls, the peer that was looked at may have another certificate."""
    channel._channel.check_connectivity_state(True)  # noqa: SLF001 - see `_state`


def _state(channel: grpc.Channel) -> int:
    """gRPC tells of it on a thread of its own for each channel (`subscribe`), or in this way."""
    return channel._channel.check_connectivity_state(False)  # type: ignore[no-any-return]  # noqa: SLF001


def failed(error: Any, attempt: Attempt, clock: Callable[[], float], place: Place) -> Unary | Failed:
    """What a call with one response came to that ended with an error of gRPC's. The error keeps a message
    that came before, and has no public name for it.
    """
    initial = error.initial_metadata() or ()
    ended = Ended(error.code(), error.details() or "", error.trailing_metadata() or ())
    message = getattr(getattr(error, "_state", None), "response", None) is not None
    return unary_of(ended, initial, attempt, clock, confirmed(ended, place), message=message)
