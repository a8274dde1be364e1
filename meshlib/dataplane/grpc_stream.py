"""A gRPC call on a socket and a thread of its own, opened again for ever.

Rules:

- The thread is a daemon; it starts with `start` and nothing is left of it after `close`.
- What there is to say is asked for when it can be sent: nothing piles up before a server that does
  not read, and what was overtaken meanwhile is never said.
- A connection that says nothing for `SILENCE` seconds is asked for a sign of life and given up `ANSWER`
  seconds later. So is one that does not speak HTTP/2 within `ANSWER` seconds of its beginning.
- A connection is made as its `Secure` says: what can't be secured is not opened. When that would be another
  by now, `refresh` begins the stream anew without a word: nothing was lost. The connection before stays open
  until something is heard on the new one: who lives at the server by this stream never left.
- A child of a fork closes its copies of the sockets, which the parent goes on using, and starts anew
  when it is told to.
"""

import contextlib
import encodings.idna  # noqa: F401 - getaddrinfo loads it: a fork meanwhile would leave the child without
import errno
import logging
import os
import selectors
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable
from typing import Protocol

from meshlib.dataplane import fork
from meshlib.dataplane.grpc_call import CallEnded, GrpcCall
from meshlib.errors import ControlError
from meshlib.xds.names import CONTROL_SERVER, split_authority

log = logging.getLogger(__name__)

DEFAULT_PORT = 15010
CONNECT = 5.0
SILENCE = 30.0
ANSWER = 10.0
_CHUNK = 256 * 1024
_READ, _WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE
# Not epoll: its descriptor would be shared with the children of a fork, changes of theirs included.
_Selector: Callable[[], selectors.BaseSelector] = getattr(selectors, "PollSelector", selectors.SelectSelector)


class Talk(Protocol):
    """What is said on a stream. All is called on the stream's thread; a ControlError ends the stream."""

    def opened(self) -> None:
        """A new stream begins."""

    def ask(self) -> Iterable[bytes]:
        """The messages that are due now. Called after `wake`, after each `take` and each `pause`."""

    def take(self, message: bytes) -> None:
        """A message came."""

    def pause(self) -> float:
        """Seconds after which `ask` is called again if nothing else happens."""

    def ended(self, why: str) -> float:
        """The stream is over, or could not be opened. Gives the seconds to wait before the next."""


class Kept(Protocol):
    """What keeps a talk going: a KeptStream, or a control service in this process."""

    def start(self) -> None:
        """Begins, unless it has begun or was closed."""

    def wake(self) -> None:
        """There is something to say."""

    def close(self) -> None:
        """Says what is due, and ends."""

    def after_fork_in_child(self) -> None:
        """The parent's goes on without this; `start` begins anew, unless it was closed."""


Secure = Callable[[], "ssl.SSLContext | None"]
"""The TLS context for a new connection, asked for on the stream's thread, where it may wait; None: plain
text. ControlError: there is none, and nothing is opened.
"""


def in_the_clear() -> None:
    """A `Secure` without security."""


class KeptStream:
    """Keeps a stream of method `path` open to `address` (`host:port`)."""

    def __init__(
        self,
        name: str,
        address: str,
        path: str,
        talk: Talk,
        secure: Secure = in_the_clear,
        follow: "Callable[[KeptStream], None]" = lambda _: None,
        doubt: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Starts nothing; `name` becomes the thread's. `follow` is told of this, to `refresh` it; `doubt` why
        a secured connection ended before anything was heard: it may be what was shown that is not taken.
        """
        self._name, self._address, self._path, self._talk = name, address, path, talk
        self._secure = secure
        self._doubt = doubt
        self._fresh()
        follow(self)

    def _fresh(self) -> None:
        self._guard = threading.Lock()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._connection: _Connection | None = None
        self._refreshing = False
        self._hung_up = self._heard = False
        """Of the last connection: whether the other end ended it, and whether a message had come."""
        self._before: _Connection | None = None
        """The one before a refresh. The stream's thread alone touches it."""

    def start(self) -> None:
        """Starts the thread, unless it runs or was closed."""
        with self._guard:
            if self._thread is None and not self._closing.is_set():
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()

    def wake(self) -> None:
        """There is something to say."""
        with self._guard:
            if self._connection is not None:
                self._connection.wake()

    def refresh(self) -> None:
        """Says what is due, and begins the stream anew, if there is one."""
        with self._guard:
            if self._connection is not None:
                self._refreshing = True
                self._connection.end()

    def close(self) -> None:
        """Says what is due, and ends stream and thread."""
        self._closing.set()
        with self._guard:
            thread, self._thread = self._thread, None
            if self._connection is not None:
                self._connection.end()
        if thread is not None and thread is not threading.current_thread():
            thread.join(CONNECT)

    def after_fork_in_child(self) -> None:
        """Stream and thread stay the parent's; `start` begins anew, unless it was closed."""
        closed = self._closing.is_set()
        for one in (self._connection, self._before):
            if one is not None:
                one.drop()
        self._fresh()
        if closed:
            self._closing.set()

    def _run(self) -> None:
        while not self._closing.is_set():
            why, pause = self._one(), CONNECT
            if self._before is not None and not why and not self._closing.is_set():
                continue
            try:
                pause = self._talk.ended(why)
            except Exception:
                log.exception("the end of the stream to %s was not noted", self._address)
            self._closing.wait(pause)
        self._let_go()

    def _one(self) -> str:
        """One stream, from its beginning to its end; why it ended."""
        self._hung_up = self._heard = False
        try:
            context = self._secure()
        except ControlError as error:
            return str(error)
        why = self._opened(context)
        if self._hung_up and context is not None and not self._heard:
            self._doubt(why)
        return why

    def _opened(self, context: ssl.SSLContext | None) -> str:
        with self._guard:
            if self._closing.is_set():
                return ""
            connection = self._connection = _Connection(self._address, self._path, context)
        try:
            self._talk.opened()
            connection.run(self._talk, self._has_heard)
        except OSError as error:
            # A refusal in the handshake can look like a lost connection; who is slow refuses nobody.
            self._hung_up = connection.stood and not isinstance(error, TimeoutError)
            return f"UNAVAILABLE: {error.strerror or error}"
        except ControlError as error:
            self._hung_up = isinstance(error, CallEnded) and error.code == "UNAUTHENTICATED"
            return str(error)
        except Exception as error:
            # The thread must live: without it nothing would ever be heard again.
            log.exception("the stream to %s failed", self._address)
            return repr(error)
        finally:
            self._let_go()
            with self._guard:
                if self._refreshing:
                    self._before, self._refreshing = connection, False
                else:
                    connection.drop()
                self._connection = None
        return ""

    def _has_heard(self) -> None:
        self._heard = True
        self._let_go()

    def _let_go(self) -> None:
        """The connection before is needed no more."""
        if self._before is not None:
            self._before.drop()
            self._before = None


class _Connection:
    """One socket, and a pair of sockets that wakes its thread. `wake`, `end`: under the keeper's guard."""

    def __init__(self, address: str, path: str, context: ssl.SSLContext | None) -> None:
        self._address, self._path, self._context = address, path, context
        self._hear, self._bell = socket.socketpair()
        self._hear.setblocking(False)
        self._bell.setblocking(False)
        self._socket: socket.socket | None = None
        self._ending = False
        self.stood = False
        """Whether there was a connection, secured or not yet."""

    def wake(self) -> None:
        with contextlib.suppress(BlockingIOError):  # full: it wakes anyway
            self._bell.send(b"\0")

    def end(self) -> None:
        self._ending = True
        self.wake()

    def drop(self) -> None:
        for one in (self._socket, self._hear, self._bell):
            if one is not None:
                one.close()

    def run(self, talk: Talk, heard: Callable[[], None]) -> None:
        """Until `end`; calls `heard` after each message. CallEnded, OSError, or what `talk` raises: it ended
        by itself.
        """
        self._heard = heard
        with _Selector() as selector:
            selector.register(self._hear, _READ)
            self._connect(selector)
            if not self._ending:
                call = GrpcCall(self._address, self._path, secure=self._context is not None)
                self._talk(selector, call, talk)

    def _connect(self, selector: selectors.BaseSelector) -> None:
        host, port = split_authority(self._address, DEFAULT_PORT)
        failed = OSError(errno.EHOSTUNREACH, "it has no address")
        for family, kind, protocol, _, target in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            self._socket = connecting = socket.socket(family, kind, protocol)
            connecting.setblocking(False)
            code = connecting.connect_ex(target)
            if code in (errno.EINPROGRESS, errno.EWOULDBLOCK):
                selector.register(connecting, _WRITE)
                code = self._connected(selector, connecting)
                selector.unregister(connecting)
            if code == 0 or self._ending:
                self.stood = code == 0
                connecting.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if self._context is not None and not self._ending:
                    self._encrypt(selector, self._context, connecting)
                selector.register(self._socket, _READ)
                return
            connecting.close()
            failed = OSError(code, os.strerror(code))
        raise failed

    def _connected(self, selector: selectors.BaseSelector, connecting: socket.socket) -> int:
        """The error number of a connection that was begun; 0: it stands, or this is to end."""
        deadline = time.monotonic() + CONNECT
        while not self._ending:
            ready = {key.fileobj for key, _ in selector.select(max(0.0, deadline - time.monotonic()))}
            if connecting in ready:
                return connecting.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if time.monotonic() >= deadline:
                return errno.ETIMEDOUT
            self._heard_bell()
        return 0

    def _encrypt(
        self, selector: selectors.BaseSelector, context: ssl.SSLContext, plain: socket.socket
    ) -> None:
        """Shakes hands. OSError: they can't agree, or it takes too long."""
        with fork.calm:
            made = self._socket = context.wrap_socket(
                plain, server_hostname=CONTROL_SERVER, do_handshake_on_connect=False
            )
        deadline = time.monotonic() + CONNECT
        while not self._ending:
            try:
                with fork.calm:
                    made.do_handshake()
                return
            except ssl.SSLWantReadError:
                wanted = _READ
            except ssl.SSLWantWriteError:
                wanted = _WRITE
            selector.register(made, wanted)
            selector.select(max(0.0, deadline - time.monotonic()))
            selector.unregister(made)
            self._heard_bell()
            if time.monotonic() >= deadline:
                raise OSError(errno.ETIMEDOUT, "the TLS handshake takes too long")

    def _talk(self, selector: selectors.BaseSelector, call: GrpcCall, talk: Talk) -> None:
        assert self._socket is not None  # noqa: S101 - `_connect` came before
        now = time.monotonic()
        # As after a ping: a server speaks first.
        out, ask_at, pinged, patience = b"", now, True, now + ANSWER
        while True:
            ending = self._ending
            if now >= ask_at and not out and not call.blocked:
                for message in talk.ask():
                    call.send(message)
                ask_at = now + talk.pause()
            out = self._send(self._socket, out or call.to_send())
            if ending:
                return
            selector.modify(self._socket, _READ | (_WRITE if out else 0))
            until = patience if out or call.blocked else min(patience, ask_at)
            ready = {key.fileobj: events for key, events in selector.select(max(0.0, until - now))}
            now = time.monotonic()
            if self._hear in ready:
                self._heard_bell()
                ask_at = now
            if ready.get(self._socket, 0) & _READ:
                pinged, patience, ask_at = False, now + SILENCE, now
                self._receive(self._socket, call, talk)
            elif now >= patience:
                if pinged:
                    raise CallEnded("UNAVAILABLE", "it does not answer")
                call.ping()
                pinged, patience = True, now + ANSWER

    def _send(self, to: socket.socket, data: bytes) -> bytes:
        """Sends what goes; the rest."""
        while data:
            try:
                with fork.calm:
                    data = data[to.send(data) :]
            except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
                break
        return data

    def _receive(self, of: socket.socket, call: GrpcCall, talk: Talk) -> None:
        """What is there; of TLS also what its buffer holds, which no selector sees."""
        while True:
            try:
                with fork.calm:
                    data = of.recv(_CHUNK)
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return
            for message in call.receive(data):
                if not self._ending:
                    talk.take(message)
                    self._heard()
            if call.ended is not None:
                raise call.ended
            if not isinstance(of, ssl.SSLSocket) or not of.pending():
                return

    def _heard_bell(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._hear.recv(4096)
