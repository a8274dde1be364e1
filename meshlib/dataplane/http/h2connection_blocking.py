"""One connection over HTTP/2, for threads: several share it, and no thread of its own serves it.

Rules:

- Of the threads that wait for a connection one reads for all; when it has what it wants, another goes on. Who
  gives up says so to the peer (RST_STREAM) and harms nobody.
- The socket never blocks. What the peer does not take is kept, and whoever made it waits until it is sent.
- While nobody waits nothing is read, as with HTTP/1.1: a connection is looked at before it is used again.
  Pings are sent and answered while somebody waits.
- One lock a connection, held while nothing blocks; the lock of the pools is taken before it, never after.
"""

import contextlib
import select
import socket
import threading
import time
from collections.abc import Callable

from meshlib.core.http2 import Http2
from meshlib.core.request import Failure, ResponseHead
from meshlib.dataplane.http.h2codec import Codec, Stream
from meshlib.dataplane.http.limits import Limits
from meshlib.dataplane.http.quiet import watch
from meshlib.dataplane.http.read import Need
from meshlib.dataplane.tls_session import Session

CHUNK = 256 * 1024
MOST_UNSENT = 4 * 1024 * 1024
"""Bytes for a peer that does not read; more has no end."""


class Connection:
    """One connection to an endpoint. Thread-safe."""

    def __init__(self, made: socket.socket, session: Session | None, how: Http2) -> None:
        made.setblocking(False)
        self.codec = Codec()
        self.lock = threading.Lock()
        """For the codec and everything here."""
        self.changed: Callable[[], None] = lambda: None
        """Called without the lock when it takes more requests than before, or none any more."""
        self._changed = False
        self._socket = made
        self._session = session
        self._how = how
        self._quiet = watch(made.fileno())
        self._unsent = b""
        self._deaf = False
        """Whether the peer takes nothing any more."""
        self._led = False
        """Whether a thread reads for all."""
        self._turns: dict[Stream, threading.Condition] = {}
        self._bell: tuple[socket.socket, socket.socket] | None = None
        """Rung at one end to wake at the other who reads for all; None: nobody is ever cut off."""
        now = time.monotonic()
        self._ping_at = now + how.keepalive_interval if how.keepalive_interval else None
        self._pong_by: float | None = None

    def __repr__(self) -> str:
        return f"<Connection {self.codec!r}>"

    @property
    def allowed(self) -> int | None:
        """Requests at a time that its peer takes; None: it has not said yet."""
        return self.codec.allowed

    def usable(self) -> bool:
        """Whether it takes requests, as far as what it has said by now tells."""
        with self.lock:
            if not self._led and self.codec.failed is None and not self._quiet():
                self._notify(self._pump())
            return self.codec.usable

    def hang_bell(self) -> None:
        """From now on an exchange may be cut off."""
        with self.lock:
            if self._bell is None:
                self._bell = socket.socketpair()
                for end in self._bell:
                    end.setblocking(False)

    def cut_off(self, stream: Stream | None) -> None:
        """Ends the stream, and what a thread waits for there."""
        if stream is None:
            return
        with self.lock:
            self.codec.release(stream)
            self.flush()
            if stream in self._turns:
                self._turns[stream].notify()
            elif self._bell is not None:
                with contextlib.suppress(OSError):
                    self._bell[0].send(b".")

    # All below: under the lock.

    def flush(self) -> None:
        """Sends what the codec has to say, as far as the peer takes it."""
        said = self.codec.outgoing()
        if said and not self._deaf:
            self._unsent += said if self._session is None else self._session.seal(said)
        try:
            while self._unsent:
                self._unsent = self._unsent[self._socket.send(self._unsent) :]
        except BlockingIOError:
            return
        except OSError:
            # What it said before it went is still to be read, and then the end.
            self._deaf, self._unsent = True, b""

    def write(self, stream: Stream, data: bytes | memoryview, limits: Limits, *, last: bool) -> None:
        """Sends a part of a request's body, or as much as the peer wants. Broken, TooSlow, Unsendable."""
        begun, rest = limits.clock(), memoryview(data)
        try:
            while True:
                sent = self.codec.send(stream, rest, last=last)
                rest = rest[sent:]
                self.drain(stream, limits)
                if stream.over or not rest:
                    return
                if sent:
                    begun = limits.clock()
                    limits.left(None)
                else:
                    self._wait(stream, limits.left_since(begun, "write", limits.own.write))
        finally:
            self._hand_over()

    def drain(self, stream: Stream, limits: Limits) -> None:
        """Waits until all that was to be said is sent. Broken, TooSlow."""
        self.flush()
        if self._unsent:
            begun = limits.clock()
            while self._unsent and not stream.over:
                self._look(
                    limits.left_since(begun, "write", limits.own.write), select.POLLIN | select.POLLOUT
                )

    def next(self, stream: Stream, limits: Limits) -> ResponseHead | bytes | Need:
        """The next part of a response, waited for. Reset, Broken, TooSlow."""
        if (part := self.codec.next(stream)) is Need.DATA:
            begun = limits.clock()
            try:
                while part is Need.DATA:
                    self._wait(stream, limits.left_since(begun, "read", limits.own.read))
                    part = self.codec.next(stream)
            finally:
                self._hand_over()
        self.flush()
        return part

    def _wait(self, stream: Stream, seconds: float | None) -> None:
        """Until there may be news of the stream, or the time has passed."""
        if self._led:
            turn = self._turns[stream] = threading.Condition(self.lock)
            try:
                turn.wait(seconds)
            finally:
                del self._turns[stream]
            return
        self._led = True
        try:
            until = None if seconds is None else time.monotonic() + seconds
            while True:
                left = None if until is None else until - time.monotonic()
                if left is not None and left <= 0:
                    return
                if stream in self._look(left, select.POLLIN) or stream.over:
                    return
        finally:
            self._led = False

    def _hand_over(self) -> None:
        """Another thread reads for all, if one waits and none does."""
        if not self._led and self._turns:
            next(iter(self._turns.values())).notify()

    def _look(self, seconds: float | None, events: int) -> set[Stream]:
        """Waits for the socket, the lock released, and takes what came; gives the streams that have news."""
        if self._unsent:
            events |= select.POLLOUT
        left = self._until_ping(seconds)
        bell = None if self._bell is None else self._bell[1]
        self.lock.release()
        try:
            _poll(self._socket, events, left, bell)
        finally:
            self.lock.acquire()
        if bell is not None:
            with contextlib.suppress(BlockingIOError):
                bell.recv(CHUNK)
        news = self._pump()
        news |= self._keep_alive()
        self._notify(news)
        if self._changed:
            self._changed = False
            self.lock.release()
            try:
                self.changed()
            finally:
                self.lock.acquire()
        return news

    def _pump(self) -> set[Stream]:
        """Takes what is here, without waiting."""
        if self.codec.failed is not None:
            return set()
        try:
            data = self._socket.recv(CHUNK)
        except BlockingIOError:
            self.flush()
            return set()
        except OSError as error:
            return self.codec.fail(Failure.RESET, f"connection lost: {error}")
        news = self._take(data)
        self.flush()
        if len(self._unsent) > MOST_UNSENT:
            news |= self.codec.fail(Failure.PROTOCOL, "the peer asks, and does not read the answers")
        self._changed = self._changed or self.codec.widened or not self.codec.usable
        self.codec.widened = False
        return news

    def _take(self, data: bytes) -> set[Stream]:
        codec, session, now = self.codec, self._session, time.monotonic()
        if session is None or not data:
            return codec.receive(data, now)
        news: set[Stream] = set()
        session.receive(data)
        try:
            while (opened := session.next()) is not None:
                news |= codec.receive(opened, now)
                if not opened:
                    break
        except OSError as error:
            news |= codec.fail(Failure.RESET, f"TLS: {error}")
        self._unsent += session.outgoing()
        return news

    def _notify(self, news: set[Stream]) -> None:
        for stream in news:
            turn = self._turns.get(stream)
            if turn is not None:
                turn.notify()

    def _until_ping(self, seconds: float | None) -> float | None:
        at = self._pong_by or self._ping_at
        if at is None:
            return seconds
        left = max(0.0, at - time.monotonic())
        return left if seconds is None else min(left, seconds)

    def _keep_alive(self) -> set[Stream]:
        if self._ping_at is None:
            return set()
        now = time.monotonic()
        if self._pong_by is not None:
            if not self.codec.pinged:
                self._pong_by, self._ping_at = None, now + self._how.keepalive_interval
            elif now >= self._pong_by:
                return self.codec.fail(
                    Failure.RESET, f"no answer to a ping within {self._how.keepalive_timeout:g} s"
                )
        elif now >= self._ping_at:
            self.codec.ping()
            self._pong_by = now + self._how.keepalive_timeout
            self.flush()
        return set()

    def close(self) -> None:
        """Closes the socket; nobody uses the connection any more."""
        with contextlib.suppress(OSError):
            self._socket.close()
        for end in self._bell or ():
            end.close()


def _poll(made: socket.socket, events: int, seconds: float | None, bell: socket.socket | None) -> None:
    """Until one of the events, or the end of the connection, or the bell rings, or the time has passed."""
    if hasattr(select, "poll"):
        poll = select.poll()
        poll.register(made.fileno(), events)
        if bell is not None:
            poll.register(bell.fileno(), select.POLLIN)
        poll.poll(None if seconds is None else max(0.0, seconds) * 1000)
        return
    writing = [made] if events & select.POLLOUT else []
    select.select([made] if bell is None else [made, bell], writing, [], seconds)
