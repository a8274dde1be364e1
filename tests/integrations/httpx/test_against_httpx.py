"""What an application gets through the mesh is what it gets from bare httpx: one server, both clients.

Compared: status, reason, version, headers, body, history, what the server was sent, and the errors.
"""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import h11
import httpx
import pytest
from support.fake_mesh import fake_mesh
from support.raw_server import RawServer, raw_server

import meshlib

FIVE_MB = b"0123456789" * 524_288
LARGE = {"timeout": 20}


def chunks() -> Iterator[bytes]:
    for number in range(100):
        yield b"chunk %d;" % number


async def achunks() -> Any:
    for chunk in chunks():
        yield chunk


def broken() -> Iterator[bytes]:
    yield b"first"
    raise FileNotFoundError("no more")


async def abroken() -> Any:
    yield b"first"
    raise FileNotFoundError("no more")


Case = tuple[str, str, dict[str, Any]]
CASES: dict[str, Case] = {
    "get": ("GET", "/echo?a=1&b=%20x", {}),
    "head": ("HEAD", "/echo", {}),
    "options": ("OPTIONS", "/echo", {}),
    "204": ("GET", "/status/204", {}),
    "304": ("GET", "/status/304", {}),
    "404": ("GET", "/status/404", {}),
    "503": ("GET", "/status/503", {}),
    "content": ("POST", "/echo", {"content": b"hello"}),
    "empty content": ("POST", "/echo", {"content": b""}),
    "json": ("PUT", "/echo", {"json": {"a": [1, 2]}}),
    "form": ("POST", "/echo", {"data": {"a": "1", "b": ["2", "3"]}}),
    "multipart": (
        "POST",
        "/echo",
        {
            "files": {"f": ("a.txt", b"text" * 100, "text/plain")},
            "data": {"x": "1"},
            "headers": {"content-type": "multipart/form-data; boundary=bound"},
        },
    ),
    "stream": ("POST", "/echo", {"content": chunks}),
    "stream with a length": ("POST", "/echo", {"content": chunks, "headers": {"content-length": "890"}}),
    "5 MB up": ("POST", "/echo", {"content": FIVE_MB, **LARGE}),
    "5 MB down": ("GET", "/big/5242880", LARGE),
    "chunked down": ("GET", "/chunks/200", {}),
    "until close": ("GET", "/untilclose", {}),
    "http 1.0": ("GET", "/http10", {}),
    "1xx": ("POST", "/informed", {"content": b"x"}),
    "server says close": ("GET", "/close", {}),
    "client says close": ("GET", "/echo", {"headers": {"connection": "close"}}),
    "te and connection": ("GET", "/echo", {"headers": {"te": "trailers", "connection": "te"}}),
    "refused early": ("POST", "/refuse", {"content": b"x" * 100}),
    "header case": ("GET", "/echo", {"headers": [("X-MiXed", "A"), ("x-two", "1"), ("x-two", "2")]}),
    "own host": ("GET", "/echo", {"headers": {"Host": "elsewhere"}}),
    "301": ("POST", "/redirect/301", {"content": b"x", "follow_redirects": True}),
    "307": ("POST", "/redirect/307", {"content": b"x", "follow_redirects": True}),
    "not followed": ("GET", "/redirect/302", {}),
    "307 of a stream": ("POST", "/redirect/307", {"content": chunks, "follow_redirects": True}),
    "basic": ("GET", "/basic", {"auth": ("u", "p")}),
    "nobody": ("GET", "/basic", {}),
    "digest": ("GET", "/digest", {"auth": lambda: httpx.DigestAuth("u", "p")}),
    "cookies": ("GET", "/cookie", {}),
    "hung up": ("GET", "/hangup", {}),
    "reset": ("GET", "/reset", {}),
    "half a head": ("GET", "/halfhead", {}),
    "half a body": ("GET", "/halfbody", {}),
    "nonsense": ("GET", "/nonsense", {}),
    "large head": ("GET", "/largehead", {}),
    "own read limit": ("GET", "/slow/2", {"timeout": httpx.Timeout(None, read=0.1)}),
    "own read limit in the body": ("GET", "/slowbody/2", {"timeout": httpx.Timeout(None, read=0.1)}),
    "own write limit": ("POST", "/deaf", {"content": FIVE_MB * 2, "timeout": httpx.Timeout(None, write=0.2)}),
    "body too long": ("POST", "/echo", {"content": chunks, "headers": {"content-length": "3"}}),
    "body too short": ("POST", "/echo", {"content": chunks, "headers": {"content-length": "9999"}}),
    "broken body": ("POST", "/echo", {"content": broken}),
    "bad header": ("GET", "/echo", {"headers": {"x": "a\nb"}}),
}


@pytest.fixture(scope="module")
def server() -> Iterator[RawServer]:
    with raw_server() as made:
        yield made


def described(response: httpx.Response) -> dict[str, Any]:
    return {
        "status": response.status_code,
        "reason": response.reason_phrase,
        "version": response.http_version,
        "headers": response.headers.raw,
        "body": response.content,
        "url": str(response.url),
        "history": [(r.status_code, r.content, r.headers.raw) for r in response.history],
        "cookies": dict(response.cookies),
        "sent": [h for h in response.request.headers.raw if h[0].lower() != b"authorization"],
    }


def arguments(case: Case, streams: dict[Callable[[], Any], Callable[[], Any]]) -> dict[str, Any]:
    made = dict(case[2])
    for name in ("content", "auth"):
        if callable(made.get(name)):
            made[name] = streams.get(made[name], made[name])()
    return made


def names(server: RawServer) -> tuple[str, ...]:
    return tuple(f"{host}:{server.port}" for host in ("localhost", "127.0.0.1", "elsewhere"))


def compare(bare: Any, mesh: Any) -> None:
    if isinstance(bare, h11.LocalProtocolError):
        # httpcore lets h11's own error through if it is about a body.
        assert type(mesh) is httpx.LocalProtocolError
    elif isinstance(bare, BaseException):
        assert isinstance(mesh, type(bare)), (bare, mesh)
        if isinstance(bare, httpx.RequestError):
            assert (mesh.request.method, mesh.request.url) == (bare.request.method, bare.request.url)
    else:
        assert mesh == bare


def once(client: httpx.Client, url: str, case: Case) -> Any:
    try:
        return described(client.request(case[0], url + case[1], **arguments(case, {})))
    except Exception as error:
        return error


@pytest.mark.parametrize("name", CASES)
def test_client(name: str, server: RawServer) -> None:
    case, url = CASES[name], f"http://127.0.0.1:{server.port}"
    mesh = fake_mesh([server.port], names(server))
    with httpx.Client(trust_env=False) as bare, meshlib.Client(mesh=mesh) as meshed:  # type: ignore[arg-type]
        for _ in range(2):
            compare(once(bare, url, case), once(meshed, url, case))
        pool = meshed._transport._sender._connections._pools.get("c")  # type: ignore[attr-defined]
        assert pool is None or (pool.opened == pool.idle <= 1 and not pool.waiting)
    assert mesh.in_flight() == 0
    assert pool is None or pool.opened == 0


@pytest.mark.parametrize("name", CASES)
async def test_async_client(name: str, server: RawServer) -> None:
    case, url = CASES[name], f"http://127.0.0.1:{server.port}"
    mesh = fake_mesh([server.port], names(server))

    async def once(client: httpx.AsyncClient) -> Any:
        try:
            made = arguments(case, {chunks: achunks, broken: abroken})
            return described(await client.request(case[0], url + case[1], **made))
        except Exception as error:
            return error

    async with (
        httpx.AsyncClient(trust_env=False) as bare,
        meshlib.AsyncClient(mesh=mesh) as meshed,  # type: ignore[arg-type]
    ):
        for _ in range(2):
            compare(await once(bare), await once(meshed))
        pool = meshed._transport._sender._connections._pools.get("c")  # type: ignore[attr-defined]
        assert pool is None or (pool.opened == pool.idle <= 1 and not pool.waiting)
    assert mesh.in_flight() == 0
    assert len(asyncio.all_tasks()) == 1
