"""An endpoint that ends its TLS connection without a farewell (close_notify): what Envoy takes for whole, is.

RFC 9112, 9.8, would call a body that ends with the connection incomplete then. Envoy does not
(SslSocket::doRead: an end without close_notify is the end of the stream), and many servers leave like that.
"""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.envoy import RealEnvoy, run_envoy
from support.fake_mesh import fake_mesh
from support.small_ca import SmallCa
from support.threaded import Threaded
from support.tls_server import certificate

import meshlib
from meshlib.core.mtls import ClientTls, Trust
from meshlib.dataplane.tls import Contexts

OK = b"HTTP/1.1 200 OK\r\n"
SAID = {
    "to-the-end": OK + b"\r\nhalf",
    "counted": OK + b"Connection: close\r\nContent-Length: 4\r\n\r\nhalf",
    "counted-cut": OK + b"Content-Length: 8\r\n\r\nhalf",
    "chunked-cut": OK + b"Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
    "head-cut": OK + b"Content-",
}
PATHS = [f"/{said}/{end}" for said in SAID for end in ("farewell", "none")]
WHOLE = {"/to-the-end/farewell", "/to-the-end/none", "/counted/farewell", "/counted/none"}


class Leaving(Threaded):
    """Says what the path names, and leaves, with a farewell or without."""

    def __init__(self, context: ssl.SSLContext) -> None:
        super().__init__()
        self.context = context

    def serve(self, accepted: socket.socket, number: int) -> None:
        with (
            contextlib.suppress(OSError),
            accepted,
            self.context.wrap_socket(accepted, server_side=True) as made,
        ):
            self.leave(made)

    def leave(self, made: ssl.SSLSocket) -> None:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += made.recv(1000) or b"\r\n\r\n"
        if not head.strip():
            return
        _, said, end = head.split()[1].decode().split("/")
        made.sendall(SAID[said])
        if end == "farewell":
            made.settimeout(0.2)
            with contextlib.suppress(OSError):
                made.unwrap()


@asynccontextmanager
async def leaving(folder: Path) -> AsyncIterator[tuple[int, Path]]:
    context, (trusted, key) = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), certificate(folder)
    context.load_cert_chain(trusted, key)
    server = Leaving(context)
    running = asyncio.create_task(asyncio.to_thread(server.run))
    try:
        yield server.port, trusted
    finally:
        server.stop()
        await running


def bootstrap(port: int) -> dict[str, Any]:
    api = "type.googleapis.com/envoy.extensions"
    manager = {
        "@type": f"{api}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "a",
        "http_filters": [{"name": "r", "typed_config": {"@type": f"{api}.filters.http.router.v3.Router"}}],
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "v",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "c"}}],
                }
            ]
        },
    }
    at: dict[str, Any] = {"socket_address": {"address": "127.0.0.1", "port_value": port}}
    tls = {"@type": f"{api}.transport_sockets.tls.v3.UpstreamTlsContext"}
    return {
        "static_resources": {
            "listeners": [
                {
                    "name": "l",
                    "address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}},
                    "filter_chains": [{"filters": [{"name": "h", "typed_config": manager}]}],
                }
            ],
            "clusters": [
                {
                    "name": "c",
                    "type": "STATIC",
                    "transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": tls},
                    "load_assignment": {
                        "cluster_name": "c",
                        "endpoints": [{"lb_endpoints": [{"endpoint": {"address": at}}]}],
                    },
                }
            ],
        }
    }


async def asked(client: httpx.AsyncClient | httpx.Client, path: str) -> object:
    """The body, or that there is no whole one."""
    try:
        if isinstance(client, httpx.AsyncClient):
            answer = await client.get(path)
        else:
            answer = await asyncio.to_thread(client.get, path)
    except httpx.TransportError:
        return None
    return answer.content if answer.status_code == 200 else None


async def through(envoy: RealEnvoy) -> dict[str, object]:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{envoy.listeners['l']}") as client:
        return {path: await asked(client, path) for path in PATHS}


@pytest.mark.timeout(120)
async def test_what_is_whole_for_envoy_is_whole(tmp_path: Path) -> None:
    expected = {path: b"half" if path in WHOLE else None for path in PATHS}
    async with leaving(tmp_path) as (port, trusted), run_envoy(bootstrap(port), tmp_path) as envoy:
        assert await through(envoy) == expected
        tls = ClientTls(Trust.FILE, str(trusted), mesh_identity=False, sni="localhost")
        mesh = fake_mesh([port], tls=tls)
        ca = SmallCa()
        mesh.contexts = Contexts(lambda: ca.held("spiffe://cluster.local/ns/default/sa/page"))
        async with meshlib.AsyncClient(mesh=mesh, base_url="http://reviews:9080") as client:  # type: ignore[arg-type]
            assert {path: await asked(client, path) for path in PATHS} == expected
        with meshlib.Client(mesh=mesh, base_url="http://reviews:9080") as threads:  # type: ignore[arg-type]
            assert {path: await asked(threads, path) for path in PATHS} == expected
