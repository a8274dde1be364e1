"""What an Envoy at the edge is sent: a listener for each port of its Gateways, and the routes of HTTP.

Rules (Istio):

- A port of HTTP has one route configuration for all its servers, `http.<port>`; each server of HTTPS a filter
  chain for its names (SNI) and a configuration of its own, `https.<port>.<port name>.<gateway>.<namespace>`.
  Of a server with `bind` the name ends with it.
- A VirtualService has of a server the hosts that both name. Several for one host are merged, the oldest
  first; what takes every request comes last. A host that nobody has is answered 404.
- TLS that is passed through follows `tls` rules, TLS and TCP that end here the `tcp` rules, of the first
  VirtualService that has one for it.
- `httpsRedirect` answers every request for the server's hosts with 301: those that it names, and those of the
  VirtualServices bound to its Gateway. A host of another Gateway is not redirected.
- It listens at the port of the Gateway, unless the agent names another, or a Service of Kubernetes that
  selects the gateway has a target port for it.
- A port is one gateway's alone, unless it says that it shares; connections are dealt to its threads evenly.
- Requests come from strangers: what they say of themselves is not believed (`edge.py`).
"""

from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from typing import Any

from meshlib.control.compile.clusters import EDGE_BUFFER_BYTES
from meshlib.control.compile.context import Context
from meshlib.control.compile.edge import edge_manager
from meshlib.control.compile.inbound import TLS_INSPECTOR
from meshlib.control.compile.match import is_catch_all
from meshlib.control.compile.provenance import mark_document, mark_policies, mark_skipped
from meshlib.control.compile.routes import routes_for, routes_of, virtual_host
from meshlib.control.compile.secrets import put_socket
from meshlib.control.compile.security import connection_filters, security_filters, sources_of
from meshlib.control.compile.servertls import asked, server_tls
from meshlib.control.compile.tcp import Chains, clusters_in
from meshlib.control.compile.telemetry import put_telemetry
from meshlib.control.graph.delegates import Skipped
from meshlib.control.graph.gateways import ANYWHERE, UNIX, Opened, Served, Speaks
from meshlib.control.graph.graph import Graph
from meshlib.control.graph.scope import Scope
from meshlib.control.graph.telemetries import Told
from meshlib.control.graph.virtualservices import VirtualService
from meshlib.control.istio.gateway import ServerTLSMode
from meshlib.xds import pb
from meshlib.xds.node import Client, Flavour

EVERYWHERE = "::"
"""That of IPv6 takes IPv4, too."""
HANDSHAKE_SECONDS = 15.0
_MANAGER = "envoy.filters.network.http_connection_manager"
_INSPECTOR = "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector"


def inputs(graph: Graph) -> tuple[object, ...]:
    """All of the graph that a gateway is made from; a server that joins is none of it."""
    return (
        graph.mesh,
        graph.virtual_services,
        graph.destination_rules,
        graph.gateways,
        graph.policies,
        graph.telemetries,
        graph.registry.services,
        tuple(sorted((str(source), keys) for source, keys in graph.keys.items())),
    )


class Edge:
    """All of one gateway's listeners and routes."""

    def __init__(self, scope: Scope, client: Client, told: Told, *, keys: bool) -> None:
        """`keys`: it may have those of Secrets."""
        self._scope, self._client, self._told, self._keys = scope, client, told, keys
        self.listeners: list[Any] = []
        self.routes: list[Any] = []
        self.clusters: dict[str, None] = {}
        """Those that connections and those who are asked need; of requests `routes` say it."""
        self.secrets: dict[str, None] = {}
        """Those of the control service that servers show, or check their callers by."""
        self.left_out: list[Skipped] = []
        """Servers that are not served, and why."""
        address = client.bind or ANYWHERE
        for port in scope.graph.gateways.opened(client.label_map, address, self._own_port):
            listener = self._listener(port)
            skipped = [Skipped(one.source, reason) for one, reason in port.skipped]
            self.left_out += skipped
            if listener.filter_chains:
                mark_skipped(listener, skipped)
                self.listeners.append(listener)

    def _own_port(self, port: int) -> int:
        """Where it listens for a port of a Gateway."""
        said = dict(self._client.ports).get(port)
        if said is not None:
            return said
        labels = self._client.label_map
        for service in self._scope.services():
            own = service.kubernetes and service.namespace == self._client.namespace
            selects = service.selector if own else None
            if selects and all(labels.get(name) == value for name, value in selects.items()):
                found = service.port(port)
                if found is not None and isinstance(found.target, int):
                    return found.target
        return port

    def _listener(self, opened: Opened) -> Any:
        address, port = opened.address, opened.own_port
        name = f"{address}_{opened.port}"
        made = pb.Listener(name=name, traffic_direction="OUTBOUND")
        if address.startswith(UNIX):
            made.address.pipe.path = address.removeprefix(UNIX)
        else:
            made.address.socket_address.address = address
            made.address.socket_address.port_value = port
            made.address.socket_address.ipv4_compat = address == EVERYWHERE
            if not self._client.reuse_port:
                # Else the kernel lets a second gateway of this user have the port, and deals connections out.
                made.enable_reuse_port.value = False
                made.connection_balance_config.exact_balance.SetInParent()
        made.per_connection_buffer_limit_bytes.value = EDGE_BUFFER_BYTES
        first = opened.served[0]
        mark_document(made, first.document, f"spec.servers[{first.number}]", "spec", "servers", first.number)
        match opened.speaks:
            case Speaks.HTTP:
                self._requests(
                    made.filter_chains.add(), made, _named("http", opened.port, opened.bind), opened.served
                )
            case Speaks.TLS:
                self._tls(made, opened)
            case Speaks.TCP:
                made.filter_chains.extend(self._connections(first))
        self.clusters.update(dict.fromkeys(clusters_in(made)))
        return made

    # Requests

    def _requests(self, chain: Any, listener: Any, routes: str, served: Sequence[Served]) -> None:
        """Puts a connection manager on a chain, and makes its routes."""
        security = self._security
        manager = edge_manager(routes, security, self._scope.graph.mesh)
        put_telemetry(manager, listener, self._told, Flavour.GATEWAY)
        mark_policies(listener, sources_of(self._scope.graph, self._client.namespace, self._client.label_map))
        chain.filters.add(name=_MANAGER, typed_config=pb.pack(manager))
        self.clusters.update(dict.fromkeys(security.clusters))
        self.routes.append(self._routes(routes, served))

    @cached_property
    def _security(self) -> Any:
        who = (self._client.namespace, self._client.label_map)
        return security_filters(self._scope.graph, *who, edge=True)

    def _routes(self, name: str, served: Sequence[Served]) -> Any:
        port = served[0].port
        hosts: dict[str, Any] = {}
        skipped: dict[str, list[Skipped]] = {}
        for one in served:
            context = self._context(one)
            covered = dict.fromkeys(host for _, host in one.hosts)
            for virtual in self._bound(one):
                reasons: list[Skipped] = []
                routes = routes_of(virtual, context, reasons)
                for host in one.shared(virtual.hosts, virtual.document.namespace) if routes else ():
                    self._host(hosts, host, port).routes.extend(routes)
                    covered[host] = None
                    skipped.setdefault(host, []).extend(reasons)
            if one.server.tls is not None and one.server.tls.https_redirect and one.speaks is Speaks.HTTP:
                for host in covered:
                    self._host(hosts, host, port).require_tls = "ALL"
        made = routes_for(name, Context(self._scope, self._client, port))
        for host, found in hosts.items():
            routes = sorted(found.routes, key=lambda route: is_catch_all(route.match))
            del found.routes[:]
            found.routes.extend(routes)
            mark_skipped(found, skipped.get(host, ()))
            made.virtual_hosts.append(found)
        if not hosts:
            made.virtual_hosts.append(virtual_host(f"blackhole:{port}", ["*"]))
        return made

    def _host(self, hosts: dict[str, Any], host: str, port: int) -> Any:
        if host not in hosts:
            hosts[host] = virtual_host(f"{host}:{port}", [host])
        return hosts[host]

    def _context(self, served: Served) -> Context:
        return Context(self._scope, self._client, served.port, gateway=served.key)

    def _bound(self, served: Served) -> Iterator[VirtualService]:
        return self._scope.graph.virtual_services.bound(served.key, self._client.namespace)

    # Connections

    def _tls(self, listener: Any, opened: Opened) -> None:
        taken: set[str] = set()
        for one in opened.served:
            names = sorted(host for _, host in one.hosts)
            if one.passes_through:
                chains = self._connections(one)
            elif one.of_requests:
                chains = [pb.FilterChain(name=".".join(one.key))]
                who = (one.port_name, one.document.name, one.document.namespace)
                routes = _named("https", one.port, *who, one.server.bind)
                self._requests(chains[0], listener, routes, [one])
            else:
                chains = self._connections(one)
            for chain in chains:
                if not one.passes_through:
                    self._end_tls(chain, one, names)
                wanted = list(chain.filter_chain_match.server_names)
                ranges = str(chain.filter_chain_match.prefix_ranges)
                free = [name for name in wanted or [""] if f"{name} {ranges}" not in taken]
                taken.update(f"{name} {ranges}" for name in free)
                if not free:
                    continue
                del chain.filter_chain_match.server_names[:]
                chain.filter_chain_match.server_names.extend(name for name in free if name)
                chain.transport_socket_connect_timeout.CopyFrom(pb.duration(HANDSHAKE_SECONDS))
                listener.filter_chains.append(chain)
        inspector = pb.pack(pb.message(_INSPECTOR)())
        listener.listener_filters.add(name=TLS_INSPECTOR, typed_config=inspector)

    def _end_tls(self, chain: Any, served: Served, names: list[str]) -> None:
        """TLS ends here, for these names."""
        said = served.server.tls
        assert said is not None  # noqa: S101 - it is refused otherwise
        del chain.filter_chain_match.server_names[:]
        if "*" not in names:
            chain.filter_chain_match.server_names.extend(names)
        put_socket(chain.transport_socket, server_tls(said, requests=served.of_requests, keys=self._keys))
        self.secrets.update(dict.fromkeys(asked(said)))
        place = ("spec", "servers", served.number)
        mark_document(chain, served.document, f"spec.servers[{served.number}]", *place)

    def _connections(self, served: Served) -> list[Any]:
        """The chains of rules of connections: `tls` where it is passed through, else the first `tcp`."""
        tls = served.server.tls
        if tls is not None and tls.mode is ServerTLSMode.AUTO_PASSTHROUGH:
            return []
        graph, client = self._scope.graph, self._client
        context = self._context(served)
        security = connection_filters(graph, client.namespace, client.label_map)
        self.clusters.update(dict.fromkeys(security.clusters))
        chains = Chains(context, self._told, before=security.filters)
        for virtual in self._bound(served):
            place = virtual.document.namespace
            if not any(served.shared(virtual.hosts, place)):
                continue
            if served.passes_through:
                chains.tls(virtual.document, partial(served.serves, namespace=place))
            elif chains.tcp(virtual.document):
                break
        return chains.made


def _named(*parts: str | int) -> str:
    """A route configuration's name, as Istio has it."""
    return ".".join(str(part) for part in parts if part != "")
