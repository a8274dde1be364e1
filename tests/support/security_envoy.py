"""A real Envoy with the filters that policies are compiled to: one listener for each set of documents."""

import json
import re
import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from support.envoy import run_envoy
from support.small_ca import SmallCa

from meshlib.control.compile.security import Security, connection_filters, security_filters
from meshlib.control.graph import Graph, build_graph
from meshlib.control.graph.policies import KeySource
from meshlib.control.istio.problem import Severity
from meshlib.control.sources.text import documents_in
from meshlib.xds import pb

NAMESPACE, LABELS = "foo", {"app": "httpbin", "version": "v1"}
_MANAGER = "envoy.filters.network.http_connection_manager"
_EXTENSIONS = "type.googleapis.com/envoy.extensions"
ECHO = """
function envoy_on_request(handle)
  local lines = {}
  for name, value in pairs(handle:headers()) do lines[#lines + 1] = name .. "\\t" .. value end
  handle:respond({[":status"] = "200", ["x-app"] = "own"}, table.concat(lines, "\\n"))
end
"""
"""Answers with the request, a header a line."""
POLICY = re.compile(r"^(\w+)\((.*?)\):$", re.MULTILINE)


def documents(text: str) -> str:
    """`allow(name):`, `deny(name):`, … with a spec below, as AuthorizationPolicies; other text as it is."""

    def whole(found: re.Match[str]) -> str:
        action, name = found.groups()
        return (
            "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n"
            f"metadata: {{name: {name}, namespace: {NAMESPACE}}}\nspec:\n  action: {action.upper()}"
        )

    return POLICY.sub(whole, text)


def graph_of(text: str, keys: Mapping[KeySource, str] | None = None) -> Graph:
    """The graph of such documents; AssertionError: they are not valid."""
    read = documents_in(documents(text), "in.yaml")
    assert [str(p) for p in read.problems if p.severity is Severity.ERROR] == []
    return build_graph(read.documents).with_keys(keys or {})


def filters_of(text: str, keys: Mapping[KeySource, str] | None = None) -> Security:
    """The HTTP filters of the workload that all is tried on."""
    return security_filters(graph_of(text, keys), NAMESPACE, LABELS)


def tcp_filters_of(text: str) -> Security:
    """The network filters of that workload."""
    return connection_filters(graph_of(text), NAMESPACE, LABELS)


@dataclass
class Tried:
    """A running Envoy and who can talk to it."""

    ca: SmallCa
    ports: Mapping[str, int]
    folder: Path
    contexts: dict[str, ssl.SSLContext] = field(default_factory=dict)

    async def ask(
        self,
        listener: str,
        method: str = "GET",
        path: str = "/",
        headers: Mapping[str, str] | None = None,
        who: str = "",
        content: bytes = b"",
    ) -> httpx.Response:
        """One request; `who` is the SPIFFE identity that is shown, empty: plain text."""
        verify = self._context(who) if who else False
        url = f"{'https' if who else 'http'}://127.0.0.1:{self.ports[listener]}{path}"
        async with httpx.AsyncClient(verify=verify, trust_env=False) as client:
            return await client.request(method, url, headers=headers, content=content)

    def _context(self, who: str) -> ssl.SSLContext:
        if who not in self.contexts:
            issued = self.ca.issue(who)
            place = self.folder / f"client{len(self.contexts)}.pem"
            place.write_bytes(issued.pem.encode() + issued.key_pem)
            made = ssl.create_default_context(cadata=self.ca.pem)
            made.load_cert_chain(place)
            self.contexts[who] = made
        return self.contexts[who]


@asynccontextmanager
async def secured_envoy(
    http: Mapping[str, Security],
    tcp: Mapping[str, Security],
    clusters: Mapping[str, tuple[int, bool]],
    folder: Path,
    *,
    echo: bool = False,
) -> AsyncIterator[Tried]:
    """An Envoy with a listener of that name for each of `http` and `tcp`.

    HTTP answers 200 and tells of some of the request's headers, or with `echo` of all of them in the body;
    TCP gives back what it gets. `clusters` are ports on loopback, and whether gRPC is spoken there.
    """
    ca = SmallCa()
    server = ca.issue("spiffe://cluster.local/ns/foo/sa/httpbin", ips=["127.0.0.1"], dns=["httpbin.foo.svc"])
    listeners = [_http(name, found, ca, server, echo=echo) for name, found in http.items()]
    listeners += [_tcp(name, found) for name, found in tcp.items()]
    made = [_cluster(name, port, grpc) for name, (port, grpc) in clusters.items()]
    bootstrap = {"static_resources": {"listeners": listeners, "clusters": made}}
    async with run_envoy(bootstrap, folder) as envoy:
        yield Tried(ca, envoy.listeners, folder)


def _listed(filters: Sequence[tuple[str, Any]]) -> list[dict[str, Any]]:
    packed = [{"name": name, "typed_config": pb.to_dict(pb.pack(config))} for name, config in filters]
    found: list[dict[str, Any]] = json.loads(json.dumps(packed))
    return found


def _address() -> dict[str, Any]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": 0}}


def _http(name: str, found: Security, ca: SmallCa, server: Any, *, echo: bool) -> dict[str, Any]:
    told = [
        {"header": {"key": f"x-got-{header}", "value": f"%REQ({header})%"}}
        for header in ("x-sub", "x-role", "x-payload", "authorization", "x-user")
    ]
    route = {
        "match": {"prefix": "/"},
        "direct_response": {"status": 200},
        "response_headers_to_add": told,
    }
    router = {"name": "router", "typed_config": {"@type": f"{_EXTENSIONS}.filters.http.router.v3.Router"}}
    manager = {
        "@type": f"{_EXTENSIONS}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": name,
        "http_filters": [*_listed(found.filters), *([_echo()] if echo else []), router],
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
    }
    tls = {
        "@type": f"{_EXTENSIONS}.transport_sockets.tls.v3.DownstreamTlsContext",
        "require_client_certificate": True,
        "common_tls_context": {
            "tls_certificates": [
                {
                    "certificate_chain": {"inline_string": server.pem},
                    "private_key": {"inline_string": server.key_pem.decode()},
                }
            ],
            "validation_context": {"trusted_ca": {"inline_string": ca.pem}},
            "alpn_protocols": ["h2", "http/1.1"],
        },
    }
    filters = [{"name": _MANAGER, "typed_config": manager}]
    inspector = f"{_EXTENSIONS}.filters.listener.tls_inspector.v3.TlsInspector"
    return {
        "name": name,
        "address": _address(),
        "listener_filters": [{"name": "inspect", "typed_config": {"@type": inspector}}],
        "filter_chains": [
            {
                "filter_chain_match": {"transport_protocol": "tls"},
                "transport_socket": {"name": "tls", "typed_config": tls},
                "filters": filters,
            },
            {"filter_chain_match": {"transport_protocol": "raw_buffer"}, "filters": filters},
        ],
    }


def _echo() -> dict[str, Any]:
    code = {"inline_string": ECHO}
    lua = {"@type": f"{_EXTENSIONS}.filters.http.lua.v3.Lua", "default_source_code": code}
    return {"name": "echo", "typed_config": lua}


def _tcp(name: str, found: Security) -> dict[str, Any]:
    echo = {"name": "echo", "typed_config": {"@type": f"{_EXTENSIONS}.filters.network.echo.v3.Echo"}}
    return {
        "name": name,
        "address": _address(),
        "filter_chains": [{"filters": [*_listed(found.filters), echo]}],
    }


def _cluster(name: str, port: int, grpc: bool) -> dict[str, Any]:
    address = {"socket_address": {"address": "127.0.0.1", "port_value": port}}
    made: dict[str, Any] = {
        "name": name,
        "connect_timeout": "1s",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
        },
    }
    if grpc:
        options = f"{_EXTENSIONS}.upstreams.http.v3.HttpProtocolOptions"
        made["typed_extension_protocol_options"] = {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": options,
                "explicit_http_config": {"http2_protocol_options": {}},
            }
        }
    return made
