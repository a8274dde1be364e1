"""Listeners: those that clients ask for by `host:port`, and an Envoy's own on its loopback address.

A gRPC client refuses filters that it does not know; it is given those that it does.
"""

from typing import Any

from meshlib.control.compile.cors import CORS
from meshlib.control.compile.fault import FAULT
from meshlib.control.compile.telemetry import put_telemetry
from meshlib.control.graph.telemetries import Told
from meshlib.xds import pb
from meshlib.xds.node import Flavour

ROUTER = "envoy.filters.http.router"
LOOPBACK = "127.0.0.1"


def api_listener(name: str, routes: str, told: Told, flavour: Flavour) -> Any:
    """An envoy.config.listener.v3.Listener for a client inside a process."""
    made = pb.Listener(name=name)
    manager = _manager(name, routes, with_cors=flavour is not Flavour.GRPC)
    put_telemetry(manager, made, told, flavour)
    made.api_listener.api_listener.CopyFrom(pb.pack(manager))
    return made


def loopback_listener(port: int, told: Told) -> Any:
    """An envoy.config.listener.v3.Listener of an Envoy, for all services at one port."""
    made = pb.Listener(name=f"{LOOPBACK}_{port}", traffic_direction="OUTBOUND")
    made.address.socket_address.address = LOOPBACK
    made.address.socket_address.port_value = port
    manager = _manager(f"outbound_{made.name}", str(port), with_cors=True)
    manager.upgrade_configs.add(upgrade_type="websocket")
    manager.normalize_path.value = True
    manager.use_remote_address.value = False
    put_telemetry(manager, made, told, Flavour.ENVOY)
    made.filter_chains.add().filters.add(
        name="envoy.filters.network.http_connection_manager", typed_config=pb.pack(manager)
    )
    return made


def _manager(prefix: str, routes: str, *, with_cors: bool) -> Any:
    made = pb.HttpConnectionManager(stat_prefix=prefix)
    made.rds.route_config_name = routes
    made.rds.config_source.ads.SetInParent()
    made.rds.config_source.resource_api_version = "V3"
    made.http_filters.add(name=FAULT, typed_config=pb.pack(pb.HTTPFault()))
    if with_cors:
        made.http_filters.add(name=CORS, typed_config=pb.pack(pb.Cors()))
    made.http_filters.add(name=ROUTER, typed_config=pb.pack(pb.Router()))
    return made
