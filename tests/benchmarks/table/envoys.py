"""Real Envoys for the table: a lean upstream, and the two sidecars of the way with proxies.

    plain ─────────────────────────────────────────────► `plain`   answers 200, 100 bytes
    a mesh's client ──mutual TLS───────────────────────► `mtls`    the same
    plain ──► `outbound` ──mutual TLS──► `inbound` ────► `plain`

The sidecars do what Istio's do by default: route, retry, break circuits, detect outliers, count.
Each Envoy is a process with one worker thread.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.envoy import RealEnvoy, run_envoy

from meshlib.control.ca.authority import Authority
from meshlib.identity.keys import make_csr, make_key
from meshlib.identity.spiffe import SpiffeId

BODY = "x" * 100
_TYPES = "type.googleapis.com/envoy.extensions"
_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"


@dataclass(frozen=True)
class Envoys:
    """Where they listen, and their processes."""

    plain: int
    mtls: int
    outbound: int
    upstream: RealEnvoy
    sidecars: tuple[RealEnvoy, RealEnvoy]


@asynccontextmanager
async def envoys(authority: Authority, folder: Path) -> AsyncIterator[Envoys]:
    """All three, with certificates of that authority; workloads of it may call `mtls`."""
    backend, page = (_identity(authority, account) for account in ("backend", "productpage"))
    answer = {"status": 200, "body": {"inline_string": BODY}}
    here = _listener("plain", {"direct_response": answer})
    secured = _listener("mtls", {"direct_response": answer}, _downstream(backend))
    async with run_envoy(_bootstrap([here, secured]), _made(folder / "upstream")) as upstream:
        to_app = {"route": {"cluster": "app", "timeout": "0s"}}
        app = _cluster("app", upstream.listeners["plain"])
        inbound = _bootstrap([_listener("inbound", to_app, _downstream(backend))], [app])
        async with run_envoy(inbound, _made(folder / "inbound")) as second:
            retried = {
                "cluster": "peer",
                "timeout": "15s",
                "retry_policy": {"retry_on": "connect-failure,refused-stream,unavailable", "num_retries": 2},
            }
            peer = _cluster("peer", second.listeners["inbound"], _upstream(page))
            outbound = _bootstrap([_listener("outbound", {"route": retried})], [peer])
            async with run_envoy(outbound, _made(folder / "outbound")) as first:
                yield Envoys(
                    upstream.listeners["plain"],
                    upstream.listeners["mtls"],
                    first.listeners["outbound"],
                    upstream,
                    (first, second),
                )


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _bootstrap(listeners: list[Any], clusters: list[Any] | None = None) -> dict[str, Any]:
    return {"static_resources": {"listeners": listeners, "clusters": clusters or []}}


def _listener(name: str, action: dict[str, Any], socket: dict[str, Any] | None = None) -> dict[str, Any]:
    router = {"name": "router", "typed_config": {"@type": f"{_TYPES}.filters.http.router.v3.Router"}}
    manager = {
        "@type": f"{_TYPES}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": name,
        "http_filters": [router],
        "route_config": {
            "virtual_hosts": [
                {"name": "all", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, **action}]}
            ]
        },
    }
    chain: dict[str, Any] = {
        "filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]
    }
    if socket is not None:
        chain["transport_socket"] = socket
    address = {"socket_address": {"address": "127.0.0.1", "port_value": 0}}
    return {"name": name, "address": address, "filter_chains": [chain]}


def _cluster(name: str, port: int, socket: dict[str, Any] | None = None) -> dict[str, Any]:
    address = {"socket_address": {"address": "127.0.0.1", "port_value": port}}
    no_limit = {"priority": "DEFAULT", **dict.fromkeys(("max_connections", "max_requests"), 2**32 - 1)}
    made: dict[str, Any] = {
        "name": name,
        "connect_timeout": "5s",
        "circuit_breakers": {"thresholds": [no_limit]},
        "outlier_detection": {"consecutive_5xx": 5},
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
        },
        "typed_extension_protocol_options": {
            _OPTIONS: {
                "@type": f"{_TYPES}.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {"http_protocol_options": {}},
            }
        },
    }
    if socket is not None:
        made["transport_socket"] = socket
    return made


def _identity(authority: Authority, account: str) -> dict[str, Any]:
    who = SpiffeId("cluster.local", "default", account)
    key = make_key()
    *chain, _ = authority.sign(make_csr(key, who).decode(), who, 0, time.time())
    return {
        "tls_certificates": [
            {
                "certificate_chain": {"inline_string": "".join(chain)},
                "private_key": {"inline_string": key.decode()},
            }
        ],
        "validation_context": {"trusted_ca": {"inline_string": authority.roots_pem}},
    }


def _downstream(identity: dict[str, Any]) -> dict[str, Any]:
    kind = f"{_TYPES}.transport_sockets.tls.v3.DownstreamTlsContext"
    config = {"@type": kind, "require_client_certificate": True, "common_tls_context": identity}
    return {"name": "tls", "typed_config": config}


def _upstream(identity: dict[str, Any]) -> dict[str, Any]:
    kind = f"{_TYPES}.transport_sockets.tls.v3.UpstreamTlsContext"
    return {"name": "tls", "typed_config": {"@type": kind, "common_tls_context": identity, "sni": "backend"}}


async def warm(port: int) -> None:
    """Fails unless somebody answers there."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    head = await reader.read()
    writer.close()
    assert head.startswith(b"HTTP/1.1 200 "), head
