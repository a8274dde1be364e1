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
- What each connection reads and writes is `pipe`'s.
- Certificate and roots are looked up for each connection: what changes holds for the next one. But a
  client's certificate that ends, or may come from a root that is given up, ends its connection.
- Who has not proved who it is may say little, and not for long; see `strangers`.
- What waits in messages that are not whole is bounded for everyone; see `budget`. Who holds too much is read
  from no further; its calls end with the reason, then the connection.
"""

import asyncio
import contextlib
import errno
import itertools
import logging
import resource
import shutil
import socket
import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from meshlib.control.serve.addresses import counted, listening
from meshlib.control.serve.budget import Budget, BudgetLimits
from meshlib.control.serve.credentials import Credentials, Shown
from meshlib.control.serve.pipe import FLUSH_SECONDS, Inside, Pipe
from meshlib.control.serve.strangers import StrangerLimits, Strangers
from meshlib.identity.spiffe import SpiffeId
from meshlib.socket_folder import socket_folder

log = logging.getLogger(__name__)

ACCEPTS = 64
"""Accepted at once before others get their turn."""
NO_DESCRIPTORS_SECONDS = 0.5
SPARE_DESCRIPTORS = 128
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
        self._pipes: set[Pipe] = set()
        self._pending: dict[Pipe, None] = {}
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
        self._folder = socket_folder()
        return f"unix:{self._folder / 'grpc'}"

    def who(self, peer: str) -> Peer | None:
        """The peer that gRPC calls by this name, as it is now; None: it did not come through here."""
        found = self._known.get(peer)
        if found is not None and found.shown is not None and (why := self.credentials.lapsed(found.shown)):
            found.shown, found.refusal = None, why
            found.hang_up()
        return found

    def sweep(self) -> bool:
        """Ends the connections whose certificate is good no more, now and then; whether there was one."""
        ended = False
        for pipe in list(self._pipes):
            shown = pipe.peer.shown
            if shown is not None and (why := self.credentials.lapsed(shown)):
                log.info("%s, %s: its certificate: %s", pipe.peer.address, shown.identity, why)
                pipe.abort()
                ended = True
        return ended

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
        pipe = Pipe(self, accepted, Peer(shown, key))
        self._pipes.add(pipe)
        self._pending[pipe] = None
        self._of_host[key] += 1
        self._pending_of_host[key] += 1
        pipe.task.add_done_callback(lambda _: self._ended(pipe))

    def _ended(self, pipe: Pipe) -> None:
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

    def shaken(self, pipe: Pipe) -> None:
        """A handshake is over, well or badly."""
        if pipe in self._pending:
            del self._pending[pipe]
            _less(self._pending_of_host, pipe.peer.host)

    async def connect(self, peer: Peer, end: Inside) -> str:
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
