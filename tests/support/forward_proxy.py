"""A real HTTP proxy on loopback: CONNECT, and requests with a whole URL (RFC 9112, 3.2.2)."""

import contextlib
import socket
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit


@dataclass
class ForwardProxy:
    """What it was asked for: `GET http://host/path`, `CONNECT host:port`."""

    port: int
    asked: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)

    @property
    def url(self) -> str:
        """As clients want it."""
        return f"http://127.0.0.1:{self.port}"


@contextlib.contextmanager
def forward_proxy(hosts: Mapping[str, int] | None = None, status: int = 200) -> Iterator[ForwardProxy]:
    """`hosts`: names that are ports of this machine. `status`: of answers to CONNECT."""
    names = hosts or {}

    def reach(host: str, port: int) -> socket.socket:
        where = ("127.0.0.1", names[host]) if host in names else (host, port)
        return socket.create_connection(where)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def note(self) -> None:
            made.asked.append(f"{self.command} {self.path}")
            made.headers.append(dict(self.headers.items()))

        def do_CONNECT(self) -> None:
            self.note()
            self.close_connection = True
            host, port = self.path.rsplit(":", 1)
            if status != 200:
                self.send_response(status)
                self.end_headers()
                return
            with reach(host, int(port)) as far:
                self.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
                self.both_ways(far)

        def do_GET(self) -> None:
            self.note()
            self.close_connection = True
            parts = urlsplit(self.path)
            with reach(parts.hostname or "", parts.port or 80) as far:
                lines = [f"{self.command} {parts.path or '/'} HTTP/1.1", "connection: close"]
                lines += [f"{n}: {v}" for n, v in self.headers.items() if n.lower() != "connection"]
                far.sendall("\r\n".join((*lines, "", "")).encode())
                _copy(far, self.connection)

        def both_ways(self, far: socket.socket) -> None:
            there = threading.Thread(target=_copy, args=(self.connection, far), daemon=True)
            there.start()
            _copy(far, self.connection)
            there.join(5)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    made = ForwardProxy(server.server_address[1])
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield made
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _copy(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
