"""What an Envoy must know before it can ask: its bootstrap, made from ours.

Rules:

- All else comes from the control service over one incremental ADS stream, by mutual TLS with the workload's
  own certificate. The server must be the mesh's control service, whatever address it has. That of a node goes
  by way of the agent (`relay.py`), on a Unix socket.
- Secrets of this machine come from the agent, on a Unix socket in a folder that only this user can enter; the
  admin interface is on another such socket.
- An Envoy that lost the control service asks again after two seconds at most, not after Envoy's thirty: until
  then it knows of no change.
- Connections of strangers are bounded in number, so that a crowd leaves room for the control stream. With a
  limit of memory nothing more is accepted near to it. How many one workload of a node may have the control
  service is told, which says it to the Envoy with each of them (its runtime).
"""

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from meshlib.agent.bounds import Bounds
from meshlib.bootstrap import Bootstrap
from meshlib.xds import pb
from meshlib.xds.names import (
    CONTROL_SERVER,
    OWN_SECRET,
    ROOTS_SECRET,
    RUNTIME_LAYER,
    SDS_CLUSTER,
    split_authority,
)
from meshlib.xds.node import BIND, LISTEN_PORTS, REUSE_PORT, Client, Flavour, Locality, to_node

XDS_CLUSTER = "xds-grpc"
SDS_SOCKET, ADMIN_SOCKET, ADS_SOCKET = "sds.sock", "admin.sock", "ads.sock"
_URL = "type.googleapis.com/"
_HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
_TLS = "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext"
_CONNECTIONS = "envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig"
_HEAP = "envoy.extensions.resource_monitors.fixed_heap.v3.FixedHeapConfig"
_INTERNAL = "envoy.extensions.bootstrap.internal_listener.v3.InternalListener"
# However long it takes: without its configuration it is not ready.
_ADS = {"ads": {}, "resource_api_version": "V3", "initial_fetch_timeout": "0s"}
NODE_RUNTIME = {
    "layers": [
        {
            "name": "meshlib",
            "static_layer": {"envoy.reloadable_features.enable_send_rst_on_user_space_socket": False},
        },
        {"name": RUNTIME_LAYER, "rtds_layer": {"name": RUNTIME_LAYER, "rtds_config": _ADS}},
    ]
}
"""Without the first Envoy takes every end of a connection inside it for a reset, and what a server said last
is lost. The second has bounds for each workload.
"""
NODE_INTERNAL = {
    "name": "envoy.bootstrap.internal_listener",
    "typed_config": {"@type": _URL + _INTERNAL, "buffer_size_kb": 256},
}
"""What was not read yet of a connection inside it: as much as of any other (Envoy: 1 MiB)."""
_AGAIN = {"retry_back_off": {"base_interval": "0.25s", "max_interval": "2s"}}
_SHRINK, _STOP = 0.9, 0.95
"""Shares of the memory at which an Envoy gives back what it can, and at which it accepts nothing more."""


@dataclass(frozen=True, slots=True)
class Edge:
    """How one gateway is run on this machine."""

    name: str
    bind: str = ""
    """Where it listens, where a Gateway does not say; empty: at all addresses."""
    ports: Mapping[int, int] = field(default_factory=dict)
    """Ports of Gateways, and where it listens in their place."""
    reuse_port: bool = False
    """Whether other gateways of this user that say so may have the same ports at the same time."""
    max_connections: int = 50_000
    max_heap: int = 0
    """Bytes; 0: no limit of ours."""


def gateway_bootstrap(settings: Bootstrap, edge: Edge, folder: Path) -> dict[str, Any]:
    """An envoy.config.bootstrap.v3.Bootstrap as JSON; `folder` is where its sockets are."""
    client = Client(
        flavour=Flavour.GATEWAY,
        namespace=settings.namespace,
        service_account=settings.service_account,
        labels=settings.labels,
        locality=Locality.parse(settings.locality),
        id=f"gateway~{edge.name}~{folder.name}",
    )
    ports = {str(port): own for port, own in edge.ports.items()}
    node = to_node(client, extra={BIND: edge.bind, LISTEN_PORTS: ports, REUSE_PORT: edge.reuse_port})
    return _bootstrap(settings, node, folder, _control(settings)) | {
        "overload_manager": _overload(edge.max_connections, edge.max_heap)
    }


def node_bootstrap(settings: Bootstrap, name: str, bounds: Bounds, folder: Path) -> dict[str, Any]:
    """The same of the Envoy of a node, whose own identity `settings` has."""
    client = Client(
        flavour=Flavour.NODE,
        namespace=settings.namespace,
        service_account=settings.service_account,
        locality=Locality.parse(settings.locality),
        node=name,
        max_connections=bounds.of_workload,
        id=f"node~{name}~{folder.name}",
    )
    relay = _beside(XDS_CLUSTER, folder / ADS_SOCKET)
    made = _bootstrap(settings, to_node(client), folder, relay)
    return made | {
        "bootstrap_extensions": [NODE_INTERNAL],
        "layered_runtime": NODE_RUNTIME,
        "overload_manager": _overload(bounds.connections, bounds.heap, connections=True),
    }


def _bootstrap(settings: Bootstrap, said: Any, folder: Path, control: dict[str, Any]) -> dict[str, Any]:
    """`said`: the Node message; `control`: the cluster of the control service."""
    node = pb.to_dict(said)
    node.pop("user_agent_name", None)
    clusters = [control]
    if not settings.allow_plaintext:
        clusters.append(_beside(SDS_CLUSTER, folder / SDS_SOCKET))
    return {
        "node": node,
        "admin": {"address": {"pipe": {"path": str(folder / ADMIN_SOCKET), "mode": 0o600}}},
        "dynamic_resources": {"ads_config": _stream(), "cds_config": _ADS, "lds_config": _ADS},
        "static_resources": {"clusters": clusters},
    }


def _stream() -> dict[str, Any]:
    return {
        "api_type": "DELTA_GRPC",
        "transport_api_version": "V3",
        "set_node_on_first_message_only": True,
        "grpc_services": [{"envoy_grpc": {"cluster_name": XDS_CLUSTER, "retry_policy": _AGAIN}}],
    }


def _control(settings: Bootstrap) -> dict[str, Any]:
    host, port = split_authority(settings.control, 0)
    made = {
        **_grpc(XDS_CLUSTER, {"socket_address": {"address": host, "port_value": port}}),
        "type": "STATIC" if _is_ip(host) else "STRICT_DNS",
        "connect_timeout": "5s",
        "upstream_connection_options": {"tcp_keepalive": {"keepalive_time": 60}},
    }
    if settings.allow_plaintext:
        return made
    name = {"san_type": "DNS", "matcher": {"exact": CONTROL_SERVER}}
    return made | {
        "transport_socket": {
            "name": "envoy.transport_sockets.tls",
            "typed_config": {
                "@type": _URL + _TLS,
                "sni": CONTROL_SERVER,
                "common_tls_context": {
                    "alpn_protocols": ["h2"],
                    "tls_params": {
                        "tls_minimum_protocol_version": "TLSv1_2",
                        "tls_maximum_protocol_version": "TLSv1_3",
                    },
                    "tls_certificate_sds_secret_configs": [_secret(OWN_SECRET)],
                    "combined_validation_context": {
                        "default_validation_context": {"match_typed_subject_alt_names": [name]},
                        "validation_context_sds_secret_config": _secret(ROOTS_SECRET),
                    },
                },
            },
        }
    }


def _beside(name: str, socket: Path) -> dict[str, Any]:
    """The agent's own."""
    made = _grpc(name, {"pipe": {"path": str(socket)}})
    return made | {"type": "STATIC", "connect_timeout": "1s"}


def _secret(name: str) -> dict[str, Any]:
    services = [{"envoy_grpc": {"cluster_name": SDS_CLUSTER}}]
    source = {"api_type": "GRPC", "transport_api_version": "V3", "grpc_services": services}
    return {"name": name, "sds_config": {"api_config_source": source, "resource_api_version": "V3"}}


def _grpc(name: str, address: dict[str, Any]) -> dict[str, Any]:
    """A static cluster of HTTP/2 with one endpoint."""
    second = {"connection_keepalive": {"interval": "30s", "timeout": "10s"}}
    endpoint = {"endpoint": {"address": address}}
    return {
        "name": name,
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
        "typed_extension_protocol_options": {
            _HTTP_OPTIONS: {
                "@type": _URL + _HTTP_OPTIONS,
                "explicit_http_config": {"http2_protocol_options": second},
            }
        },
    }


def _overload(max_connections: int, max_heap: int, *, connections: bool = False) -> dict[str, Any]:
    """`connections`: they are not all of requests."""
    most = {"@type": _URL + _CONNECTIONS, "max_active_downstream_connections": max_connections}
    name = "envoy.resource_monitors.global_downstream_max_connections"
    monitors: list[dict[str, Any]] = [{"name": name, "typed_config": most}]
    if not max_heap:
        return {"resource_monitors": monitors}
    heap = "envoy.resource_monitors.fixed_heap"
    monitors.append({"name": heap, "typed_config": {"@type": _URL + _HEAP, "max_heap_size_bytes": max_heap}})
    actions = [("shrink_heap", _SHRINK), ("stop_accepting_requests", _STOP)]
    if connections:
        actions.append(("reject_incoming_connections", _STOP))
    return {
        "refresh_interval": "0.25s",
        "resource_monitors": monitors,
        "actions": [
            {
                "name": f"envoy.overload_actions.{action}",
                "triggers": [{"name": heap, "threshold": {"value": share}}],
            }
            for action, share in actions
        ],
    }


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
