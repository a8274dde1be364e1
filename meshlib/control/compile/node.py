"""What a node's Envoy is sent: for each workload that is registered as its own all that a sidecar of it
would be.

Rules:

- When a workload is registered its listeners come with the next push, when it leaves they go.
- Each workload has clusters of its own: it shows its own certificate.
- A workload in a network namespace is captured there, both ways (`captured.py`, `served.py`), takes HBONE
  at its port 15008 (`hbone.py`), and has a name server. One without is called at the address that it
  registered, and has an HTTP proxy if it wants one.
- What is read of the documents is read again only when they change; a server that joins costs its
  endpoints.
"""

import weakref
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any

from meshlib.control.compile import bounds, captured, dns, hbone, tunnelled
from meshlib.control.compile.compiling import Compiling
from meshlib.control.compile.context import Context
from meshlib.control.compile.gateway import inputs
from meshlib.control.compile.memo import Key, Memo
from meshlib.control.compile.mtls import trust_domains
from meshlib.control.compile.nameserver import nameserver
from meshlib.control.compile.owned import owned
from meshlib.control.compile.routes import routes_for
from meshlib.control.compile.secrets import own_secret, roots_secret
from meshlib.control.compile.security import connection_filters, security_filters
from meshlib.control.compile.served import Served, closed
from meshlib.control.compile.vips import allocated, own_addresses
from meshlib.control.graph import Graph
from meshlib.control.graph.hosts import is_address, is_wildcard
from meshlib.control.graph.scope import HTTP_PORT
from meshlib.control.registration import Place, Registration
from meshlib.control.registry import Service
from meshlib.xds import pb
from meshlib.xds.kinds import Kind
from meshlib.xds.names import HBONE_PORT, INBOUND_PORT, PASSTHROUGH_CLUSTER, ROOTS_SECRET
from meshlib.xds.node import Client, Flavour
from meshlib.xds.snapshot import Resource

_Cluster = tuple[tuple[Resource, ...], tuple[Key, ...]]
"""The resources of a cluster, and under which keys what they are made of is kept."""
_ANYWHERE = "0.0.0.0"  # noqa: S104 - in the namespace of the workload


def _host(cluster: str) -> str:
    return cluster.rpartition("|")[2]


def of_node(graph: Graph, memo: Memo, asking: Client, roots_pem: bytes) -> Iterator[Resource]:
    """Everything for the Envoy of a node."""
    services = graph.registry.services
    addresses = memo.get(
        ("addresses",), lambda then: then is services, lambda: (services, allocated(services))
    )
    ends = Ends(graph)
    found = tuple(behind(graph, asking.node))
    runtime = bounds.runtime((place for _, place in found), asking.max_connections)
    yield Resource.of(Kind.RUNTIME, runtime.name, runtime)
    for registration, place in found:
        client = Client(
            Flavour.NODE,
            namespace=registration.namespace,
            service_account=registration.service_account,
            labels=registration.labels,
            locality=registration.locality,
        )
        yield from Behind(graph, memo, client, roots_pem, registration, place, addresses).resources(ends)
    if roots_pem:
        yield Resource.of(Kind.SECRET, ROOTS_SECRET, roots_secret(roots_pem))


class Ends:
    """The endpoints of every host, and for which of them others were known before."""

    def __init__(self, graph: Graph) -> None:
        registry = graph.registry
        self.of: dict[str, tuple[object, ...]] = {
            host: tuple(registry.endpoints(one, port) for one in services for port in one.ports)
            for host, services in registry.services.items()
        }
        self._unlike: weakref.WeakKeyDictionary[Ends, frozenset[str]] = weakref.WeakKeyDictionary()

    def unlike(self, before: "Ends") -> frozenset[str]:
        """The hosts whose endpoints were others."""
        found = self._unlike.get(before)
        if found is None:
            hosts = self.of.keys() | before.of.keys()
            found = frozenset(host for host in hosts if self.of.get(host) != before.of.get(host))
            self._unlike[before] = found
        return found


def behind(graph: Graph, node: str) -> Iterable[tuple[Registration, Place]]:
    """The workloads of a node, by uid."""
    found: dict[str, tuple[Registration, Place]] = {}
    for one in graph.registry.registrations:
        if node and one.node == node and one.place is not None:
            found[one.place.uid] = one, one.place
    return [found[uid] for uid in sorted(found)]


class Behind(Compiling):
    """One workload behind a node's Envoy."""

    def __init__(
        self,
        graph: Graph,
        memo: Memo,
        client: Client,
        roots_pem: bytes,
        registration: Registration,
        place: Place,
        addresses: dict[str, str],
    ) -> None:
        super().__init__(graph, memo, client, roots_pem)
        self.registration, self.place, self.addresses = registration, place, addresses
        self.graph = graph

    def resources(self, ends: Ends) -> Iterator[Resource]:
        """All of it, with names of its own."""
        static, wanted = self._unless_read()
        for found, _ in self._clusters(static, wanted, ends).values():
            yield from found
        yield from static

    def _clusters(self, static: object, wanted: Iterable[str], ends: Ends) -> dict[str, _Cluster]:
        """The resources of each cluster; of those whose endpoints are the same they are not looked at."""
        kept: dict[str, _Cluster] = {}

        def holds(then: Any) -> bool:
            same, before, found = then
            if same is not static:
                return False
            others = ends.unlike(before)
            kept.update((name, one) for name, one in found.items() if _host(name) not in others)
            for _, keys in kept.values():
                self.memo.keep(keys)
            return len(kept) == len(found)

        def make() -> tuple[object, dict[str, _Cluster]]:
            found = {name: kept.get(name) or self._cluster_noted(name) for name in wanted}
            return (static, ends, found), found

        key = ("clusters", self.registration.node, self.place.uid)
        made: dict[str, _Cluster] = self.memo.get(key, holds, make)
        return made

    def _cluster_noted(self, name: str) -> _Cluster:
        return self.memo.noting(lambda: tuple(self._owned(resource) for resource in self.cluster(name)))

    def _owned(self, resource: Resource) -> Resource:
        kind, name, uid = resource.kind, f"{self.place.uid}/{resource.name}", self.place.uid

        def make() -> tuple[object, Resource]:
            message = resource.message()
            if not self.place.netns and kind is Kind.CLUSTER and message.type == pb.Cluster.ORIGINAL_DST:
                # Where a request to the proxy was going only its host says.
                message.ClearField("type")
                dns.dynamic(message, self.graph.mesh)
            return resource, Resource.of(kind, name, owned(kind, message, uid))

        found: Resource = self.memo.get(
            ("owned", self.place, kind, name), lambda then: bool(then == resource), make
        )
        return found

    def _unless_read(self) -> tuple[tuple[Resource, ...], tuple[str, ...]]:
        """What does not depend on who else serves, and the clusters that are needed."""
        peers, roots = self.graph.peer_authentications, bool(self.roots_pem)
        read = (*inputs(self.graph), self.graph.sidecars, peers, roots, self.registration)

        def make() -> tuple[object, tuple[tuple[Resource, ...], tuple[str, ...]]]:
            found = [self._named(kind, message) for kind, message in self._messages()]
            return read, (tuple(found), tuple(self._wanted()))

        def holds(then: Any) -> bool:
            *same, keys, sidecars, peers, roots, registration = zip(then, read, strict=True)
            return all(one is other for one, other in (*same, sidecars, peers)) and all(
                one == other for one, other in (keys, roots, registration)
            )

        made: tuple[tuple[Resource, ...], tuple[str, ...]] = self.memo.get(
            ("behind", self.registration.node, self.place.uid), holds, make
        )
        return made

    def _named(self, kind: Kind, message: Any) -> Resource:
        made = owned(kind, message, self.place.uid)
        return Resource.of(kind, made.name, made)

    def _wanted(self) -> dict[str, None]:
        found = {PASSTHROUGH_CLUSTER: None}
        for port, services in self._ports.items():
            for service in services:
                found.update(dict.fromkeys(self._names(service, port)))
        client = self.client
        for filters in (security_filters, connection_filters):
            found.update(dict.fromkeys(filters(self.graph, client.namespace, client.label_map).clusters))
        return found

    @cached_property
    def _ports(self) -> Any:
        return captured.services_by_port(self.scope)

    def _messages(self) -> Iterator[tuple[Kind, Any]]:
        """All that is the workload's own: clusters first."""
        served = Served(self.graph, self.client, self.registration, self.place, bool(self.roots_pem))
        own, domains = own_secret(self.client, self.graph.mesh), trust_domains(self.graph.mesh)
        listeners = [self._inbound(served)]
        for cluster in served.clusters():
            yield Kind.CLUSTER, cluster
        if self.roots_pem:
            yield Kind.CLUSTER, hbone.hbone_cluster(own, domains)
            listeners.append(hbone.connect_listener())
        if self.roots_pem and self.place.netns:
            yield Kind.CLUSTER, hbone.inside_cluster(hbone.TUNNELLED, hbone.TUNNELLED)
            inner = pb.Listener(name=hbone.TUNNELLED, traffic_direction="INBOUND")
            inner.internal_listener.SetInParent()
            captured.inspect(inner, "original_dst", "OriginalDst")
            if served.sniffed:
                captured.inspect(inner, "http_inspector", "HttpInspector", only=served.sniffed)
                captured.detect(inner, self.graph.mesh)
            for port in tunnelled.OWN_PORTS:
                closed(inner, port)
            served.chains(inner, tunnel=True)
            outer = tunnelled.hbone_listener(self.registration.address, own, domains)
            self._put(outer, HBONE_PORT)
            listeners += [inner, outer]
            rules = connection_filters(self.graph, self.client.namespace, self.client.label_map)
            requests = [port for port, speaks in served.ports.items() if speaks.routed]
            yield Kind.ROUTES, tunnelled.hbone_routes(self.registration.address, requests, rules.filters)
        for listener in self._outbound():
            if listener.name.startswith(captured.INSPECTED):
                yield Kind.CLUSTER, hbone.inside_cluster(listener.name, listener.name)
            listeners.append(listener)
        for listener in listeners:
            yield Kind.LISTENER, listener
        for routes in served.routes.values():
            yield Kind.ROUTES, routes
        yield from ((Kind.ROUTES, routes) for routes in self._all_routes())

    # Inbound

    def _put(self, listener: Any, port: int) -> None:
        socket = listener.address.socket_address
        socket.address, socket.port_value = _ANYWHERE, port
        socket.network_namespace_filepath = self.place.netns

    def _inbound(self, served: Served) -> Any:
        made = pb.Listener(name=bounds.INBOUND, traffic_direction="INBOUND")
        if self.place.netns:
            self._put(made, INBOUND_PORT)
            captured.inspect(made, "original_dst", "OriginalDst")
            for port in tunnelled.OWN_PORTS:
                closed(made, port)
        else:
            first, *more = sorted(served.ports)
            sockets = [made.address, *(made.additional_addresses.add().address for _ in more)]
            for address, port in zip(sockets, (first, *more), strict=True):
                address.socket_address.address = self.registration.address
                address.socket_address.port_value = port
        if served.may_pass_tls or not self.place.netns:
            captured.inspect(made, "tls_inspector", "TlsInspector", but=served.quiet_until_served)
        elif served.needs_tls_inspector:
            captured.inspect(made, "tls_inspector", "TlsInspector", only=served.needs_tls_inspector)
        if served.sniffed:
            captured.inspect(made, "http_inspector", "HttpInspector", only=served.sniffed)
        captured.detect(made, self.graph.mesh)
        served.chains(made)
        return made

    # Outbound

    def _outbound(self) -> Iterator[Any]:
        netns = self.place.netns
        if netns:
            ports, told = self._ports, self._told
            yield from captured.captured_listeners(self.scope, self.client, told, ports, self._where, netns)
            yield nameserver(self._lookups(), netns)
        elif self.place.proxy_port:
            yield captured.proxy_listener(self.scope, self._told, self.place.proxy_port)

    def _where(self, service: Service) -> Sequence[str]:
        """The addresses and subnets by which a captured connection is the service's."""
        return [*(f"{address}/32" for address in self._addresses_of(service)), *service.subnets]

    def _addresses_of(self, service: Service) -> Sequence[str]:
        own = own_addresses(service)
        given = self.addresses.get(service.host, "") if not own else ""
        return own or ((given,) if given else ())

    def _lookups(self) -> Iterator[tuple[str, Sequence[str]]]:
        taken: set[str] = set()
        for service in self.scope.services():
            addresses = self._addresses_of(service)
            if is_wildcard(service.host) or not addresses:
                continue
            for name in self._spelled(service):
                if name not in taken:
                    taken.add(name)
                    yield name, addresses

    def _spelled(self, service: Service) -> Iterator[str]:
        every = super()._domains(service.host, service, Context(self.scope, self.client, 0))
        for name in every:
            if not (name.endswith(".") or name.startswith(("*", "[")) or is_address(name)):
                yield name

    def _domains(self, host: str, service: Service | None, context: Context) -> Iterator[str]:
        yield from super()._domains(host, service, context)
        if service is not None and not own_addresses(service) and host in self.addresses and self.place.netns:
            yield self.addresses[host]

    def _all_routes(self) -> Iterator[Any]:
        if self.place.netns:
            for port, services in self._ports.items():
                here = captured.routed(services, port)
                if here or port == HTTP_PORT:
                    yield self._port_routes(port, here).message()
        elif self.place.proxy_port:
            yield self._proxied()

    def _proxied(self) -> Any:
        """The routes of all ports as one: a domain says its port, but for 80."""
        made = routes_for(captured.PROXY, Context(self.scope, self.client, HTTP_PORT))
        made.ignore_port_in_host_matching = False
        for port, services in self._ports.items():
            here = captured.routed(services, port)
            for host in self._port_routes(port, here).message().virtual_hosts if here else ():
                if list(host.domains) == ["*"]:
                    continue
                domains = [f"{domain}:{port}" for domain in host.domains]
                if port == HTTP_PORT:
                    domains = [*host.domains, *domains]
                del host.domains[:]
                host.domains.extend(domains)
                made.virtual_hosts.append(host)
        made.virtual_hosts.append(self._unknown("", Context(self.scope, self.client, HTTP_PORT)))
        return made
