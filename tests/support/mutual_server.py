"""An HTTPS server on loopback that asks for its clients' certificates and tells what it saw of them."""

import contextlib
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from support.small_ca import Issued


def server_context(folder: Path, held: Issued, roots: str) -> ssl.SSLContext:
    """Asks for a certificate of these roots; shows `held`."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _show(made, folder, held)
    made.load_verify_locations(cadata=roots)
    made.verify_mode = ssl.CERT_REQUIRED
    made.set_alpn_protocols(["h2", "http/1.1"])
    return made


def client_context(folder: Path, held: Issued | None, roots: str) -> ssl.SSLContext:
    """Shows `held`, if any; trusts these roots and asks for no name."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.check_hostname = False
    made.load_verify_locations(cadata=roots)
    if held is not None:
        _show(made, folder, held)
    return made


def _show(context: ssl.SSLContext, folder: Path, held: Issued) -> None:
    chain, key = folder / f"{id(held)}.pem", folder / f"{id(held)}.key"
    chain.write_text(held.pem)
    key.write_bytes(held.key_pem)
    context.load_cert_chain(chain, key)


@contextlib.contextmanager
def mutual_server(context: ssl.SSLContext) -> Iterator[int]:
    """Its port. It answers with its client's names, the SNI that it asked for and the ALPN agreed on."""
    asked: dict[object, str] = {}

    def note(connection: ssl.SSLObject | ssl.SSLSocket, name: str | None, _: ssl.SSLContext) -> None:
        asked[connection] = name or ""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            names = (self.connection.getpeercert() or {}).get("subjectAltName", ())
            agreed = self.connection.selected_alpn_protocol()
            body = f"{names[0][1]} {asked.get(self.connection)} {agreed}".encode()
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    context.sni_callback = note  # type: ignore[assignment]
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
