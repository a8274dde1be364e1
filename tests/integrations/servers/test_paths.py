"""No spelling of a path gets by a policy: what an application is given is what was judged."""

import asyncio
import json
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

import pytest
import uvicorn
import werkzeug.serving
from support.policed import POLICY, gate

from meshlib.dataplane.gate import Gate
from meshlib_asgi import MeshMiddleware
from meshlib_uvicorn.server import Server
from meshlib_wsgi import MeshMiddleware as WsgiMiddleware

SERVICE = POLICY.split("---")[0]
RULES = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: paths}}
spec:
  selector: {{matchLabels: {{app: reviews}}}}
  action: {action}
  rules: [{{to: [{{operation: {operation}}}]}}]
"""
Ask = Callable[[bytes], Awaitable[tuple[int, str]]]


def policy(action: str, operation: dict[str, list[str]]) -> str:
    return SERVICE + "---" + RULES.format(action=action, operation=json.dumps(operation))


DENIED = {"paths": ["/things:delete", "/a b", "/caf\u00e9", "/admin/*", "/semi;colon", "*.secret", "/q?x"]}
ALLOWED = {"paths": ["/public*", "/users/{*}/page", "/a%20b", "/low%3aer"], "notPaths": ["/public:no"]}
REFUSED, TAKEN, BAD = 403, 200, 400


async def served(app: Any, guard: Gate, raw: list[bytes], http: str) -> list[tuple[int, str]]:
    """The answers of uvicorn at the mesh's port."""
    listening = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(MeshMiddleware(app, guard), http=http, log_level="error", lifespan="off")
    server = Server(config, guard)
    serving = await server.begin([listening])
    found = [await ask(listening.getsockname()[1], path) for path in raw]
    server.should_exit = True
    await serving
    return found


async def ask(port: int, path: bytes) -> tuple[int, str]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET " + path + b" HTTP/1.1\r\nhost: reviews\r\nconnection: close\r\n\r\n")
    async with asyncio.timeout(10):
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    return int(head.split(b" ")[1]), body.decode("utf-8", "replace")


async def asgi(scope: Any, _: Any, send: Any) -> None:
    body = scope["path"].encode()
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": 200, "headers": [length]})
    await send({"type": "http.response.body", "body": body})


def wsgi(environ: dict[str, Any], start: Any) -> list[bytes]:
    body = environ["PATH_INFO"].encode("latin-1")
    start("200 OK", [("Content-Length", str(len(body)))])
    return [body]


class _Quiet(WSGIRequestHandler):
    def log_message(self, *_: Any) -> None:
        """Nothing."""


class _Silent(werkzeug.serving.WSGIRequestHandler):
    def log(self, *_: Any) -> None:
        """Nothing."""


@contextmanager
def wsgi_server(kind: str, app: Any) -> Iterator[int]:
    """wsgiref keeps nothing of what was sent but the decoded path; werkzeug keeps it all."""
    if kind == "wsgiref":
        server: Any = make_server("127.0.0.1", 0, app, handler_class=_Quiet)
    else:
        server = werkzeug.serving.make_server("127.0.0.1", 0, app, request_handler=_Silent)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


async def answers(kind: str, folder: Path, documents: str, raw: list[bytes]) -> list[tuple[int, str]]:
    guard = gate(folder, documents)
    async with guard.mesh:
        await guard.aprepare()
        if kind in ("httptools", "h11"):
            return await served(asgi, guard, raw, kind)
        with wsgi_server(kind, WsgiMiddleware(wsgi, guard, port=9080)) as port:
            return [await ask(port, path) for path in raw]


SERVERS = ["httptools", "h11", "wsgiref", "werkzeug"]
DENY_CASES: dict[bytes, tuple[int, str]] = {
    b"/things": (TAKEN, "/things"),
    b"/things:delete": (REFUSED, ""),
    b"/things%3Adelete": (REFUSED, ""),
    b"/things%3adelete": (REFUSED, ""),
    b"/%74hings%3Adelete": (REFUSED, ""),
    b"/things%253Adelete": (TAKEN, "/things%3Adelete"),
    b"/x/..%3b/things:delete": (TAKEN, "/x/..;/things:delete"),
    b"/x/../things%3Adelete": (REFUSED, ""),
    b"/a%20b": (REFUSED, ""),
    b"/a%09b": (TAKEN, "/a\tb"),
    b"/caf%C3%A9": (REFUSED, ""),
    b"/caf%c3%a9": (REFUSED, ""),
    b"/caf%E9": (TAKEN, ""),
    b"/semi%3Bcolon": (REFUSED, ""),
    b"/semi;colon": (REFUSED, ""),
    b"/q%3Fx": (REFUSED, ""),
    b"/q?x": (TAKEN, "/q"),
    b"/file%2Esecret": (REFUSED, ""),
    b"/file%2esecret?x=1": (REFUSED, ""),
    b"/admin/x": (REFUSED, ""),
    b"/admin%00/x": (BAD, ""),
    b"/admin/%2e%2e/admin/x": (REFUSED, ""),
}
SLASHES: dict[bytes, str] = {
    b"/admin%2Fx": "/admin%2Fx",
    b"/admin%5Cx": "/admin%5Cx",
    b"/admin%252Fx": "/admin%2Fx",
}
"""Slashes that are escaped are none, to nobody."""


@pytest.mark.parametrize("kind", SERVERS)
async def test_a_denied_path_in_every_spelling(kind: str, tmp_path: Path) -> None:
    found = await answers(kind, tmp_path, policy("DENY", DENIED), list(DENY_CASES))
    wanted = dict(DENY_CASES)
    if kind == "wsgiref":  # it does not keep what was sent, so this is `..;`, which counts as `..`
        wanted[b"/x/..%3b/things:delete"] = (REFUSED, "")
    differing = [
        (path, status, given, answered, body)
        for (path, (status, given)), (answered, body) in zip(wanted.items(), found, strict=True)
        if answered != status or (given and body != given)
    ]
    assert not differing, "\n".join(map(str, differing))


@pytest.mark.parametrize("kind", ["httptools", "h11", "werkzeug"])
async def test_an_escaped_slash_is_no_slash_to_the_application_either(kind: str, tmp_path: Path) -> None:
    found = await answers(kind, tmp_path, policy("DENY", DENIED), list(SLASHES))
    assert found == [(TAKEN, given) for given in SLASHES.values()]


async def test_a_server_that_keeps_the_decoded_path_only_is_judged_by_that(tmp_path: Path) -> None:
    found = await answers("wsgiref", tmp_path, policy("DENY", DENIED), [b"/admin%2Fx", b"/admin%252Fx"])
    assert [status for status, _ in found] == [REFUSED, TAKEN]


ALLOW_CASES: dict[bytes, tuple[int, str]] = {
    b"/public": (TAKEN, "/public"),
    b"/public/%C3%A9": (TAKEN, "/public/\u00e9"),
    b"/public/a%20b": (TAKEN, "/public/a b"),
    b"/public:no": (REFUSED, ""),
    b"/public%3Ano": (REFUSED, ""),
    b"/public%3ano": (REFUSED, ""),
    b"/users/jos%C3%A9/page": (TAKEN, "/users/jos\u00e9/page"),
    b"/users/a%2Fb/page": (TAKEN, "/users/a%2Fb/page"),
    b"/users/a/b/page": (REFUSED, ""),
    b"/a%20b": (TAKEN, "/a b"),
    b"/low%3aer": (TAKEN, "/low:er"),
    b"/low:er": (REFUSED, ""),
    b"/%70ublic": (TAKEN, "/public"),
    b"/public/../admin": (REFUSED, ""),
    b"/public/%2e%2e/admin": (REFUSED, ""),
    b"/else": (REFUSED, ""),
}


@pytest.mark.parametrize("kind", ["httptools", "h11", "werkzeug"])
async def test_an_allowed_path_in_every_spelling(kind: str, tmp_path: Path) -> None:
    found = await answers(kind, tmp_path, policy("ALLOW", ALLOWED), list(ALLOW_CASES))
    differing = [
        (path, wanted, answered)
        for (path, wanted), answered in zip(ALLOW_CASES.items(), found, strict=True)
        if answered[0] != wanted[0] or (wanted[1] and answered[1] != wanted[1])
    ]
    assert not differing, "\n".join(map(str, differing))
