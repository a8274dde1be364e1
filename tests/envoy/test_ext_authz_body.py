"""What an external authority is shown of a request's body: a real Envoy, an ASGI server and a WSGI server.

The same bytes go to each of them, under the same documents. Compared are the status and what the authority
was shown; and the application behind ours has read the whole body. Left out is Envoy's quirk: what reaches
the limit exactly in one piece, and goes on, it takes for the whole body (see core/authz/body.py).
"""

import asyncio
import contextlib
import socket
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

import uvicorn
from support.authorities import GRPC_CLUSTER, HTTP_CLUSTER, Seen, authorities
from support.oracle_http import receive
from support.security_envoy import documents, filters_of, secured_envoy
from werkzeug.serving import WSGIRequestHandler, make_server
from werkzeug.wrappers import Request

import meshlib
from meshlib.dataplane.gate import Gate
from meshlib_asgi import MeshMiddleware as AsgiMiddleware
from meshlib_wsgi import MeshMiddleware as WsgiMiddleware

LIMIT = 10
KINDS: Mapping[str, dict[str, Any]] = {
    "whole": {"maxRequestBytes": LIMIT},
    "part": {"maxRequestBytes": LIMIT, "allowPartialMessage": True},
    "bytes": {"maxRequestBytes": LIMIT, "packAsBytes": True},
}
CUSTOM = "custom(ask):\n  provider: {name: %s}\n  rules: [{}]\n"
HEAD = b"POST /p HTTP/1.1\r\nhost: h\r\n"
EXPECTING = HEAD + b"expect: 100-continue\r\n"
CHUNKED = HEAD + b"transfer-encoding: chunked\r\n\r\n"


def sized(body: bytes, head: bytes = HEAD) -> bytes:
    return head + f"content-length: {len(body)}\r\n\r\n".encode() + body


ASKED: Mapping[str, tuple[bytes, ...]] = {
    "no body": (HEAD + b"\r\n",),
    "an empty body": (sized(b""),),
    "a small body": (sized(b"abc"),),
    "a body that is no text": (sized(b"\xff\xc3\xa4\xe2\x82a"),),
    "a body of the limit": (sized(b"0123456789"),),
    "one byte more": (sized(b"0123456789a"),),
    "in pieces": (sized(b"0123456789")[:-6], b"456", b"789"),
    "too much in pieces": (sized(b"0123456789a")[:-6], b"5678", b"9a"),
    "a large body": (sized(b"x" * 200_000),),
    "chunked": (CHUNKED, b"3\r\nabc\r\n", b"0\r\n\r\n"),
    "chunked and empty": (CHUNKED, b"0\r\n\r\n"),
    "chunked of the limit": (CHUNKED + b"a\r\n0123456789\r\n0\r\n\r\n",),
    "chunked and too much": (CHUNKED, b"8\r\n01234567\r\n", b"3\r\n89a\r\n0\r\n\r\n"),
    "a client that waits": (EXPECTING + b"content-length: 3\r\n\r\n", b"abc"),
    "somebody else's word": (sized(b"abc", HEAD + b"x-envoy-auth-partial-body: true\r\n"),),
}


async def ask(port: int, pieces: tuple[bytes, ...], seen: list[Seen]) -> tuple[int, list[Seen]]:
    """The status of the answer, and what the authority was shown; of much that has come, that it is much."""
    seen.clear()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for number, piece in enumerate(pieces):
            if number:
                await asyncio.sleep(0.01)  # that they arrive as pieces
            writer.write(piece)
        while (answer := await receive(reader)).status == 100:
            pass
    finally:
        writer.transport.abort()  # some of what is too much may never be sent
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
    return answer.status, [one._replace(size=one.size and min(one.size, LIMIT)) for one in seen]


class Application:
    """Reads the whole body, over ASGI and WSGI."""

    def __init__(self) -> None:
        self.read: list[bytes] = []

    async def asgi(self, scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message["body"], message["more_body"]
        self.read.append(body)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body"})

    def wsgi(self, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        self.read.append(Request(environ).get_data())
        start_response("200 OK", [("content-length", "0")])
        return []


@contextlib.asynccontextmanager
async def asgi_server(app: Application, gate: Gate) -> AsyncIterator[int]:
    guarded: Any = AsgiMiddleware(app.asgi, gate)
    server = uvicorn.Server(uvicorn.Config(guarded, lifespan="off", log_config=None))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        serving = asyncio.create_task(server.serve([listening]))
        yield listening.getsockname()[1]
        server.should_exit = True
        await serving


@contextlib.contextmanager
def wsgi_server(app: Application, gate: Gate) -> Iterator[int]:
    class Handler(WSGIRequestHandler):
        protocol_version = "HTTP/1.1"  # without it nothing is chunked

        def log(self, *_: Any) -> None:
            """Says nothing."""

    server = make_server(
        "127.0.0.1", 0, WsgiMiddleware(app.wsgi, gate), threaded=True, request_handler=Handler
    )
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server.port
    server.shutdown()
    thread.join()
    server.server_close()


def body_of(pieces: tuple[bytes, ...]) -> bytes:
    """The body of a request, without chunk marks."""
    head, _, body = b"".join(pieces).partition(b"\r\n\r\n")
    if b"chunked" not in head:
        return body
    return b"".join(body.split(b"\r\n")[1:-2:2])


async def test_the_same_is_shown(tmp_path: Path) -> None:
    names = [f"{kind}-{name}" for kind in ("http", "grpc") for name in KINDS]
    wrong, read = [], Application()
    async with authorities() as asked:
        texts = {name: asked.documents(**KINDS) + CUSTOM % name for name in names}
        clusters = {HTTP_CLUSTER: (asked.http, False), GRPC_CLUSTER: (asked.grpc, True)}
        filters = {name: filters_of(text) for name, text in texts.items()}
        async with secured_envoy(filters, {}, clusters, tmp_path) as envoy:
            for name, text in texts.items():
                folder = tmp_path / name
                folder.mkdir()
                (folder / "mesh.yaml").write_text(documents(text))
                mesh = meshlib.connect(str(folder), namespace="foo", labels="app=httpbin,version=v1")
                async with asgi_server(read, Gate(mesh, 8080)) as asgi:
                    with mesh, wsgi_server(read, Gate(mesh, 8080)) as wsgi:
                        for what, pieces in ASKED.items():
                            theirs = await ask(envoy.ports[name], pieces, asked.seen)
                            for server, port in (("asgi", asgi), ("wsgi", wsgi)):
                                read.read.clear()
                                ours = await ask(port, pieces, asked.seen)
                                expected = [body_of(pieces)] if theirs[0] == 200 else []
                                if ours != theirs or read.read != expected:
                                    wrong.append((name, what, server, theirs, ours, list(read.read)))
    assert wrong == []
