"""One client's resources, as `compiler.py` says."""

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from meshlib.control.compile import clusters, dns, listeners
from meshlib.control.compile.context import Context
from meshlib.control.compile.credentials import credentials, missing
from meshlib.control.compile.endpoints import load_assignment
from meshlib.control.compile.gateway import Edge, inputs
from meshlib.control.compile.inbound import inbound_listener
from meshlib.control.compile.memo import Key, Memo
from meshlib.control.compile.mtls import Secured, is_beyond
from meshlib.control.compile.routes import applies, fill, fill_unknown, routes_for, virtual_host
from meshlib.control.compile.secrets import roots_secret
from meshlib.control.compile.tcp import Chains, addresses_of, clusters_in
from meshlib.control.graph import Graph
from meshlib.control.graph.delegates import Skipped
from meshlib.control.graph.hosts import is_wildcard, spellings
from meshlib.control.graph.scope import HTTP_PORT, Called, Scope
from meshlib.control.graph.telemetries import Told
from meshlib.control.graph.virtualservices import VirtualService
from meshlib.control.istio.sidecar import OutboundTrafficMode
from meshlib.control.istio.telemetry import WorkloadMode
from meshlib.control.registry import Protocol, Service
from meshlib.xds.kinds import Kind
from meshlib.xds.names import (
    ALLOW_ANY,
    BLACK_HOLE_CLUSTER,
    BLOCK_ALL,
    PASSTHROUGH_CLUSTER,
    ROOTS_SECRET,
    ClusterName,
    cluster_name,
    inbound_port,
    split_authority,
)
from meshlib.xds.node import Client, Flavour
from meshlib.xds.snapshot import Resource


@dataclass(frozen=True, slots=True)
class _Made:
    """What an Envoy at the edge is sent of its own."""

    resources: tuple[Resource, ...]
    clusters: tuple[str, ...]
    secrets: tuple[str, ...]
    left_out: tuple[Skipped, ...]


class Compiling:
    """All that one client can be sent. It is for one compilation."""

    def __init__(
        self,
        graph: Graph,
        memo: Memo,
        client: Client,
        roots_pem: bytes,
        gateways: Collection[tuple[str, str]] = (),
    ) -> None:
        self.roots_pem = roots_pem
        self.scope: Scope = graph.scope(client)
        self.memo = memo
        self.client = client
        sidecar = self.scope.sidecar
        self.base = (graph.mesh_fingerprint, sidecar.fingerprint if sidecar else "")
        account = client.service_account if client.flavour is Flavour.NODE else ""
        self.who = (client.flavour, client.namespace, client.labels, account, client.hasty)
        self.may_have_keys = (client.namespace, client.service_account) in gateways

    @cached_property
    def _told(self) -> Told:
        """What is told of the client's own requests."""
        client, told = self.client, self.scope.graph.telemetries
        return told.told(client.namespace, client.label_map, WorkloadMode.CLIENT)

    # By name

    def closure(self, names: Iterable[str]) -> Iterator[Resource]:
        """The listeners of these names and all that they lead to."""
        seen: set[str] = set()
        wanted: dict[str, None] = {}
        for name in names:
            served = inbound_port(name)
            if served is not None:
                listener, asked = inbound_listener(
                    name, served, self.scope.graph, self.client, roots=bool(self.roots_pem)
                )
                wanted.update(dict.fromkeys(asked))
                yield Resource.of(Kind.LISTENER, name, listener)
                continue
            host, port = split_authority(name, HTTP_PORT)
            called = self._called(host, port)
            routes = cluster_name(port, "", called.host)
            listener, led = self._listener(name, routes, called, port)
            yield listener
            wanted.update(dict.fromkeys(led))
            if routes not in seen:
                seen.add(routes)
                resource, named = self._routes(routes, called, host, port)
                yield resource
                wanted.update(dict.fromkeys(named))
        for cluster in wanted:
            yield from self.cluster(cluster)

    def _called(self, host: str, port: int) -> Called:
        """The closest meaning of a host that says something to this client."""
        context = Context(self.scope, self.client, port)
        for called in self.scope.meanings(host, port):
            service = called.service
            if service is None:
                if called.virtual is not None and applies(called.virtual, context):
                    return called
                continue
            if self.client.flavour is Flavour.GRPC and is_wildcard(service.host):
                break
            found = service.port(port)
            return called if found is None or found.protocol.routed else Called(called.host, service)
        return Called(host)

    def _listener(
        self, name: str, routes: str, called: Called, port: int
    ) -> tuple[Resource, tuple[str, ...]]:
        """A listener, and the clusters to which it leads without routes."""
        flavour, told = self.client.flavour, self._told
        if flavour is Flavour.MESHLIB and _takes_connections(called, port):
            return self._connection_listener(name, routes, called, port)

        def make() -> Resource:
            return Resource.of(Kind.LISTENER, name, listeners.api_listener(name, routes, told, flavour))

        return self._kept(("listener", flavour, name, told), routes, make), ()

    def _connection_listener(
        self, name: str, routes: str, called: Called, port: int
    ) -> tuple[Resource, tuple[str, ...]]:
        context, service, told = Context(self.scope, self.client, port), called.service, self._told
        virtual = self.scope.connecting(service.host) if service else None
        inputs = (
            self.base,
            routes,
            virtual.fingerprint if virtual else None,
            service.fingerprint if service else None,
        )

        def make() -> tuple[object, tuple[Resource, tuple[str, ...]]]:
            chains = Chains(context)
            if service is not None:
                chains.add(service)
            made = listeners.connection_listener(name, port, addresses_of(service), routes, told, chains)
            # The library needs no cluster to know that a connection is refused.
            led = dict.fromkeys(one for one in clusters_in(made) if one != BLACK_HOLE_CLUSTER)
            return (inputs, context.reads), (Resource.of(Kind.LISTENER, name, made), tuple(led))

        def holds(then: Any) -> bool:
            return then[0] == inputs and context.still_true(then[1])

        found: tuple[Resource, tuple[str, ...]] = self.memo.get(
            ("connections", *self.who, name, told), holds, make
        )
        return found

    def _kept(self, key: Key, inputs: object, make: Callable[[], Resource]) -> Resource:
        """A resource of exactly these inputs, made if it is not there yet."""
        found: Resource = self.memo.get(key, lambda then: bool(then == inputs), lambda: (inputs, make()))
        return found

    def _routes(self, name: str, called: Called, host: str, port: int) -> tuple[Resource, tuple[str, ...]]:
        context = Context(self.scope, self.client, port)
        virtual = called.virtual.fingerprint if called.virtual else None
        inputs = (self.base, virtual, called.service.fingerprint if called.service else None)

        def make() -> tuple[object, tuple[Resource, tuple[str, ...]]]:
            made = routes_for(name, context)
            if called.service is None and called.virtual is None:
                made.virtual_hosts.append(self._unknown(host, context))
            else:
                made.virtual_hosts.append(self._host(called, context))
            resource = Resource.of(Kind.ROUTES, name, made)
            return (inputs, context.reads), (resource, tuple(named_clusters(made)))

        def holds(then: Any) -> bool:
            return then[0] == inputs and context.still_true(then[1])

        found: tuple[Resource, tuple[str, ...]] = self.memo.get(("routes", *self.who, name), holds, make)
        return found

    def _host(self, called: Called, context: Context) -> Any:
        service = called.service
        domains = list(self._domains(called.host, service, context))
        if context.grpc:
            domains += [f"{domain}:{context.port}" for domain in domains if ":" not in domain]
        made = virtual_host(f"{called.host}:{context.port}", domains)
        fill(made, called.virtual, service, context)
        return made

    def _unknown(self, host: str, context: Context) -> Any:
        blocked = self.scope.outbound is OutboundTrafficMode.REGISTRY_ONLY
        made = virtual_host(BLOCK_ALL if blocked else ALLOW_ANY, ["*"])
        fill_unknown(made, context)
        if context.grpc and not blocked and self.scope.egress_proxy is None:
            made.routes[0].route.cluster = cluster_name(context.port, "", host)
        return made

    def _domains(self, host: str, service: Service | None, context: Context) -> Iterator[str]:
        if service is None:
            if namespace := self._namespace_of(host):
                yield from spellings(host, namespace, self.scope.namespace, self.scope.domain)
            else:
                yield host
            return
        found = spellings(host, service.namespace, self.scope.namespace, self.scope.domain)
        every = list(dict.fromkeys((*found, *map(_bracketed, service.addresses))))
        for number, domain in enumerate(every):
            # A short spelling gives way to a service whose host is just that.
            other = context.service(domain) if number else None
            if other is not None and other.port(context.port) is not None:
                continue
            yield domain
            if service.kubernetes and service.headless and not domain[0].isdigit():
                yield f"*.{domain}"

    def _namespace_of(self, host: str) -> str:
        parts = host.split(".")
        return parts[1] if len(parts) > 2 and parts[2] == "svc" else ""

    # Clusters

    def cluster(self, name: str) -> Iterator[Resource]:
        """A cluster and its endpoints; nothing if there is no such cluster."""
        if name == PASSTHROUGH_CLUSTER:
            yield self._cluster(name, (), lambda: clusters.passthrough(self.scope))
            return
        if name == BLACK_HOLE_CLUSTER:
            yield self._cluster(name, (), lambda: clusters.black_hole(self.scope))
            yield Resource.of(Kind.ENDPOINTS, name, load_assignment(name, ()))
            return
        parsed = ClusterName.parse(name)
        if parsed is None:
            return
        found = clusters.find(parsed, self.scope)
        if found is None:
            if self.client.flavour is Flavour.GRPC and not parsed.subset and self._is_outside(parsed):
                yield self._cluster(name, (), lambda: clusters.by_name(parsed, self.scope))
            return
        if is_beyond(found.policy, self.client.flavour):
            yield self._cluster(name, found.fingerprint, lambda: clusters.out_of_reach(found, self.scope))
            yield Resource.of(Kind.ENDPOINTS, name, load_assignment(name, ()))
            return
        security = clusters.security_of(found, self.scope, self.client, roots=bool(self.roots_pem))
        inputs: tuple[object, ...] = (found.fingerprint, self.client.locality, security)
        if not found.by_discovery:
            endpoints = clusters.endpoints_of(found, self.scope, self.client.flavour)
            if not clusters.is_there(found, endpoints):
                return
            inputs = (*inputs, endpoints)
        yield self._cluster(name, inputs, lambda: clusters.cluster(found, self.scope, self.client, security))
        if clusters.is_discovered(found) or (found.by_discovery and self.client.flavour is Flavour.GRPC):
            yield self._endpoints(found, security)

    def _is_outside(self, name: ClusterName) -> bool:
        if self.scope.outbound is OutboundTrafficMode.REGISTRY_ONLY:
            return False
        return self._called(name.host, name.port).service is None

    def _cluster(self, name: str, inputs: object, build: Callable[[], Any]) -> Resource:
        key = ("cluster", *self.who, self.client.locality, name)
        return self._kept(key, (self.base, inputs), lambda: Resource.of(Kind.CLUSTER, name, build()))

    def _endpoints(self, found: clusters.Found, security: Secured | None) -> Resource:
        name = str(found.name)
        endpoints = clusters.endpoints_of(found, self.scope, self.client.flavour)
        tunnel = security.names if security is not None and security.tunnels else None
        inputs = (self.base, found.rule.fingerprint if found.rule else None, endpoints, tunnel)

        def make() -> Resource:
            groups = clusters.grouped(found, endpoints, self.scope, self.client)
            return Resource.of(Kind.ENDPOINTS, name, load_assignment(name, groups, tunnel))

        return self._kept(("endpoints", *self.who, self.client.locality, name), inputs, make)

    def secrets(self) -> Iterator[Resource]:
        """The mesh's roots, for those who ask for them."""
        if self.roots_pem and self.client.flavour is not Flavour.GRPC:
            yield Resource.of(Kind.SECRET, ROOTS_SECRET, roots_secret(self.roots_pem))

    # Everything

    def whole(self) -> Iterator[Resource]:
        """Everything that an Envoy of this client needs."""
        ports: dict[int, list[Service]] = {HTTP_PORT: []}
        connections: dict[int, list[Service]] = {}
        names: list[str] = [PASSTHROUGH_CLUSTER]
        for service in self.scope.services():
            for port in service.ports:
                if self.scope.sees_port(service, port.number) and port.protocol is not Protocol.UDP:
                    of_kind = ports if port.protocol.routed else connections
                    of_kind.setdefault(port.number, []).append(service)
                names += self._names(service, port.number)
        for name in names:
            yield from self.cluster(name)
        for number, services in sorted(ports.items()):
            mesh = self.scope.graph.mesh if dns.needs_filter(self.scope, services) else None
            listener = listeners.loopback_listener(number, self._told, mesh)
            yield Resource.of(Kind.LISTENER, listener.name, listener)
            yield self._port_routes(number, services)
        for number, services in sorted(connections.items()):
            if number not in ports:
                chains = Chains(Context(self.scope, self.client, number), self._told, shared=True)
                for service in services:
                    chains.add(service)
                listener = listeners.loopback_tcp_listener(number, chains)
                yield Resource.of(Kind.LISTENER, listener.name, listener)

    def edge(self) -> Iterator[Resource]:
        """Everything that an Envoy at the edge needs."""
        made, client = self._edge(), self.client
        for name in made.clusters:
            yield from self.cluster(name)
        yield from made.resources
        if self.roots_pem:
            found = credentials(self.scope.graph, client.namespace, made.secrets, keys=self.may_have_keys)
            for secret in found:
                yield Resource.of(Kind.SECRET, secret.name, secret)

    def notes(self, listeners: Iterable[str]) -> Iterator[str]:
        """What a client is not sent, and why: an Envoy at the edge, or gRPC's that asks for these."""
        if self.client.flavour is Flavour.GRPC:
            yield from self._beyond(listeners)
        elif self.client.flavour is Flavour.GATEWAY:
            yield from self._edge_notes()

    def _beyond(self, listeners: Iterable[str]) -> Iterator[str]:
        for resource in self.closure(sorted(listeners)):
            name = ClusterName.parse(resource.name) if resource.kind is Kind.CLUSTER else None
            found = clusters.find(name, self.scope) if name is not None else None
            if found is not None and is_beyond(found.policy, self.client.flavour):
                yield clusters.why_out_of_reach(found)

    def _edge_notes(self) -> Iterator[str]:
        made, client = self._edge(), self.client
        for one in made.left_out:
            yield f"{one.source}: the server is left out: {one.reason}"
        if self.roots_pem:
            yield from missing(self.scope.graph, client, made.secrets, keys=self.may_have_keys)

    def _edge(self) -> _Made:
        read = inputs(self.scope.graph)

        def make() -> tuple[object, _Made]:
            made = Edge(self.scope, self.client, self._told, keys=self.may_have_keys)
            wanted = dict(made.clusters)
            for routes in made.routes:
                wanted.update(named_clusters(routes))
            found = [Resource.of(Kind.LISTENER, one.name, one) for one in made.listeners]
            found += [Resource.of(Kind.ROUTES, one.name, one) for one in made.routes]
            return read, _Made(tuple(found), tuple(wanted), tuple(made.secrets), tuple(made.left_out))

        def holds(then: Any) -> bool:
            *same, keys = zip(then, read, strict=True)
            return all(one is other for one, other in same) and keys[0] == keys[1]

        key = ("edge", *self.who, self.may_have_keys, self.client.bind, self.client.ports)
        found: _Made = self.memo.get(key, holds, make)
        return found

    def _names(self, service: Service, port: int) -> Iterator[str]:
        yield cluster_name(port, "", service.host)
        rule = self.scope.rule(service.host, service.namespace)
        for subset in rule.subsets if rule else ():
            yield cluster_name(port, subset, service.host)

    def _port_routes(self, port: int, services: list[Service]) -> Resource:
        made = routes_for(str(port), Context(self.scope, self.client, port))
        taken: set[str] = set()
        for service in services:
            self._append(made, Called(service.host, service, self.scope.virtual(service.host)), port, taken)
        if port == HTTP_PORT:
            for host, virtual in sorted(self.scope.virtual_hosts(), key=_by_host):
                if host != "*" and not self.scope.means_services(host):
                    self._append(made, Called(host, None, virtual), port, taken)
        made.virtual_hosts.append(self._unknown("", Context(self.scope, self.client, port)))
        return Resource.of(Kind.ROUTES, str(port), made)

    def _append(self, made: Any, called: Called, port: int, taken: set[str]) -> None:
        context = Context(self.scope, self.client, port)
        virtual = called.virtual.fingerprint if called.virtual else None
        inputs = (self.base, virtual, called.service.fingerprint if called.service else None)

        def make() -> tuple[object, Any]:
            return (inputs, context.reads), self._host(called, context)

        def holds(then: Any) -> bool:
            return then[0] == inputs and context.still_true(then[1])

        host = self.memo.get(("host", *self.who, called.host, port), holds, make)
        if not host.routes or called.host in taken:
            return
        if taken.isdisjoint(host.domains):
            made.virtual_hosts.append(host)
        else:
            copy = made.virtual_hosts.add()
            copy.CopyFrom(host)
            del copy.domains[:]
            copy.domains.extend(domain for domain in host.domains if domain not in taken)
        taken.update(host.domains)


def _takes_connections(called: Called, port: int) -> bool:
    """Whether what is called is not said to speak HTTP."""
    if called.service is None:
        return called.virtual is None
    found = called.service.port(port)
    return found is None or found.protocol is Protocol.SNIFFED or not found.protocol.routed


def _by_host(entry: tuple[str, VirtualService]) -> str:
    return entry[0]


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def named_clusters(routes: Any) -> dict[str, None]:
    """The clusters that a RouteConfiguration names, in order."""
    found: dict[str, None] = {}
    for host in routes.virtual_hosts:
        for route in host.routes:
            if route.WhichOneof("action") != "route":
                continue
            if route.route.cluster:
                found[route.route.cluster] = None
            for cluster in route.route.weighted_clusters.clusters:
                found[cluster.name] = None
            for mirror in route.route.request_mirror_policies:
                found[mirror.cluster] = None
    return found
