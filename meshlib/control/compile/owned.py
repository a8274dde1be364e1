"""What is compiled for one workload as one of many behind a node's Envoy: every name has the workload's
before it.

What a message names is known here: clusters in routes, in TCP proxies and of those who are asked; routes
and listeners. So what every message of a workload has is put on here: how much it may hold (`bounds.py`).
"""

from typing import Any

from meshlib.control.compile import bounds
from meshlib.control.compile.extauthz import EXT_AUTHZ, TCP_EXT_AUTHZ
from meshlib.control.compile.tcp import TCP_PROXY
from meshlib.xds import pb
from meshlib.xds.kinds import Kind

_MANAGER = "envoy.filters.network.http_connection_manager"


def owned(kind: Kind, message: Any, uid: str) -> Any:
    """The message itself, with the names that it has as the workload's."""
    match kind:
        case Kind.CLUSTER:
            _cluster(message, uid)
            bounds.cluster(message)
        case Kind.ENDPOINTS:
            message.cluster_name = _of(uid, message.cluster_name)
            _endpoints(message, uid)
        case Kind.ROUTES:
            message.name = _of(uid, message.name)
            _routes(message, uid)
        case Kind.LISTENER:
            message.name = _of(uid, message.name)
            bounds.listener(message)
            for chain in (*message.filter_chains, message.default_filter_chain):
                for each in chain.filters:
                    _filter(each, uid)
        case _:
            pass
    return message


def _of(uid: str, name: str) -> str:
    return f"{uid}/{name}" if name else ""


def _cluster(made: Any, uid: str) -> None:
    made.name = _of(uid, made.name)
    if made.HasField("eds_cluster_config"):
        made.eds_cluster_config.service_name = made.name
    if made.HasField("load_assignment"):
        made.load_assignment.cluster_name = made.name
        _endpoints(made.load_assignment, uid)


def _endpoints(assignment: Any, uid: str) -> None:
    for locality in assignment.endpoints:
        for each in locality.lb_endpoints:
            if each.endpoint.address.HasField("envoy_internal_address"):
                internal = each.endpoint.address.envoy_internal_address
                internal.server_listener_name = _of(uid, internal.server_listener_name)


def _routes(made: Any, uid: str) -> None:
    for host in made.virtual_hosts:
        for route in host.routes:
            if route.WhichOneof("action") != "route":
                continue
            action = route.route
            if action.cluster:
                action.cluster = _of(uid, action.cluster)
            for each in (*action.weighted_clusters.clusters,):
                each.name = _of(uid, each.name)
            for mirror in action.request_mirror_policies:
                mirror.cluster = _of(uid, mirror.cluster)


def _filter(each: Any, uid: str) -> None:
    if each.name == TCP_PROXY:
        proxy = pb.unpack(each.typed_config)
        if proxy.cluster:
            proxy.cluster = _of(uid, proxy.cluster)
        for one in proxy.weighted_clusters.clusters:
            one.name = _of(uid, one.name)
        each.typed_config.CopyFrom(pb.pack(proxy))
    elif each.name == TCP_EXT_AUTHZ:
        _asked(each, uid)
    elif each.name == _MANAGER:
        manager = pb.unpack(each.typed_config)
        bounds.manager(manager)
        if manager.HasField("rds"):
            manager.rds.route_config_name = _of(uid, manager.rds.route_config_name)
        _routes(manager.route_config, uid)
        for one in manager.http_filters:
            if one.name == EXT_AUTHZ:
                _asked(one, uid)
        each.typed_config.CopyFrom(pb.pack(manager))


def _asked(each: Any, uid: str) -> None:
    config = pb.unpack(each.typed_config)
    if config.HasField("grpc_service"):
        service = config.grpc_service.envoy_grpc
        service.cluster_name = _of(uid, service.cluster_name)
    elif config.WhichOneof("services") == "http_service":
        config.http_service.server_uri.cluster = _of(uid, config.http_service.server_uri.cluster)
    each.typed_config.CopyFrom(pb.pack(config))
