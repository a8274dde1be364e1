"""What a node's Envoy does for one workload, decided aloud of the resources that it is sent: both ways.

Rules:

- All that is a workload's has its uid in front; it is taken off where names are read by people.
- How an endpoint is spoken to is what its metadata choose of the cluster's transport sockets.
- A workload of a folder is one that is captured in a network namespace, and serves the port that is asked.
"""

from collections.abc import Iterator
from typing import Any

from meshlib.cli.explain_decision import decide_request, endpoints_of, share_of
from meshlib.cli.explain_edge import shares_of, table_of, view_of
from meshlib.cli.explain_held import Held, managers_of
from meshlib.cli.explain_inbound import decide_inbound
from meshlib.cli.explain_served import Served
from meshlib.control.compile.captured import INSPECTED
from meshlib.control.compile.hbone import HBONE
from meshlib.control.compile.secrets import TLS_SOCKET
from meshlib.control.compile.served import CLOSED
from meshlib.core.mtls import InboundMode
from meshlib.core.request import Peer, RequestHead
from meshlib.dataplane.decode.errors import Refused
from meshlib.dataplane.decode.inbound import decode_behind
from meshlib.dataplane.decode.origin import decode_origin
from meshlib.errors import RefusedResource
from meshlib.xds import pb
from meshlib.xds.kinds import Kind
from meshlib.xds.names import TRANSPORT_SOCKET_MATCH, split_authority

Explanation = dict[str, Any]
_NAMES = frozenset(("name", "cluster", "cluster_name", "service_name"))
_MODES = {
    (True, False): InboundMode.STRICT,
    (True, True): InboundMode.PERMISSIVE,
    (False, True): InboundMode.DISABLE,
}


def workloads(held: Held) -> list[str]:
    """The uids of all workloads of the node."""
    return sorted({name.partition("/")[0] for name in held.of(Kind.LISTENER) if "/" in name})


def decide_outbound(held: Held, uid: str, head: RequestHead, port: int, target: str) -> Explanation:
    """What becomes of a request that the workload sends to `target`.

    Keys: `workload`, `workloads`, `captured` (whether there is anything of that workload), `request` (as of
    `explain_decision.decide`; None: the port is not of HTTP), `connection` (clusters of the port's
    connections, `endpoints` beside it), `elsewhere` (for a port that no service has: the cluster), `spoken`
    (by cluster and address: how), `config_version`. All are always there.
    """
    own = _own(held, uid)
    view = view_of(own, {})
    answer: Explanation = {
        "workload": uid,
        "workloads": workloads(held),
        "captured": bool(own.of(Kind.LISTENER)),
        "request": None,
        "connection": [],
        "endpoints": [],
        "elsewhere": None,
        "spoken": {},
        "config_version": held.version,
    }
    routes, clusters = None, list[tuple[str, int]]()
    for chain in _chains(own, port):
        for manager in managers_of(chain) if head.scheme == "http" else ():
            routes = routes or own.of(Kind.ROUTES).get(manager.rds.route_config_name)
        # One that is inspected first goes on to another listener of its own.
        clusters += [one for one in shares_of(chain) if not one[0].startswith(INSPECTED)]
    if routes is None and not clusters:
        answer["elsewhere"] = next((name for chain in _elsewhere(own) for name, _ in shares_of(chain)), None)
        return answer
    if routes is not None:
        table, _ = table_of(routes)
        answer["request"] = decide_request(view_of(own, {target: table}), target, head)
        named = [one["name"] for one in answer["request"]["clusters"]]
    else:
        named = list(dict.fromkeys(name for name, _ in clusters))
        answer["connection"] = [share_of(view, name, 1, 1 / len(named)) for name in named]
        answer["endpoints"] = [one for name in named for one in endpoints_of(name, view.endpoints.get(name))]
    answer["spoken"] = {name: _spoken(own, name) for name in named}
    return answer


def decide_served(
    held: Held, uid: str, head: RequestHead, port: int, peer: Peer, now: float
) -> Explanation | None:
    """How the workload's port takes a request, as of `decide_inbound`, with `hbone`: whether it takes that,
    too; None: there is no such workload. RefusedResource: what it is sent can't be understood.
    """
    own = _own(held, uid)
    listener = own.of(Kind.LISTENER).get("inbound")
    if listener is None:
        return None
    chains = [one for one in listener.filter_chains if one.filter_chain_match.destination_port.value == port]
    declared = bool(chains)
    chains = chains or [
        one for one in listener.filter_chains if not one.filter_chain_match.destination_port.value
    ]
    ends = [one for one in chains if one.HasField("transport_socket")]
    plain = any(one.filter_chain_match.transport_protocol == "raw_buffer" for one in chains)
    manager = next((one for chain in (*ends, *chains) for one in managers_of(chain)), None)
    found = next(iter(chains), listener)
    origin = decode_origin(found)
    try:
        routes = own.of(Kind.ROUTES).get(manager.rds.route_config_name) if manager is not None else None
        inbound = decode_behind(listener, manager, routes, _MODES[bool(ends), plain or not ends], origin)
    except Refused as refused:
        raise RefusedResource(f"listener {listener.name}: {refused}") from None
    answer = decide_inbound(Served(inbound, held.version, with_authority=True), head, peer, now)
    return answer | {
        "hbone": "hbone" in own.of(Kind.LISTENER),
        "declared": declared,
        "speaks_http": manager is not None,
    }


def _own(held: Held, uid: str) -> Held:
    """What is the workload's, without its name in front."""
    found = Held(held.version)
    for kind in (Kind.CLUSTER, Kind.ENDPOINTS, Kind.LISTENER, Kind.ROUTES):
        for name, message in held.of(kind).items():
            if name.startswith(f"{uid}/"):
                plain = type(message)()
                plain.CopyFrom(message)
                _plain(plain, f"{uid}/")
                if kind is Kind.ENDPOINTS:
                    _outside(plain)
                found.messages[kind][name.removeprefix(f"{uid}/")] = plain
    return found


def _outside(assignment: Any) -> None:
    """Where tunnels lead, in the place of the Envoy's own ends of them."""
    for group in assignment.endpoints:
        for one in group.lb_endpoints:
            if target := one.endpoint.address.envoy_internal_address.endpoint_id:
                where = one.endpoint.address.socket_address
                where.address, where.port_value = split_authority(target, 0)


def _plain(message: Any, before: str) -> None:
    for field, value in message.ListFields():
        if field.type == field.TYPE_STRING and field.name in _NAMES and isinstance(value, str):
            setattr(message, field.name, value.removeprefix(before))
        elif field.type == field.TYPE_MESSAGE:
            if field.message_type.full_name == "google.protobuf.Any":
                continue
            if field.message_type.GetOptions().map_entry:
                continue
            for each in value if not hasattr(value, "ListFields") else (value,):
                _plain(each, before)
    for each in getattr(message, "filters", ()):
        if hasattr(each, "typed_config") and each.typed_config.type_url in _READ:
            inner = pb.unpack(each.typed_config)
            _plain(inner, before)
            if inner.DESCRIPTOR.full_name == pb.HttpConnectionManager.DESCRIPTOR.full_name:
                inner.rds.route_config_name = inner.rds.route_config_name.removeprefix(before)
            each.typed_config.CopyFrom(pb.pack(inner))


_READ = (pb.type_url(pb.HttpConnectionManager), pb.type_url(pb.TcpProxy))


def _chains(own: Held, port: int) -> Iterator[Any]:
    """What takes the workload's own connections to that port."""
    for name, listener in own.of(Kind.LISTENER).items():
        inspected = name.rpartition("|")[2] == str(port) and "|" in name
        for chain in listener.filter_chains if listener.traffic_direction == 2 or inspected else ():
            said = chain.filter_chain_match.destination_port.value
            if chain.name != CLOSED and (inspected or said == port or name == "proxy"):
                yield chain


def _elsewhere(own: Held) -> list[Any]:
    """What takes connections to ports that no service has."""
    listener = own.of(Kind.LISTENER).get("outbound")
    if listener is None:
        return []
    chains = [
        one
        for one in listener.filter_chains
        if one.name != CLOSED and not one.filter_chain_match.destination_port.value
    ]
    return [*chains, listener.default_filter_chain]


def _spoken(own: Held, cluster: str) -> dict[str, str]:
    """How each endpoint is spoken to, by address."""
    made = own.of(Kind.CLUSTER).get(cluster)
    if made is None:
        return {}
    found = {}
    for group in own.of(Kind.ENDPOINTS).get(cluster, made.load_assignment).endpoints:
        for one in group.lb_endpoints:
            said = one.metadata.filter_metadata.get(TRANSPORT_SOCKET_MATCH) or pb.Struct()
            matches = (each for each in made.transport_socket_matches if _holds(each, said))
            address = one.endpoint.address
            where = address.socket_address
            found[f"{where.address}:{where.port_value}"] = _words(made, next(matches, None))
    return found


def _holds(match: Any, said: Any) -> bool:
    return all(key in said.fields and said.fields[key] == value for key, value in match.match.fields.items())


def _words(made: Any, match: Any) -> str:
    if match is None:
        return "TLS" if made.HasField("transport_socket") else "plain text"
    if match.name == HBONE:
        return "HBONE"
    return "mutual TLS" if match.transport_socket.name == TLS_SOCKET else "plain text"
