"""What stands before a server that knows nothing of the mesh: takes mutual TLS, hands on plain text."""

import contextlib
import select
import socket
import ssl
import threading
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def tls_front(port: int, context: Callable[[], ssl.SSLContext]) -> Iterator[tuple[int, list[str]]]:
    """Its port, and the names that its callers have shown. `context` gives that of the next connection."""
    listening = socket.create_server(("127.0.0.1", 0), backlog=64)
    callers: list[str] = []

    def serve(made: socket.socket) -> None:
        with contextlib.suppress(OSError), context().wrap_socket(made, server_side=True) as near:
            names = (near.getpeercert() or {}).get("subjectAltName", ())
            callers.extend(str(name) for kind, name in names if kind == "URI")
            with socket.create_connection(("127.0.0.1", port)) as far:
                _pump(near, far)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listening.accept()[0],), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield int(listening.getsockname()[1]), callers
    finally:
        with contextlib.suppress(OSError):
            listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        thread.join(5)


def _pump(near: ssl.SSLSocket, far: socket.socket) -> None:
    """One thread: OpenSSL does not read and write one connection at the same time."""
    while True:
        ready = [near] if near.pending() else select.select([near, far], [], [])[0]
        for one, other in ((near, far), (far, near)):
            if one in ready:
                data = one.recv(65536)
                if not data:
                    return
                other.sendall(data)
