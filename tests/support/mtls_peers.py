"""Both ends of a connection without an application, for benchmarks: what is left is what TLS costs.

    python -m support.mtls_peers bare|asyncio|ours|pieces plain|tls CERTIFICATE ROOTS

A peer answers every piece that it reads, so a request must come in one. It prints its port, and serves until
it is killed. `bare`: Python's sockets and threads. `asyncio`: asyncio's own TLS. `ours`: a port of the mesh;
`pieces`: one that is answered at in two writes.
"""

import asyncio
import contextlib
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meshlib.core.mtls import InboundMode, ServerTls
from meshlib.core.request import Peer
from meshlib.dataplane.accept import Acceptor
from meshlib.dataplane.tls import Contexts, Held

HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"
BODY = b"hello"
REQUEST = b"GET /x HTTP/1.1\r\nHost: reviews:9080\r\nx-user: anybody\r\n\r\n"


class Answering(asyncio.Protocol):
    """A whole answer."""

    answer = (HEAD + BODY,)

    def __init__(self, _: Peer | None = None) -> None:
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Small pieces leave at once, as with uvicorn."""
        self._transport = transport
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def data_received(self, data: bytes) -> None:
        """One request."""
        for piece in self.answer:
            self._transport.write(piece)


class InPieces(Answering):
    """The head, then the body, as uvicorn writes them."""

    answer = (HEAD, BODY)


@dataclass
class AtPort:
    """What a port of the mesh asks."""

    contexts: Contexts
    tls: ServerTls = ServerTls(InboundMode.PERMISSIVE, ("cluster.local",))  # noqa: RUF009 - frozen


def settle_malloc() -> None:
    """From now on large blocks are not mapped and unmapped one by one.

    asyncio reads into a new object of 256 KB. glibc maps such a block until one of that size was freed, which
    a process has done or has not by chance, and that is worth more than TLS.
    """
    bytearray(1024 * 1024)


def bare(listening: socket.socket, context: ssl.SSLContext | None) -> None:
    """Serves each connection on a thread."""
    while True:
        accepted, _ = listening.accept()
        threading.Thread(target=_answer, args=(accepted, context), daemon=True).start()


def _answer(made: socket.socket, context: ssl.SSLContext | None) -> None:
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if context is not None:
        made = context.wrap_socket(made, server_side=True)
    while made.recv(65536):
        made.sendall(HEAD + BODY)


async def serve(kind: str, listening: socket.socket, context: ssl.SSLContext | None, held: Held) -> None:
    """For ever."""
    if kind == "asyncio":
        await asyncio.get_running_loop().create_server(Answering, sock=listening, ssl=context)
    else:
        Acceptor([listening], AtPort(Contexts(lambda: held)), InPieces if kind == "pieces" else Answering)
    await asyncio.Event().wait()


def main(kind: str, tls: str, certificate: str, roots: str) -> None:
    """Serves."""
    settle_malloc()
    context = None
    if tls == "tls":
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        context.load_verify_locations(roots)
        context.verify_mode = ssl.CERT_REQUIRED
    listening = socket.create_server(("127.0.0.1", 0))
    print(listening.getsockname()[1], flush=True)
    if kind == "bare":
        bare(listening, context)
        return
    shown = Path(certificate).read_text()
    held = Held(shown, b"", Path(roots).read_text())
    asyncio.run(serve(kind, listening, context, held))


@dataclass(frozen=True)
class Served:
    """A running peer."""

    port: int
    pid: int

    @property
    def cpu(self) -> float:
        """Seconds of processor time that it has used."""
        # CPUCLOCK_SCHED of a process, as clock_getcpuclockid(3) makes it.
        return time.clock_gettime((~self.pid << 3) | 2) if sys.platform == "linux" else 0.0


@contextlib.contextmanager
def peer(kind: str, tls: bool, certificate: Path, roots: Path) -> Iterator[Served]:
    """A peer in a process of its own."""
    command = [sys.executable, "-m", "support.mtls_peers", kind, "tls" if tls else "plain"]
    with subprocess.Popen(
        [*command, str(certificate), str(roots)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
    ) as process:
        assert process.stdout is not None
        try:
            yield Served(int(process.stdout.readline()), process.pid)
        finally:
            process.kill()


class BareClient:
    """Python's sockets, and nothing else."""

    def __init__(self, port: int, context: ssl.SSLContext | None) -> None:
        made = socket.create_connection(("127.0.0.1", port), timeout=5)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = made if context is None else context.wrap_socket(made)

    def ask(self) -> None:
        """One request, and its whole answer."""
        self._socket.sendall(REQUEST)
        left = len(HEAD) + len(BODY)
        while left > 0:
            left -= len(self._socket.recv(65536)) or left + 1
        assert left == 0

    def close(self) -> None:
        """Ends it."""
        self._socket.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
