"""https:// URLs of every client: connections by the mesh's `tls` rules, as a sidecar makes them."""

import asyncio
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.clients import until
from support.forward_proxy import ForwardProxy, forward_proxy
from support.ports import free_port
from support.tls_front import tls_front
from support.tls_server import certificate, tls_server
from support.websocket_server import websocket_server

import meshlib
import meshlib_aiohttp
import meshlib_httpx
import meshlib_httpx2
import meshlib_requests
import meshlib_urllib3
import meshlib_websockets
import meshlib_websockets.sync
from meshlib.dataplane.tcp.link import bury

ENTRY = """
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: {name}}}
spec:
  hosts: ['{host}']
  ports: [{{number: 443, name: tls, protocol: TLS}}]
  resolution: {resolution}
  location: MESH_EXTERNAL
"""
LISTED = "  endpoints: {endpoints}\n"
RULES = """
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: safe}}
spec:
  hosts: ['*.safe.example']
  tls:
  - match: [{{sniHosts: [one.safe.example]}}]
    route: [{{destination: {{host: web.test, subset: v1}}}}]
  - match: [{{sniHosts: [lost.safe.example]}}]
    route: [{{destination: {{host: lost.test}}}}]
  - match: [{{sniHosts: [nobody.safe.example]}}]
    route: [{{destination: {{host: nobody.test}}}}]
  - match: [{{sniHosts: [twice.safe.example]}}]
    route: [{{destination: {{host: twice.test}}}}]
  - match: [{{sniHosts: [far.safe.example]}}]
    route: [{{destination: {{host: proxy.test}}}}]
  - match: [{{sniHosts: [live.safe.example]}}]
    route: [{{destination: {{host: live.test}}}}]
  - match: [{{sniHosts: ['*.safe.example']}}]
    route:
    - {{destination: {{host: web.test, subset: v1}}, weight: 50}}
    - {{destination: {{host: web.test, subset: v2}}, weight: 50}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: web}}
spec:
  host: web.test
  subsets: [{{name: v1, labels: {{version: v1}}}}, {{name: v2, labels: {{version: v2}}}}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: twice}}
spec:
  host: twice.test
  trafficPolicy: {{tls: {{mode: SIMPLE, sni: localhost, caCertificates: {roots}}}}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: proxy}}
spec:
  host: proxy.test
  trafficPolicy: {{tunnel: {{targetHost: web.test, targetPort: 443}}}}
"""
NARROW = """
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: narrow, namespace: narrow}
spec:
  egress: [{hosts: ['*/*']}]
  outboundTrafficPolicy:
    mode: ALLOW_ANY
    egressProxy: {host: web.test, subset: v2, port: {number: 443}}
"""
Fetch = Callable[..., Awaitable[str]]


class Stage:
    """Servers, a proxy, and a mesh that knows them."""

    def __init__(self, mesh: meshlib.Mesh, folder: Path, trusted: Path, proxy: ForwardProxy) -> None:
        self.mesh, self.folder, self.trusted, self.proxy = mesh, folder, trusted, proxy

    def open(self) -> int:
        """Connections that the mesh made and that are open."""
        bury()
        return sum(state.connections for state in self.mesh.ledger.clusters.values())


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("mesh")
    secrets = tmp_path_factory.mktemp("secrets")
    pair = certificate(secrets, "*.safe.example")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*pair)
    with ExitStack() as stack:
        v1, _ = stack.enter_context(tls_server(secrets, b"v1", pair))
        v2, _ = stack.enter_context(tls_server(secrets, b"v2", pair))
        live = stack.enter_context(websocket_server(ssl=context))
        proxy = stack.enter_context(forward_proxy({"web.test": v2}))
        front, _ = stack.enter_context(tls_front(v1, lambda: context))

        def entry(name: str, host: str, *ports: int) -> str:
            listed = [
                {"address": "127.0.0.1", "ports": {"tls": port}, "labels": {"version": f"v{number + 1}"}}
                for number, port in enumerate(ports)
            ]
            made = ENTRY.format(name=name, host=host, resolution="STATIC" if ports else "NONE")
            return made + (LISTED.format(endpoints=listed) if ports else "")

        documents = [
            entry("safe", "*.safe.example"),
            entry("web", "web.test", v1, v2),
            entry("lost", "lost.test", free_port()),
            entry("twice", "twice.test", front),
            entry("proxy", "proxy.test", proxy.port),
            entry("live", "live.test", live),
            RULES.format(roots=pair[0]),
            NARROW,
        ]
        (folder / "mesh.yaml").write_text("---".join(documents))
        yield Stage(stack.enter_context(meshlib.connect(folder)), folder, pair[0], proxy)


@pytest.fixture(autouse=True)
async def nothing_left(stage: Stage) -> AsyncIterator[None]:
    """Every connection ends with its client."""
    yield
    await until(lambda: stage.open() == 0)


def context_of(trusted: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=trusted)


async def by_httpx(stage: Stage, url: str, name: str | None = None) -> str:
    more: dict[str, Any] = {"extensions": {"sni_hostname": name}} if name else {}

    def fetch() -> str:
        with meshlib_httpx.Client(mesh=stage.mesh, verify=context_of(stage.trusted)) as client:
            return client.get(url, **more).text

    return await asyncio.to_thread(fetch)


async def by_async_httpx(stage: Stage, url: str, name: str | None = None) -> str:
    more: dict[str, Any] = {"extensions": {"sni_hostname": name}} if name else {}
    async with meshlib_httpx.AsyncClient(mesh=stage.mesh, verify=context_of(stage.trusted)) as client:
        first = await client.get(url, **more)
        assert (await client.get(url, **more)).text == first.text  # on the same connection
        return first.text


async def by_httpx2(stage: Stage, url: str, name: str | None = None) -> str:
    more: dict[str, Any] = {"extensions": {"sni_hostname": name}} if name else {}

    def fetch() -> str:
        with meshlib_httpx2.Client(mesh=stage.mesh, verify=context_of(stage.trusted)) as client:
            return client.get(url, **more).text

    return await asyncio.to_thread(fetch)


async def by_async_httpx2(stage: Stage, url: str, name: str | None = None) -> str:
    more: dict[str, Any] = {"extensions": {"sni_hostname": name}} if name else {}
    async with meshlib_httpx2.AsyncClient(mesh=stage.mesh, verify=context_of(stage.trusted)) as client:
        return (await client.get(url, **more)).text


async def by_requests(stage: Stage, url: str) -> str:
    def fetch() -> str:
        with meshlib_requests.Session(mesh=stage.mesh) as session:
            return session.get(url, verify=str(stage.trusted)).text

    return await asyncio.to_thread(fetch)


async def by_urllib3(stage: Stage, url: str, name: str | None = None) -> str:
    more = {"server_hostname": name} if name else {}

    def fetch() -> str:
        with meshlib_urllib3.PoolManager(mesh=stage.mesh, ca_certs=str(stage.trusted), **more) as http:
            return str(http.request("GET", url).data.decode())

    return await asyncio.to_thread(fetch)


async def by_aiohttp(stage: Stage, url: str, name: str | None = None) -> str:
    async with (
        meshlib_aiohttp.ClientSession(mesh=stage.mesh) as session,
        session.get(url, ssl=context_of(stage.trusted), server_hostname=name) as response,
    ):
        return await response.text()


CLIENTS: dict[str, Fetch] = {
    "httpx": by_httpx,
    "async httpx": by_async_httpx,
    "httpx2": by_httpx2,
    "async httpx2": by_async_httpx2,
    "requests": by_requests,
    "urllib3": by_urllib3,
    "aiohttp": by_aiohttp,
}
every = pytest.mark.parametrize("kind", CLIENTS)
named = pytest.mark.parametrize("kind", [kind for kind in CLIENTS if kind != "requests"])


@every
async def test_names_and_weights_decide(kind: str, stage: Stage) -> None:
    fetch = CLIENTS[kind]
    assert {await fetch(stage, "https://one.safe.example/") for _ in range(3)} == {"v1"}
    seen = Counter([await fetch(stage, "https://any.safe.example/") for _ in range(12)])
    assert set(seen) == {"v1", "v2"}


@named
async def test_the_name_is_that_which_is_asked_for(kind: str, stage: Stage) -> None:
    found = {await CLIENTS[kind](stage, "https://any.safe.example/", "one.safe.example") for _ in range(6)}
    assert found == {"v1"}


@every
async def test_tls_of_the_mesh_beneath(kind: str, stage: Stage) -> None:
    assert await CLIENTS[kind](stage, "https://twice.safe.example/") == "v1"


@every
async def test_a_tunnel(kind: str, stage: Stage) -> None:
    stage.proxy.asked.clear()
    assert await CLIENTS[kind](stage, "https://far.safe.example/") == "v2"
    assert stage.proxy.asked == ["CONNECT web.test:443"]


@every
async def test_an_egress_proxy(kind: str, stage: Stage) -> None:
    """Of a host that nobody knows."""
    with meshlib.connect(stage.folder, namespace="narrow") as mesh:
        narrow = Stage(mesh, stage.folder, stage.trusted, stage.proxy)
        assert await CLIENTS[kind](narrow, "https://localhost:4433/") == "v2"
        await until(lambda: narrow.open() == 0)


@every
@pytest.mark.parametrize("host", ["lost", "nobody"])
async def test_no_connection(kind: str, host: str, stage: Stage) -> None:
    with pytest.raises(meshlib.ConnectFailed) as raised:
        await CLIENTS[kind](stage, f"https://{host}.safe.example/")
    assert raised.value.flight.cluster == f"outbound|443||{host}.test"
    library = {"httpx2": "httpx2", "async httpx2": "httpx2", "async httpx": "httpx"}.get(kind, kind)
    assert any(one.__module__.partition(".")[0] == library for one in type(raised.value).__mro__)


@every
async def test_a_certificate_for_another(kind: str, stage: Stage) -> None:
    """The library looks at it, as without the mesh."""
    with pytest.raises(Exception, match="certificate") as raised:
        await CLIENTS[kind](stage, "https://a.b.safe.example/")
    assert not isinstance(raised.value, meshlib.RequestError)


async def test_a_connect_time_out_is_the_librarys(stage: Stage) -> None:
    with meshlib_httpx.Client(mesh=stage.mesh, verify=context_of(stage.trusted)) as client:
        response = client.get("https://one.safe.example/", timeout=httpx.Timeout(5, connect=4))
        assert response.text == "v1"
        assert response.extensions.get("meshlib") is None


async def test_websockets(stage: Stage) -> None:
    context = context_of(stage.trusted)
    uri = "wss://live.safe.example/live"
    async with meshlib_websockets.connect(uri, mesh=stage.mesh, ssl=context) as websocket:
        await websocket.send("hello")
        assert await websocket.recv() == "hello"

    def told() -> str:
        with meshlib_websockets.sync.connect(uri, mesh=stage.mesh, ssl=context) as websocket:
            websocket.send("hello")
            return str(websocket.recv())

    assert await asyncio.to_thread(told) == "hello"
    with pytest.raises(meshlib.ConnectFailed):
        async with meshlib_websockets.connect("wss://lost.safe.example/", mesh=stage.mesh, ssl=context):
            pass
