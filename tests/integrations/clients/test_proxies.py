"""HTTP proxies, of every client: they take what goes outside of the mesh, and nothing of the mesh's own."""

import asyncio
import logging
import ssl
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import httpx2
import pytest
import requests
import urllib3
from support.forward_proxy import ForwardProxy, forward_proxy
from support.named_server import named_server
from support.tls_server import tls_server
from support.websocket_server import websocket_server

import meshlib
import meshlib_aiohttp
import meshlib_httpx
import meshlib_httpx2
import meshlib_requests
import meshlib_urllib3
import meshlib_websockets
import meshlib_websockets.sync
from meshlib.dataplane import proxies

MESH = """
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: {name}}}
spec:
  hosts: [{host}]
  ports: [{{number: {port}, name: http, protocol: HTTP}}]
  resolution: STATIC
  endpoints: [{{address: 127.0.0.1, ports: {{http: {at}}}}}]
"""
NARROW = """
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: narrow, namespace: narrow}
spec:
  egress: [{hosts: ['*/*']}]
  outboundTrafficPolicy: {mode: REGISTRY_ONLY}
"""
NAMES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")

Fetch = Callable[..., Awaitable[str]]


@pytest.fixture(scope="module")
def ports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    with ExitStack() as stack:
        port, trusted = stack.enter_context(tls_server(tmp_path_factory.mktemp("tls")))
        yield {
            "inside": stack.enter_context(named_server("inside")),
            "outside": stack.enter_context(named_server("outside")),
            "websocket": stack.enter_context(websocket_server()),
            "tls": port,
            "trusted": trusted,
        }


@pytest.fixture(scope="module")
def folder(ports: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("mesh")
    documents = [
        MESH.format(name="inside", host="inside.example", port=80, at=ports["inside"]),
        MESH.format(name="live", host="live.example", port=80, at=ports["websocket"]),
        NARROW,
    ]
    (made / "mesh.yaml").write_text("---".join(documents))
    return made


@pytest.fixture(scope="module")
def mesh(folder: Path) -> Iterator[meshlib.Mesh]:
    with meshlib.connect(folder) as made:
        yield made


@pytest.fixture
def proxy(ports: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Iterator[ForwardProxy]:
    proxies._told.clear()
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    hosts = {"outside.example": ports["outside"], "inside.example": 1, "live.test": ports["websocket"]}
    with forward_proxy(hosts) as made:
        yield made


def context_of(trusted: Path | None) -> Any:
    return True if trusted is None else ssl.create_default_context(cafile=trusted)


async def by_httpx(mesh: meshlib.Mesh, url: str, proxy: str | None, trusted: Path | None, env: bool) -> str:
    def fetch() -> str:
        with meshlib_httpx.Client(
            mesh=mesh, proxy=proxy, verify=context_of(trusted), trust_env=env
        ) as client:
            return client.get(url).text

    return await asyncio.to_thread(fetch)


async def by_async_httpx(
    mesh: meshlib.Mesh, url: str, proxy: str | None, trusted: Path | None, env: bool
) -> str:
    verify = context_of(trusted)
    async with meshlib_httpx.AsyncClient(mesh=mesh, proxy=proxy, verify=verify, trust_env=env) as client:
        return (await client.get(url)).text


async def by_httpx2(mesh: meshlib.Mesh, url: str, proxy: str | None, trusted: Path | None, env: bool) -> str:
    verify = context_of(trusted)
    async with meshlib_httpx2.AsyncClient(mesh=mesh, proxy=proxy, verify=verify, trust_env=env) as client:
        return (await client.get(url)).text


async def by_requests(
    mesh: meshlib.Mesh, url: str, proxy: str | None, trusted: Path | None, env: bool
) -> str:
    def fetch() -> str:
        with meshlib_requests.Session(mesh=mesh) as session:
            session.trust_env = env
            if proxy is not None:
                session.proxies = {"http": proxy, "https": proxy}
            return session.get(url, verify=str(trusted) if trusted else True).text

    return await asyncio.to_thread(fetch)


async def by_urllib3(mesh: meshlib.Mesh, url: str, proxy: str | None, trusted: Path | None, env: bool) -> str:
    def fetch() -> str:
        more = {"ca_certs": str(trusted)} if trusted else {}
        made: Any
        if proxy is None:
            made = meshlib_urllib3.PoolManager(mesh=mesh, **more)
        else:
            made = meshlib_urllib3.ProxyManager(proxy, mesh=mesh, **more)
        with made as http:
            return str(http.request("GET", url).data.decode())

    return await asyncio.to_thread(fetch)


async def by_aiohttp(mesh: meshlib.Mesh, url: str, proxy: str | None, trusted: Path | None, env: bool) -> str:
    async with (
        meshlib_aiohttp.ClientSession(mesh=mesh, trust_env=env) as session,
        session.get(url, proxy=proxy, ssl=context_of(trusted)) as response,
    ):
        return await response.text()


CLIENTS: dict[str, Fetch] = {
    "httpx": by_httpx,
    "async httpx": by_async_httpx,
    "httpx2": by_httpx2,
    "requests": by_requests,
    "urllib3": by_urllib3,
    "aiohttp": by_aiohttp,
}
ERRORS = (
    *(httpx.ConnectError, httpx2.ConnectError, requests.ConnectionError, aiohttp.ClientConnectorError),
    urllib3.exceptions.HTTPError,
)
every = pytest.mark.parametrize("kind", CLIENTS)
with_environment = pytest.mark.parametrize("kind", [kind for kind in CLIENTS if kind != "urllib3"])


@every
async def test_a_clients_own_proxy_takes_what_goes_outside(
    kind: str, mesh: meshlib.Mesh, ports: dict[str, Any], proxy: ForwardProxy, caplog: Any
) -> None:
    fetch = CLIENTS[kind]
    caplog.set_level(logging.WARNING, "meshlib")
    url = "http://outside.example/x"
    assert await fetch(mesh, url, proxy.url, None, True) == "outside GET /x"
    assert proxy.asked == [f"GET {url}"]
    secret = f"https://localhost:{ports['tls']}/"
    assert await fetch(mesh, secret, proxy.url, ports["trusted"], True) == "secret"
    assert proxy.asked[1:] == [f"CONNECT localhost:{ports['tls']}"]
    assert caplog.messages == []
    for _ in range(2):
        assert await fetch(mesh, "http://inside.example/x", proxy.url, None, True) == "inside GET /x"
    assert len(proxy.asked) == 2
    assert caplog.messages == [
        "inside.example:80 is a host of the mesh: its requests do not go through the client's proxy"
    ]


@with_environment
async def test_so_does_that_of_the_environment(
    kind: str,
    mesh: meshlib.Mesh,
    ports: dict[str, Any],
    proxy: ForwardProxy,
    monkeypatch: pytest.MonkeyPatch,
    caplog: Any,
) -> None:
    fetch = CLIENTS[kind]
    for name in ("HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, proxy.url)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    url, secret = "http://outside.example/x", f"https://localhost:{ports['tls']}/"
    assert await fetch(mesh, url, None, None, True) == "outside GET /x"
    assert await fetch(mesh, secret, None, ports["trusted"], True) == "secret"
    assert proxy.asked == [f"GET {url}", f"CONNECT localhost:{ports['tls']}"]
    assert await fetch(mesh, "http://inside.example/x", None, None, True) == "inside GET /x"
    near = f"http://127.0.0.1:{ports['outside']}/x"
    assert await fetch(mesh, near, None, None, True) == "outside GET /x"
    assert await fetch(mesh, secret, None, ports["trusted"], False) == "secret"
    assert len(proxy.asked) == 2
    assert caplog.messages == []


@every
async def test_a_host_that_is_kept_in_is_not_asked_by_a_proxy_either(
    kind: str, folder: Path, ports: dict[str, Any], proxy: ForwardProxy
) -> None:
    fetch = CLIENTS[kind]
    with meshlib.connect(folder, namespace="narrow") as narrow:
        assert await fetch(narrow, "http://outside.example/x", proxy.url, None, True) == ""
        with pytest.raises(ERRORS, match="REGISTRY_ONLY"):
            await fetch(narrow, f"https://localhost:{ports['tls']}/", proxy.url, ports["trusted"], True)
    assert proxy.asked == []


@every
async def test_a_proxy_that_is_not_there(kind: str, mesh: meshlib.Mesh) -> None:
    with pytest.raises(ERRORS):
        await CLIENTS[kind](mesh, "http://outside.example/", "http://127.0.0.1:1", None, True)


async def test_websockets(mesh: meshlib.Mesh, proxy: ForwardProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    async def told(uri: str, **more: Any) -> str:
        async with meshlib_websockets.connect(uri, mesh=mesh, **more) as websocket:
            await websocket.send("hello")
            return str(await websocket.recv())

    def told_sync(uri: str, **more: Any) -> str:
        with meshlib_websockets.sync.connect(uri, mesh=mesh, **more) as websocket:
            websocket.send("hello")
            return str(websocket.recv())

    for ask in (told, lambda *a, **k: asyncio.to_thread(told_sync, *a, **k)):
        proxy.asked.clear()
        assert await ask("ws://live.test/live", proxy=proxy.url) == "hello"
        assert await ask("ws://live.example/live", proxy=proxy.url) == "hello"
        assert proxy.asked == ["CONNECT live.test:80"]
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        assert await ask("ws://live.test/live") == "hello"
        assert await ask("ws://live.example/live") == "hello"
        assert len(proxy.asked) == 2
        monkeypatch.delenv("HTTP_PROXY")
