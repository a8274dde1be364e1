"""Listeners: those that clients ask for by `host:port`, and an Envoy's own on its loopback address.

A gRPC client refuses filters that it does not know; it is given those that it does.

Of a port that is not said to be HTTP the library is told both: where requests go, should the application
send some, in a chain as for a port whose protocol Istio finds out; and where connections go. The address is
the service's own, for rules by subnet.
"""

from collections.abc import Sequence
from typing import Any

from meshlib.control.compile.cors import CORS
from meshlib.control.compile.dns import put_filter
from meshlib.control.compile.fault import FAULT
from meshlib.control.compile.provenance import mark_skipped
from meshlib.control.compile.tcp import Chains
from meshlib.control.compile.telemetry import put_telemetry
from meshlib.control.graph.telemetries import Told
from meshlib.control.istio.meshconfig import MeshConfig
from meshlib.xds import pb
from meshlib.xds.node import Flavour

ROUTER = "envoy.filters.http.router"
LOOPBACK = "127.0.0.1"
_HTTP = "envoy.filters.network.http_connection_manager"
_SPOKEN = ("http/1.0", "http/1.1", "h2c")
"""What Istio's listeners find out to be HTTP."""
_ANYWHERE = "0.0.0.0"  # noqa: S104 - nobody binds it
_TLS_INSPECTOR = "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector"


def api_listener(name: str, routes: str, told: Told, flavour: Flavour) -> Any:
    """An envoy.config.listener.v3.Listener for a client inside a process."""
    made = pb.Listener(name=name)
    manager = _manager(name, routes, with_cors=flavour is not Flavour.GRPC)
    put_telemetry(manager, made, told, flavour)
    made.api_listener.api_listener.CopyFrom(pb.pack(manager))
    return made


def connection_listener(
    name: str, port: int, addresses: Sequence[str], routes: str, told: Told, chains: Chains
) -> Any:
    """An envoy.config.listener.v3.Listener for a client inside a process: requests and connections."""
    made = pb.Listener(name=name, traffic_direction="OUTBOUND")
    first, *more = addresses or (_ANYWHERE,)
    _bind(made.address, first, port)
    for address in more:
        _bind(made.additional_addresses.add().address, address, port)
    manager = _manager(name, routes, with_cors=True)
    put_telemetry(manager, made, told, Flavour.MESHLIB)
    http = made.filter_chains.add(filter_chain_match={"application_protocols": _SPOKEN})
    http.filters.add(name=_HTTP, typed_config=pb.pack(manager))
    chains.put(made)
    mark_skipped(made, chains.skipped)
    return made


def _bind(address: Any, host: str, port: int) -> None:
    address.socket_address.address = host
    address.socket_address.port_value = port


def loopback_tcp_listener(port: int, chains: Chains) -> Any:
    """An envoy.config.listener.v3.Listener of an Envoy, for connections at one port."""
    made = pb.Listener(name=f"{LOOPBACK}_{port}", traffic_direction="OUTBOUND")
    _bind(made.address, LOOPBACK, port)
    chains.put(made)
    if any(chain.filter_chain_match.server_names for chain in made.filter_chains):
        inspector = pb.pack(pb.message(_TLS_INSPECTOR)())
        made.listener_filters.add(name="envoy.filters.listener.tls_inspector", typed_config=inspector)
    return made


def loopback_listener(port: int, told: Told, by_host: MeshConfig | None = None) -> Any:
    """An envoy.config.listener.v3.Listener of an Envoy, for all services at one port. `by_host`: requests may
    be looked up by their own host, as these settings say.
    """
    made = pb.Listener(name=f"{LOOPBACK}_{port}", traffic_direction="OUTBOUND")
    _bind(made.address, LOOPBACK, port)
    manager = envoy_manager(f"outbound_{made.name}", str(port), by_host)
    put_telemetry(manager, made, told, Flavour.ENVOY)
    made.filter_chains.add().filters.add(name=_HTTP, typed_config=pb.pack(manager))
    return made


def envoy_manager(prefix: str, routes: str, by_host: MeshConfig | None) -> Any:
    """An HttpConnectionManager of an Envoy for its own applications' requests."""
    made = _manager(prefix, routes, with_cors=True, by_host=by_host)
    made.upgrade_configs.add(upgrade_type="websocket")
    made.normalize_path.value = True
    # Istio's sidecars refuse it unless told otherwise; nginx as a proxy calls with it, unless told otherwise.
    made.http_protocol_options.accept_http_10 = True
    made.use_remote_address.value = False
    return made


def _manager(prefix: str, routes: str, *, with_cors: bool, by_host: MeshConfig | None = None) -> Any:
    made = pb.HttpConnectionManager(stat_prefix=prefix)
    made.rds.route_config_name = routes
    made.rds.config_source.ads.SetInParent()
    made.rds.config_source.resource_api_version = "V3"
    made.http_filters.add(name=FAULT, typed_config=pb.pack(pb.HTTPFault()))
    if with_cors:
        made.http_filters.add(name=CORS, typed_config=pb.pack(pb.Cors()))
    if by_host is not None:
        put_filter(made, by_host)
    made.http_filters.add(name=ROUTER, typed_config=pb.pack(pb.Router()))
    return made
