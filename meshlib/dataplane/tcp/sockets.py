"""`create_connection`: a socket of the mesh, for threads and for drivers that want a socket.

Rules:

- In plain text it is a `socket.socket`, secured by the mesh an `ssl.SSLSocket`: both of their own kind, for
  select and everything else that asks for a descriptor. Through a tunnel of chunks it is one end of a pair.
- Closing it gives its slot back; so do `detach`, once the descriptor is closed, and being forgotten.
"""

import socket
import ssl
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from meshlib.core.request import Failed
from meshlib.core.tcp import Connect, Linked, Lookup, Refuse
from meshlib.core.tunnel import Tunnel
from meshlib.dataplane.http.local import path_of
from meshlib.dataplane.http.options import set_options
from meshlib.dataplane.http.secure import check, context_for
from meshlib.dataplane.tcp.asked import Asked, Meshed, failed, seconds_of, unspoken
from meshlib.dataplane.tcp.errors import of_mesh, of_refusal
from meshlib.dataplane.tcp.idle import keeper
from meshlib.dataplane.tcp.link import Link, adopt
from meshlib.errors import Closed, ControlError

if TYPE_CHECKING:
    from meshlib.dataplane.tcp.tunnel import Answer, Posted

_Address = tuple[str, int]


class _Linked:
    """What both kinds have in common. In front of the class of the socket."""

    _link: Link | None = None
    _coding: "Posted | None" = None
    """What becomes of the bytes in a tunnel of chunks; None: they go as they are."""

    def _unlink(self) -> Link | None:
        link, self._link = self._link, None
        if link is not None:
            keeper.shut(link)
        return link

    def _real_close(self) -> None:
        """socket.socket calls this when nobody has a file of it any more."""
        if (link := self._unlink()) is not None:
            link.end()
        super()._real_close()  # type: ignore[misc]

    def detach(self) -> int:
        """The descriptor has another owner from now on."""
        link = self._unlink()
        descriptor = int(super().detach())  # type: ignore[misc]
        if link is not None:
            adopt(descriptor, link)
        return descriptor

    def _took(self, count: int) -> int:
        if self._link is not None:
            self._link.received += count
        return count

    def _gave(self, count: int) -> int:
        if self._link is not None:
            self._link.sent += count
        return count


class MeshSocket(_Linked, socket.socket):
    """A connection in plain text."""

    def recv(self, *args: Any) -> bytes:
        """As of any socket."""
        data = super().recv(*args)
        self._took(len(data))
        return data

    def recv_into(self, *args: Any, **more: Any) -> int:
        """As of any socket."""
        return self._took(int(super().recv_into(*args, **more)))

    def recvmsg(self, *args: Any) -> Any:
        """As of any socket."""
        told = super().recvmsg(*args)
        self._took(len(told[0]))
        return told

    def recvmsg_into(self, *args: Any) -> Any:
        """As of any socket."""
        told = super().recvmsg_into(*args)
        self._took(told[0])
        return told

    def send(self, *args: Any) -> int:
        """As of any socket."""
        return self._gave(super().send(*args))

    def sendall(self, data: Any, *flags: Any) -> None:
        """As of any socket."""
        super().sendall(data, *flags)
        self._gave(memoryview(data).nbytes)

    def sendmsg(self, *args: Any) -> int:
        """As of any socket."""
        return self._gave(super().sendmsg(*args))


class MeshSSLSocket(_Linked, ssl.SSLSocket):
    """A connection that the mesh secures."""

    def read(self, len: int = 1024, buffer: Any = None) -> Any:  # noqa: A002 - ssl's name
        """As of any SSLSocket."""
        found = super().read(len, buffer)
        self._took(int(found) if buffer is not None else found.__len__())
        return found

    def write(self, data: Any) -> int:
        """As of any SSLSocket."""
        return self._gave(super().write(data))

    def send(self, data: Any, flags: int = 0) -> int:
        """As of any SSLSocket."""
        return self._gave(super().send(data, flags))


def create_connection(
    mesh: Meshed,
    address: _Address,
    timeout: float | None,
    source_address: _Address | None,
    server_hostname: str | None,
) -> socket.socket:
    """See `meshlib.create_connection`. `timeout` is the socket's from now on."""
    asked = Asked.of(address[0], int(address[1]), server_hostname)
    deadline = None if timeout is None else time.monotonic() + timeout
    try:
        view = mesh.prepare(asked.called.target)
    except (ControlError, Closed) as error:
        raise of_mesh(error) from error
    flow = asked.flow(mesh, view, None if deadline is None else max(0.0, deadline - time.monotonic()))
    watched = asked.watched(mesh)
    made: socket.socket | None = None
    event: Any = None
    try:
        while True:
            match flow.send(event):
                case Lookup(host):
                    event = _lookup(host, asked.called.port)
                case Connect() as connect:
                    found = _try(mesh, asked, connect, source_address)
                    made = None if isinstance(found, Failed) else found
                    event = found if isinstance(found, Failed) else None
                case Refuse(why, facts):
                    if watched is not None:
                        watched.refused(facts)
                    raise of_refusal(why, facts)
                case Linked() as linked:
                    assert isinstance(made, MeshSocket | MeshSSLSocket)  # noqa: S101 - after a Connect
                    made.settimeout(timeout)
                    made._link = link = Link(flow, linked, watched)  # noqa: SLF001 - its own module
                    keeper.keep(made, link)
                    coding = made._coding  # noqa: SLF001 - its own module
                    if coding is None:
                        return made
                    from meshlib.dataplane.tcp.relay import relayed

                    return relayed(made, coding)
    except BaseException:
        flow.close()
        if made is not None:
            made.close()
        raise


def _lookup(host: str, port: int) -> tuple[str, ...]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return ()
    return tuple(str(one[4][0]) for one in found)


def connected(mesh: Meshed, asked: Asked, connect: Connect) -> socket.socket | Failed:
    """One try, which blocks: a plain socket, without a link."""
    made = _try(mesh, asked, connect, None)
    if isinstance(made, Failed) or (made._coding is None and connect.tls is None):  # noqa: SLF001
        return made
    from meshlib.dataplane.tcp.relay import relayed

    return relayed(made, made._coding)  # noqa: SLF001 - its own module


def _try(
    mesh: Meshed, asked: Asked, connect: Connect, source: _Address | None
) -> MeshSocket | MeshSSLSocket | Failed:
    if (failure := unspoken(connect)) is not None:
        return failure
    seconds = seconds_of(connect, mesh.clock)
    deadline = time.monotonic() + seconds
    try:
        plain = _connected(connect.address, deadline, source)
        try:
            if plain.family != socket.AF_UNIX:
                set_options(plain, connect.upstream.keepalive)
            if connect.upstream.proxy_protocol:
                from meshlib.dataplane.proxy_protocol import proxy_header

                plain.sendall(proxy_header(connect.upstream.proxy_protocol, plain))
            made: MeshSocket | MeshSSLSocket
            made = plain if connect.tls is None else _secured(mesh, asked, connect, plain, deadline)
        except BaseException:
            plain.close()
            raise
        if connect.tunnel is not None:
            from meshlib.dataplane.tcp.tunnel import Posted

            answer = _lead(made, connect.tunnel, deadline)
            if connect.tunnel.post:
                made._coding = Posted(answer.chunked)  # noqa: SLF001 - its own module
        return made
    except (OSError, UnicodeError, ValueError) as error:
        return failed(error, seconds)


def _lead(made: socket.socket, tunnel: Tunnel, deadline: float) -> "Answer":
    """Asks for a tunnel, and reads no byte of what comes through it."""
    from meshlib.dataplane.tcp.tunnel import Answer, asking

    try:
        made.settimeout(_left(deadline))
        made.sendall(asking(tunnel))
        answer = Answer()
        while not answer.receive(made.recv(1)):
            made.settimeout(_left(deadline))
        return answer
    except BaseException:
        made.close()
        raise


def _connected(address: _Address, deadline: float, source: _Address | None) -> MeshSocket:
    last: OSError | None = None
    for family, kind, protocol, _, where in _places(address):
        made = MeshSocket(family, kind, protocol)
        try:
            made.settimeout(_left(deadline))
            if source is not None and family != socket.AF_UNIX:
                made.bind(source)
            made.connect(where)
        except OSError as error:
            made.close()
            last = error
            if isinstance(error, TimeoutError):
                break
        except BaseException:
            made.close()
            raise
        else:
            return made
    raise last or OSError(f"{address[0]} has no address")


def _places(address: _Address) -> Iterable[tuple[int, int, int, str, Any]]:
    path = path_of(address)
    if path is not None:
        return ((socket.AF_UNIX, socket.SOCK_STREAM, 0, "", path),)
    return socket.getaddrinfo(*address, type=socket.SOCK_STREAM)


def _secured(
    mesh: Meshed, asked: Asked, connect: Connect, plain: MeshSocket, deadline: float
) -> MeshSSLSocket:
    assert connect.tls is not None  # noqa: S101 - asked before
    contexts = mesh.contexts
    context = context_for(connect.tls, contexts)
    context.sslsocket_class = MeshSSLSocket
    plain.settimeout(_left(deadline))
    name = asked.server_name(connect.tls) or None
    made = context.wrap_socket(plain, server_hostname=name, do_handshake_on_connect=False)
    try:
        made.do_handshake()
        check(connect.tls, contexts, made)
    except BaseException:
        made.close()
        raise
    assert isinstance(made, MeshSSLSocket)  # noqa: S101 - the context was told
    return made


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("the time to connect is over")
    return left
