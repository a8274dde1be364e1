"""The control server's public port: TLS with an optional client certificate, piped to gRPC.

    client ──TLS──► Front ──unix socket of our own──► gRPC

gRPC for Python can demand a client certificate or ignore it, but not take one if there is one; a workload
that joins has none yet. Rules:

- A connection reaches gRPC only after its handshake. Each is piped from a socket with a name that is
  never used twice; by that name, which gRPC tells as the peer, `who` knows the peer and its verified
  certificate. The private socket is in a folder that only this user enters, and a caller that came to it
  by another way is nobody.
- A certificate that the roots don't vouch for, or that is out of date, ends the handshake with an alert;
  one that names nobody ends each call with the reason. Who resumes a session is looked at again.
- Bounded: connections, connections of one address, handshakes under way, and their time. A handshake too
  many pushes out the oldest under way, of its own address first: who dawdles harms himself.
- Neither side is read from while the other doesn't take what was read. What either wrote before it closed
  is delivered.
- Certificate and roots are looked up for each connection: what changes holds for the next one. But a
  client's certificate that ends, or may come from a root that is given up, ends its connection.
- Who has not proved who it is may say little, and not for long; see `strangers`.
- What waits in messages that are not whole is bounded for everyone; see `budget`. Who holds too much is read
  from no further; its calls end with the reason, then the connection.
"""

import asyncio
import contextlib
import errno
import ipaddress
import itertools
import logging
import resource
import shutil
import socket
import struct
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from meshlib.control.serve.budget import Budget, BudgetLimits
from meshlib.control.serve.credentials import Credentials, Shown
from meshlib.control.serve.strangers import StrangerLimits, Strangers
from meshlib.control.serve.tls import BUFFER, Secured
from meshlib.control.serve.unfinished import Unfinished
from meshlib.identity.chain import BadCertificate
from meshlib.identity.spiffe import SpiffeId

log = logging.getLogger(__name__)

BACKLOG = 1024
ACCEPTS = 64
"""Accepted at once before others get their turn."""
NO_DESCRIPTORS_SECONDS = 0.5
SPARE_DESCRIPTORS = 128
FLUSH_SECONDS = 2.0
"""How long a client may take what was written before a connection was closed."""
HANG_UP_SECONDS = 0.1
SAY_SECONDS = 10.0
"""At most one line of the log about refused connections in that time."""


@dataclass(frozen=True, slots=True)
class FrontLimits:
    """The bounds of the public port."""

    connections: int = 20_000
    """Fewer if the process may not have three descriptors for each."""
    per_address: int = 10_000
    handshakes: int = 1000
    handshakes_per_address: int = 500
    handshake_seconds: float = 10.0
    strangers: StrangerLimits = field(default_factory=StrangerLimits)
    budget: BudgetLimits = field(default_factory=BudgetLimits)


@dataclass(eq=False, slots=True)
class Peer:
    """Who is at the other end of a connection."""

    address: str
    """`host:port`."""
    host: str
    """For counting: an IPv4 address, or the first 64 bits of an IPv6 address."""
    shown: Shown | None = None
    """Its certificate, which was verified; None: it showed none, or see `refusal`."""
    refusal: str = ""
    """Why its certificate, though the roots vouch for it, names nobody."""
    proved: str = ""
    """Who it is by its token, for counting."""
    failures: int = 0
    """How often it failed to prove who it is."""
    close: Callable[[], None] = field(default=lambda: None, repr=False)
    """Ends the connection."""
    known: Callable[[], None] = field(default=lambda: None, repr=False)
    """It is known now."""

    @property
    def identity(self) -> SpiffeId | None:
        """By its certificate."""
        return None if self.shown is None else self.shown.identity

    @property
    def caller(self) -> str:
        """Under what all that is one caller's is counted."""
        return str(self.identity or self.proved or self.host)

    def prove(self, who: str) -> None:
        """It has proved by a token who it is."""
        self.proved = who
        self.known()

    def hang_up(self) -> None:
        """Ends the connection once what is being said was said."""
        asyncio.get_running_loop().call_later(HANG_UP_SECONDS, self.close)


class Front:
    """Accepts on the public address. One event loop."""

    def __init__(
        self,
        host: str,
        port: int,
        credentials: Credentials,
        limits: FrontLimits | None = None,
        refused: Callable[[str, str], None] = lambda _name, _why: None,
    ) -> None:
        """`credentials` are shown to clients, and say whom to believe.

        `refused` is told gRPC's name of a connection that is about to be closed, and why.
        """
        self._host, self._port = host, port
        self.credentials = credentials
        self.limits = limits = limits or FrontLimits()
        self.strangers = Strangers(limits.strangers)
        self.budget = Budget(limits.budget)
        self.refused = refused
        self._most = limits.connections
        self._folder: Path | None = None
        self._names = itertools.count(1)
        self._listening: list[socket.socket] = []
        self._pipes: set[_Pipe] = set()
        self._pending: dict[_Pipe, None] = {}
        self._of_host: Counter[str] = Counter()
        self._pending_of_host: Counter[str] = Counter()
        self._known: dict[str, Peer] = {}
        self._refused = 0
        self._saying: asyncio.TimerHandle | None = None

    @property
    def port(self) -> int:
        """As bound."""
        return self._port

    @property
    def connections(self) -> int:
        """How many are open, handshakes included."""
        return len(self._pipes)

    def private(self) -> str:
        """Where gRPC must listen, in its own spelling; makes the folder for it."""
        self._folder = Path(tempfile.mkdtemp(prefix="meshlib-"))
        return f"unix:{self._folder / 'grpc'}"

    def who(self, peer: str) -> Peer | None:
        """The peer that gRPC calls by this name, as it is now; None: it did not come through here."""
        found = self._known.get(peer)
        if found is not None and found.shown is not None and (why := self.credentials.lapsed(found.shown)):
            found.shown, found.refusal = None, why
            found.hang_up()
        return found

    def sweep(self) -> None:
        """Ends the connections whose certificate is good no more; to be called now and then."""
        for pipe in list(self._pipes):
            shown = pipe.peer.shown
            if shown is not None and (why := self.credentials.lapsed(shown)):
                log.info("%s, %s: its certificate: %s", pipe.peer.address, shown.identity, why)
                pipe.abort()

    def start(self) -> None:
        """Listens; gRPC does already. OSError: the address can't be bound."""
        if self._folder is None:
            raise RuntimeError("gRPC has nowhere to listen yet")
        (self._folder / "grpc").chmod(0o600)
        descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if descriptors != resource.RLIM_INFINITY:
            self._most = max(1, min(self.limits.connections, (descriptors - SPARE_DESCRIPTORS) // 3))
        self._listening = listening(self._host, self._port)
        self._port = self._listening[0].getsockname()[1]
        for each in self._listening:
            self._listen(each)

    def close_port(self) -> None:
        """Takes no further connection; those there are go on."""
        for each in self._listening:
            asyncio.get_running_loop().remove_reader(each)
            each.close()
        self._listening = []

    async def stop(self) -> None:
        """Ends all connections; what gRPC wrote is delivered first, within a time."""
        self.close_port()
        if self._saying is not None:
            self._saying.cancel()
        for pipe in list(self._pending):
            pipe.abort()
        tasks = [pipe.task for pipe in self._pipes]
        if tasks:
            await asyncio.wait(tasks, timeout=FLUSH_SECONDS)
        for pipe in list(self._pipes):
            pipe.abort()
        if self._pipes:
            await asyncio.wait([pipe.task for pipe in self._pipes], timeout=1.0)
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    # Accepting

    def _listen(self, on: socket.socket) -> None:
        if on in self._listening:
            asyncio.get_running_loop().add_reader(on, self._accept, on)

    def _accept(self, on: socket.socket) -> None:
        for _ in range(ACCEPTS):
            try:
                accepted, address = on.accept()
            except (BlockingIOError, InterruptedError):
                return
            except ConnectionError:
                continue
            except OSError as error:
                # Nothing can be accepted for now; without a pause this would spin.
                log.warning("no connection can be accepted: %s", error.strerror)
                loop = asyncio.get_running_loop()
                loop.remove_reader(on)
                loop.call_later(NO_DESCRIPTORS_SECONDS, self._listen, on)
                return
            self._take(accepted, address[0], address[1])

    def _take(self, accepted: socket.socket, host: str, port: int) -> None:
        key = counted(host)
        if len(self._pipes) >= self._most or self._of_host[key] >= self.limits.per_address:
            accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            accepted.close()
            self._say_refused()
            return
        if self._pending_of_host[key] >= self.limits.handshakes_per_address:
            next(pipe for pipe in self._pending if pipe.peer.host == key).abort()
        elif len(self._pending) >= self.limits.handshakes:
            next(iter(self._pending)).abort()
        accepted.setblocking(False)
        with contextlib.suppress(OSError):  # it may be gone already
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        pipe = _Pipe(self, accepted, Peer(shown, key))
        self._pipes.add(pipe)
        self._pending[pipe] = None
        self._of_host[key] += 1
        self._pending_of_host[key] += 1
        pipe.task.add_done_callback(lambda _: self._ended(pipe))

    def _ended(self, pipe: "_Pipe") -> None:
        self.shaken(pipe)
        self.strangers.known(pipe)
        self.budget.gone(pipe)
        self._pipes.discard(pipe)
        self._known.pop(pipe.name, None)
        _less(self._of_host, pipe.peer.host)
        pipe.ended()

    def _say_refused(self) -> None:
        """In one line for many."""
        self._refused += 1
        if self._saying is None:
            log.warning("a connection was refused: %d are open", len(self._pipes))
            self._saying = asyncio.get_running_loop().call_later(SAY_SECONDS, self._say)

    def _say(self) -> None:
        self._saying = None
        if self._refused > 1:
            log.warning("%d connections were refused in %d s", self._refused, SAY_SECONDS)
        self._refused = 0

    # For pipes

    def shaken(self, pipe: "_Pipe") -> None:
        """A handshake is over, well or badly."""
        if pipe in self._pending:
            del self._pending[pipe]
            _less(self._pending_of_host, pipe.peer.host)

    async def connect(self, peer: Peer, end: "_Inside") -> str:
        """Connects `end` to gRPC, under a name of its own, which is returned. OSError: not now."""
        if self._folder is None:
            raise ConnectionAbortedError("the control service is stopping")
        path = self._folder / str(next(self._names))
        name = f"unix:{path}"
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            made.setblocking(False)
            made.bind(str(path))
            self._known[name] = peer
            await _connect(made, str(self._folder / "grpc"))
            await asyncio.get_running_loop().create_unix_connection(lambda: end, sock=made)
        except BaseException:
            made.close()
            self._known.pop(name, None)
            raise
        finally:
            path.unlink(missing_ok=True)
        return name


class _Inside(asyncio.Protocol):
    """The end at gRPC: what it reads, the other writes."""

    def __init__(self, outside: Secured, told: Callable[[bytes], None]) -> None:
        self._outside = outside
        self._told = told
        self.transport: asyncio.Transport | None = None
        self.lost = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(high=BUFFER)
        self._outside.join(self.transport)

    def data_received(self, data: bytes) -> None:
        self._told(data)
        self._outside.write(data)

    def eof_received(self) -> bool:
        self._outside.write_eof()
        return False

    def pause_writing(self) -> None:
        self._outside.pause_reading()

    def resume_writing(self) -> None:
        self._outside.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set()
        self._outside.close()


class _Pipe:
    """One connection, from the handshake until both ends are closed."""

    def __init__(self, front: Front, accepted: socket.socket, peer: Peer) -> None:
        self.peer = peer
        peer.close = self.abort
        peer.known = lambda: front.strangers.known(self)
        self._front = front
        self._accepted: socket.socket | None = accepted
        self._outside: Secured | None = None
        self._unfinished = Unfinished()
        self._refused = False
        self.name = ""
        """How gRPC calls this peer; empty before it does."""
        self.task = asyncio.create_task(self._run(accepted))

    def abort(self) -> None:
        """Ends it now."""
        if self._outside is not None:
            self._outside.abort()
        if not self.name:
            self.task.cancel()

    def ended(self) -> None:
        """The task is over."""
        if self._accepted is not None:
            self._accepted.close()

    async def _run(self, accepted: socket.socket) -> None:
        front = self._front
        try:
            offer = front.credentials.offer()
            outside = self._outside = Secured(offer.context, FLUSH_SECONDS, self._heard)
            self._accepted = None  # from here on the transport closes it
            await asyncio.get_running_loop().connect_accepted_socket(lambda: outside, accepted)
            async with asyncio.timeout(front.limits.handshake_seconds):
                await outside.shaken
            self._identify(outside.chain(), offer.roots)
            front.shaken(self)
            if self.peer.shown is None:
                front.strangers.came(self, self.abort)
            inside = _Inside(outside, self._told)
            self.name = await front.connect(self.peer, inside)
        except OSError as error:  # TimeoutError is one of them
            log.info("%s: no connection: %s", self.peer.address, str(error) or "the handshake took too long")
        except Exception:
            log.exception("%s: no connection", self.peer.address)
        else:
            await outside.lost.wait()
            await inside.lost.wait()
        finally:
            if self._outside is not None and not self._outside.lost.is_set():
                self._outside.end()

    def _identify(self, chain: Sequence[bytes], roots: frozenset[str]) -> None:
        if not chain:
            return
        try:
            self.peer.shown = self._front.credentials.identify(chain, roots)
        except BadCertificate as error:
            self.peer.refusal = str(error)

    def _heard(self, data: bytes) -> None:
        self._front.strangers.said(self, len(data))
        self._holds(self._unfinished.heard(data))

    def _told(self, data: bytes) -> None:
        self._holds(self._unfinished.told(data))

    def _holds(self, size: int) -> None:
        if not self._refused:
            self._front.budget.holds(self, self.peer.caller, size, self._refuse)

    def _refuse(self, why: str) -> None:
        self._refused = True
        log.warning("%s, %s is refused: %s", self.peer.address, self.peer.caller, why)
        if self._outside is not None:
            self._outside.stop_reading()
        self._front.refused(self.name, why)
        self.peer.hang_up()


async def _connect(made: socket.socket, path: str) -> None:
    """Connects a unix socket. OSError: nobody listens, or they don't accept in time."""
    for _ in range(100):
        try:
            made.connect(path)
        except BlockingIOError:  # the queue is full; a unix socket can't be waited for
            await asyncio.sleep(0.02)
        else:
            return
    raise ConnectionRefusedError(errno.ECONNREFUSED, "gRPC does not accept connections")


def _less(counts: Counter[str], key: str) -> None:
    counts[key] -= 1
    if counts[key] <= 0:
        del counts[key]


def counted(host: str) -> str:
    """Under what an address is counted: who has one IPv6 address has 2^64 of them."""
    try:
        found = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is not None:
            return str(found.ipv4_mapped)
        return str(ipaddress.ip_network((found, 64), strict=False))
    return host


def listening(host: str, port: int) -> list[socket.socket]:
    """Sockets on every address of that name, all on one port; 0 takes a free one.

    OSError: there is no such address, or the port is taken.
    """
    made: list[socket.socket] = []
    try:
        for family, _, _, _, address in _addresses(host, port):
            number = made[0].getsockname()[1] if made else port
            both = host == "::" and socket.has_dualstack_ipv6()
            try:
                one = socket.create_server(
                    (address[0], number), family=family, backlog=BACKLOG, dualstack_ipv6=both
                )
            except OSError as error:
                if made and error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    continue
                raise
            one.setblocking(False)
            made.append(one)
    except BaseException:
        for one in made:
            one.close()
        raise
    return made


def _addresses(host: str, port: int) -> list[tuple[socket.AddressFamily, int, int, str, tuple[str, int]]]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    unique = {entry[4][0]: entry for entry in found}
    return sorted(unique.values(), key=lambda entry: entry[0])  # type: ignore[arg-type]
