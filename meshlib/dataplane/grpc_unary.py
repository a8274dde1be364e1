"""One unary gRPC call on a connection of its own: for what is asked rarely."""

import selectors
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

from meshlib.dataplane import fork
from meshlib.dataplane.grpc_call import CallEnded, GrpcCall
from meshlib.xds.names import split_authority

_CHUNK = 64 * 1024
_READ, _WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE
T = TypeVar("T")


class Untrusted(CallEnded):
    """The server's certificate is not trusted: nothing was said to it."""


def call_once(
    address: str,
    path: str,
    request: bytes,
    *,
    context: ssl.SSLContext | None = None,
    server_name: str = "",
    metadata: Sequence[tuple[str, str]] = (),
    timeout: float = 5.0,
    authority: str = "",
    check: Callable[[ssl.SSLSocket], object] | None = None,
) -> bytes:
    """The reply to `request` of method `path` at `address` (`host:port`); `timeout` seconds for all of it.

    `context` None: in plain text. `authority` empty: the address. `check` looks who answered, and raises
    OSError. CallEnded: with the server's status, UNAVAILABLE if there is no server, DEADLINE_EXCEEDED
    after `timeout`; Untrusted, if the server could not show that it is `server_name`.
    """
    deadline = time.monotonic() + timeout
    host, port = split_authority(address, 0)
    try:
        with socket.create_connection((host, port), timeout) as plain:
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if context is None:
                return _talk(
                    plain, GrpcCall(authority or address, path, metadata=metadata), request, deadline
                )
            plain.setblocking(False)
            with fork.calm:
                made = context.wrap_socket(
                    plain, server_hostname=server_name or host, do_handshake_on_connect=False
                )
            with made as secured:
                _step(secured, secured.do_handshake, _READ, deadline)
                if check is not None:
                    check(secured)
                call = GrpcCall(authority or address, path, metadata=metadata, secure=True)
                return _talk(secured, call, request, deadline)
    except TimeoutError:
        raise CallEnded("DEADLINE_EXCEEDED", f"no answer within {timeout:g} s") from None
    except ssl.SSLCertVerificationError as error:
        raise Untrusted("UNAVAILABLE", f"its certificate is not trusted: {error.verify_message}") from None
    except OSError as error:
        raise CallEnded("UNAVAILABLE", error.strerror or str(error)) from None


def _talk(to: socket.socket, call: GrpcCall, request: bytes, deadline: float) -> bytes:
    to.setblocking(False)
    call.send(request)
    call.finish()
    replies: list[bytes] = []
    while call.ended is None:
        out = memoryview(call.to_send())
        while out:
            out = out[_step(to, partial(to.send, out), _WRITE, deadline) :]
        replies += call.receive(_step(to, partial(to.recv, _CHUNK), _READ, deadline))
    if call.ended.code != "OK":
        raise call.ended
    if len(replies) != 1:
        raise CallEnded("INTERNAL", f"{len(replies)} replies to a unary call")
    return replies[0]


def _step(of: socket.socket, act: Callable[[], T], wanted: int, deadline: float) -> T:
    """One act on a connection, tried again when the peer's part has come. TimeoutError: it did not in time.

    No fork meets it inside OpenSSL, see `fork`; `wanted` is what a plain connection waits for.
    """
    while True:
        try:
            with fork.calm:
                return act()
        except ssl.SSLWantReadError:
            wanted = _READ
        except ssl.SSLWantWriteError:
            wanted = _WRITE
        except BlockingIOError:
            pass
        with selectors.DefaultSelector() as selector:
            selector.register(of, wanted)
            if not selector.select(max(0.0, deadline - time.monotonic())):
                raise TimeoutError
