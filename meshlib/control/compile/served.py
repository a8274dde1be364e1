"""What a node's Envoy asks of those who call a workload: the chains of its ports, and where they lead.

Rules (Istio):

- A port speaks what the services that lead to it say, else what its name in the registration says.
- Of HTTP: STRICT takes mutual TLS, PERMISSIVE plain text too, DISABLE only that. Where anything but HTTP
  may be spoken TLS may be the application's own: in PERMISSIVE mode only a caller that names one of Istio's
  protocols (ALPN) speaks mutual TLS.
- Requests see the filters of a server in a process; connections the rules of authorization that are about
  connections. Rules of requests are in the routes, so that they hold for the next request on any
  connection.
- A port that is not declared is passed through under the workload's mode, as connections.
- An application that closes a connection which it kept is asked again, if it has not seen the request.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from meshlib.control.compile.authz import DECIDING, RBAC, deciding
from meshlib.control.compile.breaker import HTTP_OPTIONS, breakers, connection
from meshlib.control.compile.cors import CORS, served_routes
from meshlib.control.compile.hbone import HANDSHAKE_SECONDS, HEADERS_SECONDS, authority_of
from meshlib.control.compile.inbound import as_sidecar, server_context
from meshlib.control.compile.listeners import ROUTER
from meshlib.control.compile.provenance import mark_document
from meshlib.control.compile.secrets import own_secret, put_socket
from meshlib.control.compile.security import connection_filters, security_filters
from meshlib.control.compile.tcp import TCP_PROXY
from meshlib.control.compile.telemetry import put_telemetry
from meshlib.control.compile.tunnelled import behind_tunnel, certificate_filter
from meshlib.control.graph.graph import Graph
from meshlib.control.istio.parse import spell
from meshlib.control.istio.peerauthentication import MutualTLSMode
from meshlib.control.istio.telemetry import WorkloadMode
from meshlib.control.registration import APPLICATION_HOST, Place, Registration
from meshlib.control.registry import Protocol, protocol_of, serving
from meshlib.xds import pb
from meshlib.xds.names import BLACK_HOLE_CLUSTER
from meshlib.xds.node import Client, Flavour

APPLICATION = "127.0.0.6"
"""From where the application is called in its own namespace (Istio)."""
PASSTHROUGH = "InboundPassthroughCluster"
CLOSED = "closed"
"""The name of chains that lead nowhere."""
_MANAGER = "envoy.filters.network.http_connection_manager"
_TLS, _PLAIN = "tls", "raw_buffer"
_ISTIO_HTTP = ("istio-http/1.0", "istio-http/1.1", "istio-h2")
_ANY_HTTP = (*_ISTIO_HTTP, "http/1.0", "http/1.1", "h2")
_ISTIO_TCP = ("istio-peer-exchange", "istio")
_SPOKEN = ("http/1.0", "http/1.1", "h2c")
"""What is found out to be HTTP of plain bytes."""


@dataclass(frozen=True, slots=True)
class _Chain:
    """What connections a chain takes, and what it takes them for."""

    transport: str
    protocols: tuple[str, ...]
    http: bool
    ends_tls: bool = False


def _chains(mode: MutualTLSMode, speaks: Protocol) -> tuple[_Chain, ...]:
    """The chains of a port."""
    strict, open_ = mode is MutualTLSMode.STRICT, mode is MutualTLSMode.DISABLE
    plain = [] if strict else [_Chain(_PLAIN, (), http=False)]
    own_tls = [] if strict else [_Chain(_TLS, (), http=False)]
    match speaks:
        case Protocol.HTTP | Protocol.HTTP2:
            secured = [] if open_ else [_Chain(_TLS, (), True, True)]
            return (*secured, *([] if strict else [_Chain(_PLAIN, (), http=True)]))
        case Protocol.SNIFFED:
            plain = [*plain, *([] if strict else [_Chain(_PLAIN, _SPOKEN, http=True)])]
            secured = [
                _Chain(_TLS, _ANY_HTTP if strict else _ISTIO_HTTP, True, True),
                _Chain(_TLS, () if strict else _ISTIO_TCP, False, True),
            ]
        case _:
            secured = [_Chain(_TLS, () if strict else _ISTIO_TCP, False, True)]
    return (*([] if open_ else secured), *own_tls, *plain)


def _behind_tunnel(speaks: Protocol) -> tuple[_Chain, ...]:
    match speaks:
        case Protocol.HTTP | Protocol.HTTP2:
            return (_Chain("", (), http=True),)
        case Protocol.SNIFFED:
            return _Chain("", _SPOKEN, http=True), _Chain("", (), http=False)
    return (_Chain("", (), http=False),)


def spoken_at(graph: Graph, registration: Registration) -> Mapping[int, Protocol]:
    """What each port of a workload speaks."""
    found = {number: protocol_of(name, number) for name, number in registration.ports}
    said: dict[int, Protocol] = {}
    for port, number in serving(graph.registry, registration):
        # Of several the first by host says it, but before all who says HTTP: of that more is looked at.
        if number in found and (number not in said or (port.protocol.routed and not said[number].routed)):
            said[number] = port.protocol
    return {**found, **said}


@dataclass
class Served:
    """The chains of all ports of one workload, made once for each way in."""

    graph: Graph
    client: Client
    registration: Registration
    place: Place
    roots: bool
    routes: dict[str, Any] = field(default_factory=dict)
    """The RouteConfigurations that the chains name, by name."""

    @cached_property
    def ports(self) -> Mapping[int, Protocol]:
        """What each declared port speaks."""
        return spoken_at(self.graph, self.registration)

    @cached_property
    def needs_tls_inspector(self) -> frozenset[int]:
        """The known ports at which the caller speaks first, with TLS or without."""
        return self._known - self.quiet_until_served

    @cached_property
    def quiet_until_served(self) -> frozenset[int]:
        """The known ports at which callers may wait for the server to speak: not of HTTP, and without TLS."""
        return frozenset(
            port
            for port in self._known
            if not self._takes_tls(port) and not self.ports.get(port, Protocol.TCP).routed
        )

    @property
    def _known(self) -> frozenset[int]:
        return frozenset({*self.ports, *self._peers.ports(self.client.namespace, self.client.label_map)})

    @property
    def may_pass_tls(self) -> bool:
        """Whether mutual TLS is taken at ports that are not declared."""
        return self._takes_tls(0)

    @property
    def sniffed(self) -> frozenset[int]:
        """The ports of which it is found out what they speak."""
        return frozenset(port for port, speaks in self.ports.items() if speaks is Protocol.SNIFFED)

    def chains(self, listener: Any, *, tunnel: bool = False) -> None:
        """Puts on a listener what connections to each port meet; `tunnel`: it is behind a tunnel."""
        said = self._peers.ports(self.client.namespace, self.client.label_map) if self.place.netns else ()
        for port in sorted({*self.ports, *said}):
            speaks = self.ports.get(port, Protocol.TCP)
            cluster = f"inbound|{port}||" if port in self.ports else PASSTHROUGH
            wanted = _behind_tunnel(speaks) if tunnel else _chains(self._mode(port), speaks)
            for each in wanted:
                self._mark(self._add(listener, port, each, cluster, tunnel=tunnel), port)
        if self.place.netns:
            for each in _behind_tunnel(Protocol.TCP) if tunnel else _chains(self._mode(0), Protocol.TCP):
                self._mark(self._add(listener, 0, each, PASSTHROUGH, tunnel=tunnel), 0)

    @property
    def _peers(self) -> Any:
        return self.graph.peer_authentications

    def _takes_tls(self, port: int) -> bool:
        return self._mode(port) is not MutualTLSMode.DISABLE

    def _mode(self, port: int) -> MutualTLSMode:
        said = self._peers.of_port(self.client.namespace, self.client.label_map, port).mode
        # Nobody has a certificate; STRICT stays what it is, so that nothing is served that must not be.
        if said is MutualTLSMode.PERMISSIVE and not self.roots:
            return MutualTLSMode.DISABLE
        return MutualTLSMode(said)

    def _mark(self, chain: Any, port: int) -> None:
        # Not on the listener: one of which only chains change keeps its other connections.
        decided = self._peers.of_port(self.client.namespace, self.client.label_map, port)
        if decided.document is not None:
            mark_document(chain, decided.document, spell(decided.path), *decided.path)

    def _add(self, listener: Any, port: int, said: _Chain, cluster: str, *, tunnel: bool) -> Any:
        made = listener.filter_chains.add()
        match = made.filter_chain_match
        if port:
            match.destination_port.value = port
        match.transport_protocol = said.transport
        match.application_protocols.extend(said.protocols)
        if said.ends_tls:
            put_socket(made.transport_socket, self._tls_of(http=said.http))
            made.transport_socket_connect_timeout.CopyFrom(pb.duration(HANDSHAKE_SECONDS))
        if said.http:
            manager = pb.pack(self._manager(port, listener, tunnel=tunnel))
            made.filters.add(name=_MANAGER, typed_config=manager)
            return made
        for name, config in connection_filters(
            self.graph, self.client.namespace, self.client.label_map
        ).filters:
            if tunnel and hasattr(config, "shadow_rules"):
                behind_tunnel(config)
            made.filters.add(name=name, typed_config=pb.pack(config))
        proxy = pb.TcpProxy(stat_prefix=cluster, cluster=cluster)
        made.filters.add(name=TCP_PROXY, typed_config=pb.pack(proxy))
        return made

    def _tls_of(self, *, http: bool) -> Any:
        made = server_context(self.graph, Flavour.NODE, own_secret(self.client, self.graph.mesh))
        if not http:
            del made.common_tls_context.alpn_protocols[:]
        return made

    # Requests

    def _manager(self, port: int, listener: Any, *, tunnel: bool) -> Any:
        security = security_filters(self.graph, self.client.namespace, self.client.label_map)
        routes = self._routes(port, security.filters, tunnel=tunnel)
        made = pb.HttpConnectionManager(stat_prefix=f"inbound_{port}")
        made.rds.route_config_name = routes
        made.rds.config_source.ads.SetInParent()
        made.rds.config_source.resource_api_version = "V3"
        as_sidecar(made, self.graph.mesh)
        made.request_headers_timeout.CopyFrom(pb.duration(HEADERS_SECONDS))
        made.stream_idle_timeout.CopyFrom(pb.duration(0.0))
        first = made.http_protocol_options
        first.accept_http_10 = True
        first.default_host_for_http_10 = authority_of(self.registration.address, port)
        made.server_header_transformation = "PASS_THROUGH"
        made.upgrade_configs.add(upgrade_type="websocket")
        filters: list[tuple[str, Any]] = [(CORS, pb.Cors())]
        if tunnel:
            # What a caller says stays, as behind TLS that ends here; it is added to.
            made.forward_client_cert_details = "ALWAYS_FORWARD_ONLY"
            made.ClearField("set_current_client_cert_details")
            filters.insert(0, certificate_filter())
        for name, config in security.filters:
            if not _in_routes(name, config):
                if tunnel and name == RBAC:
                    behind_tunnel(config)
                filters.append((name, config))
        filters += [(name, pb.RBAC()) for name in DECIDING]
        for name, config in (*filters, (ROUTER, pb.Router())):
            made.http_filters.add(name=name, typed_config=pb.pack(config))
        told = self.graph.telemetries.told(self.client.namespace, self.client.label_map, WorkloadMode.SERVER)
        put_telemetry(made, listener, told, Flavour.NODE)
        return made

    def _routes(self, port: int, filters: Iterable[tuple[str, Any]], *, tunnel: bool) -> str:
        name = f"{'tunnelled' if tunnel else 'inbound'}|{port}||"
        if name in self.routes:
            return name
        made = self.routes[name] = pb.RouteConfiguration(name=name)
        made.validate_clusters.value = False
        crossed = served_routes(self.graph, self.client, port)
        made.virtual_hosts.extend(crossed)
        made.ignore_port_in_host_matching = bool(crossed)
        if not crossed:
            route = made.virtual_hosts.add(name=f"inbound|http|{port}", domains=["*"]).routes.add(
                name="default"
            )
            route.match.prefix = "/"
            route.route.cluster = f"inbound|{port}||"
        for host in made.virtual_hosts:
            for route in host.routes:
                route.route.timeout.CopyFrom(pb.duration(0.0))
                route.route.max_grpc_timeout.CopyFrom(pb.duration(0.0))
                again = route.route.retry_policy
                again.retry_on = "reset-before-request"
                again.num_retries.value = 2
        found: dict[str, Any] = {}
        for each, config in filters:
            if _in_routes(each, config):
                # A provider that can't be asked denies, too: its rules stand beside the others.
                found.setdefault(deciding(config), pb.RBAC()).MergeFrom(config)
        for each, config in found.items():
            if tunnel:
                behind_tunnel(config)
            said = pb.message("envoy.extensions.filters.http.rbac.v3.RBACPerRoute")(rbac=config)
            made.typed_per_filter_config[each].CopyFrom(pb.pack(said))
        return name

    # Where it leads

    def clusters(self) -> Iterator[Any]:
        """The Clusters of the application."""
        for port, speaks in sorted(self.ports.items()):
            yield self._application(port, speaks)
        if self.place.netns:
            made = pb.Cluster(name=PASSTHROUGH, type="ORIGINAL_DST", lb_policy="CLUSTER_PROVIDED")
            self._from_inside(made)
            yield made

    def _application(self, port: int, speaks: Protocol) -> Any:
        made = pb.Cluster(name=f"inbound|{port}||", type="STATIC")
        made.load_assignment.cluster_name = made.name
        where = made.load_assignment.endpoints.add().lb_endpoints.add().endpoint.address.socket_address
        where.address = self.registration.address if self.place.netns else APPLICATION_HOST
        where.port_value = self.place.app_port(port)
        options = pb.HttpProtocolOptions()
        if speaks is Protocol.HTTP2:
            options.explicit_http_config.http2_protocol_options.SetInParent()
        elif speaks is Protocol.SNIFFED:
            options.use_downstream_protocol_config.SetInParent()
        else:
            options.explicit_http_config.http_protocol_options.SetInParent()
        made.typed_extension_protocol_options[HTTP_OPTIONS].CopyFrom(pb.pack(options))
        self._from_inside(made)
        return made

    def _from_inside(self, made: Any) -> None:
        connection(made, None, self.graph.mesh)
        breakers(made, None, None, Flavour.NODE)
        if self.place.netns:
            source = made.upstream_bind_config.source_address
            source.address, source.port_value = APPLICATION, 0
            source.network_namespace_filepath = self.place.netns


def _in_routes(name: str, config: Any) -> bool:
    """Whether it is a filter of rules that decide: those that only find out who else is asked do not."""
    return name == RBAC and deciding(config) != ""


def closed(listener: Any, port: int, *subnets: tuple[str, int]) -> None:
    """Connections to that port lead nowhere: it is the Envoy's own; `subnets`: of these addresses only, and
    port 0 for all ports that have no chain of their own.
    """
    made = listener.filter_chains.add(name=CLOSED)
    if port:
        made.filter_chain_match.destination_port.value = port
    for address, length in subnets:
        made.filter_chain_match.prefix_ranges.add(address_prefix=address).prefix_len.value = length
    proxy = pb.TcpProxy(stat_prefix=BLACK_HOLE_CLUSTER, cluster=BLACK_HOLE_CLUSTER)
    made.filters.add(name=TCP_PROXY, typed_config=pb.pack(proxy))
