"""One unary gRPC call on a connection of its own: for what is asked rarely."""

import socket
import ssl
import time
from collections.abc import Callable, Sequence

from meshlib.dataplane.grpc_call import CallEnded, GrpcCall
from meshlib.xds.names import split_authority

_CHUNK = 64 * 1024


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
            _patience(plain, deadline)
            with context.wrap_socket(plain, server_hostname=server_name or host) as secured:
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
    call.send(request)
    call.finish()
    replies: list[bytes] = []
    while call.ended is None:
        _patience(to, deadline)
        to.sendall(call.to_send())
        _patience(to, deadline)
        replies += call.receive(to.recv(_CHUNK))
    if call.ended.code != "OK":
        raise call.ended
    if len(replies) != 1:
        raise CallEnded("INTERNAL", f"{len(replies)} replies to a unary call")
    return replies[0]


def _patience(of: socket.socket, deadline: float) -> None:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    of.settimeout(left)
