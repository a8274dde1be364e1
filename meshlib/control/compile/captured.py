"""Where the connections go that a workload behind a node's Envoy makes: captured ones by address, others by
a proxy.

Rules:

- At a port with services of HTTP its connections are requests, whatever their address; those of a service
  of TCP or TLS with an address of its own there are connections. A TLS service is known by SNI, too.
- Of a port that is not said to be HTTP it is found out, for addresses of such services; who waits for the
  server to speak first is taken for TCP after `protocolDetectionTimeout`, 5 s.
- Only a listener's chains change with the mesh: Envoy ends all connections of one of which anything else
  does. So the connections of a port that are looked into (TLS, or not said) are led to a listener inside the
  Envoy that is the port's own, as Istio has one for each port.
- What nothing is known of goes where it was going, or nowhere: outboundTrafficPolicy. It leaves from the
  node; so what goes to a loopback address leads nowhere: who rules in a namespace could have it captured,
  and would be at the node's own.
- HTTP/1.0 is taken. Without a Host it is a request to an unknown host: it goes where it was going.
- Without capture there is an HTTP proxy: requests to the host and port that they name. CONNECT is refused,
  and where a request was going it does not know but by its host.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from meshlib.control.compile.context import Context
from meshlib.control.compile.dns import needs_filter
from meshlib.control.compile.hbone import (
    LOCAL,
    REMOTE,
    STATE,
    STATE_FILTER,
    put_state,
)
from meshlib.control.compile.listeners import envoy_manager
from meshlib.control.compile.served import closed
from meshlib.control.compile.tcp import TCP_PROXY, Chains
from meshlib.control.compile.telemetry import put_telemetry
from meshlib.control.graph.scope import HTTP_PORT, Scope
from meshlib.control.graph.telemetries import Told
from meshlib.control.istio.meshconfig import MeshConfig
from meshlib.control.registry import Protocol, Service
from meshlib.xds import pb
from meshlib.xds.names import OUTBOUND_PORT
from meshlib.xds.node import Client, Flavour

OUTBOUND, PROXY = "outbound", "proxy"
INSPECTED = "inspected|"
"""Before a port: the name of the Listener for its connections, and of the Cluster that leads there."""
DETECTION_SECONDS = 5.0
LOOPBACK = "127.0.0.1"
OF_LOOPBACK = (("127.0.0.0", 9), ("127.128.0.0", 9))
"""All of it, in parts that no service has: two chains with one match would be refused."""
NO_HOST = "unknown.invalid"
"""The host of a request of HTTP/1.0 that names none."""
_MANAGER = "envoy.filters.network.http_connection_manager"
_SPOKEN = ("http/1.0", "http/1.1", "h2c")
_INSPECTED = frozenset((Protocol.TLS, Protocol.SNIFFED))
"""What is known only when a connection has spoken."""
_LISTENER_FILTER = "envoy.extensions.filters.listener.{}.v3.{}"


def services_by_port(scope: Scope) -> Mapping[int, Sequence[Service]]:
    """The services at each port that are not of UDP, as far as they are seen."""
    found: dict[int, list[Service]] = {HTTP_PORT: []}
    for service in scope.services():
        for port in service.ports:
            if port.protocol is not Protocol.UDP and scope.sees_port(service, port.number):
                found.setdefault(port.number, []).append(service)
    return dict(sorted(found.items()))


def routed(services: Sequence[Service], port: int) -> list[Service]:
    """Those of which requests at that port are looked at."""
    return [one for one in services if (found := one.port(port)) is not None and found.protocol.routed]


def captured_listeners(
    scope: Scope,
    client: Client,
    told: Told,
    ports: Mapping[int, Sequence[Service]],
    addresses: Callable[[Service], Sequence[str]],
    netns: str,
) -> Iterator[Any]:
    """The Listener of all captured connections, and those of the ports whose connections are looked into.

    `addresses` gives those of a service, with their length.
    """
    made = pb.Listener(name=OUTBOUND, traffic_direction="OUTBOUND")
    socket = made.address.socket_address
    socket.address, socket.port_value, socket.network_namespace_filepath = LOOPBACK, OUTBOUND_PORT, netns
    inspect(made, "original_dst", "OriginalDst")
    closed(made, OUTBOUND_PORT)
    closed(made, 0, *OF_LOOPBACK)
    rest = Chains(Context(scope, client, 0), told)
    for port, services in ports.items():
        if port != OUTBOUND_PORT:
            closed(made, port, *OF_LOOPBACK)
        speak = {found.protocol for one in services if (found := one.port(port)) is not None}
        if not speak & _INSPECTED:
            _put_port(made, scope, client, told, port, services, addresses)
            continue
        _lead_inside(made, port)
        inside_it = pb.Listener(name=f"{INSPECTED}{port}", traffic_direction="OUTBOUND")
        inside_it.internal_listener.SetInParent()
        inspect(inside_it, "original_dst", "OriginalDst")
        inspect(inside_it, "tls_inspector", "TlsInspector")
        if Protocol.SNIFFED in speak:
            inspect(inside_it, "http_inspector", "HttpInspector")
        detect(inside_it, scope.graph.mesh)
        _put_port(inside_it, scope, client, told, port, services, addresses)
        rest.put(inside_it)
        yield inside_it
    rest.put(made)
    yield made


def _lead_inside(listener: Any, port: int) -> None:
    """A chain to the Listener of a port, which is told where the connection was going and whose it is."""
    chain = listener.filter_chains.add()
    chain.filter_chain_match.destination_port.value = port
    states = pb.message(STATE.format("network"))()
    for key, form in ((LOCAL, "%DOWNSTREAM_LOCAL_ADDRESS%"), (REMOTE, "%DOWNSTREAM_REMOTE_ADDRESS%")):
        put_state(states.on_new_connection.add(), key, form, shared=True)
    chain.filters.add(name=STATE_FILTER.format("network"), typed_config=pb.pack(states))
    proxy = pb.TcpProxy(stat_prefix=f"{INSPECTED}{port}", cluster=f"{INSPECTED}{port}")
    # How long a connection may be quiet is said where it leads.
    proxy.idle_timeout.CopyFrom(pb.duration(0.0))
    chain.filters.add(name=TCP_PROXY, typed_config=pb.pack(proxy))


def _put_port(
    made: Any,
    scope: Scope,
    client: Client,
    told: Told,
    port: int,
    services: Sequence[Service],
    addresses: Callable[[Service], Sequence[str]],
) -> None:
    """The chains of one port."""
    speak = {found.protocol for one in services if (found := one.port(port)) is not None}
    http = _http(scope, told, made, port, services) if port == HTTP_PORT or routed(services, port) else None
    plain = port == HTTP_PORT or bool(speak & {Protocol.HTTP, Protocol.HTTP2})
    for chain in _chains(scope, client, told, port, services, addresses).made:
        chain.filter_chain_match.destination_port.value = port
        everywhere = not chain.filter_chain_match.prefix_ranges
        if everywhere and plain and not chain.filter_chain_match.server_names:
            continue
        made.filter_chains.append(chain)
        if (
            not chain.filter_chain_match.server_names
            and Protocol.SNIFFED in speak
            and http is not None
            and not everywhere
        ):
            of_http = made.filter_chains.add()
            of_http.CopyFrom(http)
            of_http.filter_chain_match.CopyFrom(chain.filter_chain_match)
            of_http.filter_chain_match.application_protocols.extend(_SPOKEN)
    if http is not None:
        if not plain:
            http.filter_chain_match.application_protocols.extend(_SPOKEN)
        http.filter_chain_match.destination_port.value = port
        made.filter_chains.append(http)


def _chains(
    scope: Scope,
    client: Client,
    told: Told,
    port: int,
    services: Sequence[Service],
    addresses: Callable[[Service], Sequence[str]],
) -> Chains:
    made = Chains(Context(scope, client, port), told, shared=True)
    for service in services:
        found = service.port(port)
        if found is None or found.protocol in (Protocol.HTTP, Protocol.HTTP2):
            continue
        known = addresses(service)
        if known:
            made.add(service, known)
        if found.protocol is Protocol.TLS or (not known and found.protocol is Protocol.TCP):
            made.add(service)
    return made


def _http(scope: Scope, told: Told, listener: Any, port: int, services: Sequence[Service]) -> Any:
    """A FilterChain for the requests at a port, without a match."""
    mesh = scope.graph.mesh if needs_filter(scope, list(services)) else None
    manager = envoy_manager(f"outbound_{port}", str(port), mesh)
    _as_captured(manager)
    manager.http_protocol_options.default_host_for_http_10 = NO_HOST
    put_telemetry(manager, listener, told, Flavour.NODE)
    made = pb.FilterChain()
    made.filters.add(name=_MANAGER, typed_config=pb.pack(manager))
    return made


def _as_captured(manager: Any) -> None:
    """Nobody asked for a proxy: what a server says of itself stays, and a quiet stream is no fault."""
    manager.server_header_transformation = "PASS_THROUGH"
    manager.stream_idle_timeout.CopyFrom(pb.duration(0.0))


def detect(made: Any, mesh: MeshConfig) -> None:
    """For how long a listener waits to find out what is spoken."""
    made.listener_filters_timeout.CopyFrom(pb.duration(mesh.protocol_detection_timeout or DETECTION_SECONDS))
    made.continue_on_listener_filters_timeout = True


def inspect(
    made: Any, name: str, kind: str, *, only: Collection[int] | None = None, but: Collection[int] = ()
) -> None:
    """Puts a listener filter on a Listener; `only`: for connections to these ports; `but`: not to these."""
    config = pb.message(_LISTENER_FILTER.format(name, kind))()
    added = made.listener_filters.add(name=f"envoy.filters.listener.{name}", typed_config=pb.pack(config))
    if only is None and not but:
        return
    without = added.filter_disabled.not_match if only is not None else added.filter_disabled
    only = but if only is None else only
    # Envoy wants two rules at least where it asks for one of several.
    each = [without] if len(only) == 1 else [without.or_match.rules.add() for _ in only]
    for predicate, port in zip(each, sorted(only), strict=True):
        predicate.destination_port_range.start = port
        predicate.destination_port_range.end = port + 1


def proxy_listener(scope: Scope, told: Told, port: int) -> Any:
    """The Listener of an HTTP proxy at the node's loopback address; its routes have the name `proxy`."""
    made = pb.Listener(name=PROXY, traffic_direction="OUTBOUND")
    made.address.socket_address.address, made.address.socket_address.port_value = LOOPBACK, port
    manager = envoy_manager(PROXY, PROXY, scope.graph.mesh)
    _as_captured(manager)
    put_telemetry(manager, made, told, Flavour.NODE)
    made.filter_chains.add().filters.add(name=_MANAGER, typed_config=pb.pack(manager))
    return made
