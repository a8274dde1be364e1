"""Rules of connections (VirtualService `tls` and `tcp`) as an Envoy's filter chains with a TCP proxy.

Rules (Istio):

- At a port of TLS (`https`, `tls`) the `tls` rules hold, at any other that is not said to be HTTP the `tcp`
  rules. A port named for HTTP has rules of requests only.
- A match of `tls` is a chain for its names (SNI) and subnets; `*` is any name. The first of two that ask for
  the same is taken: Envoy refuses a listener with both.
- The matches of a `tcp` rule are one chain for all their subnets; the first without a subnet takes the rest.
- Ports, labels, namespace and gateways of a match must all hold; they are settled here. `sourceSubnet` is not
  looked at.
- Of several destinations those of weight 0 are left out. Idle time, longest time, hashing and a tunnel are
  those of the first destination's DestinationRule, of all its host; of one destination with a subset hashing
  and the tunnel are the subset's.
- What no chain takes goes where it was going, or nowhere: outboundTrafficPolicy.
- Where hosts share a listener (an Envoy's), a TLS service without a rule has the connections with its name.
"""

import ipaddress
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from meshlib.control.compile.accesslog import put_logs
from meshlib.control.compile.context import Context
from meshlib.control.compile.destination import cluster_of, outside
from meshlib.control.compile.match import mismatch
from meshlib.control.compile.provenance import config_path, mark_document
from meshlib.control.compile.tunnel import put_tunnel
from meshlib.control.graph.delegates import Skipped
from meshlib.control.graph.hosts import expand
from meshlib.control.graph.telemetries import Told
from meshlib.control.graph.virtualservices import MESH
from meshlib.control.istio.document import AnyDocument
from meshlib.control.istio.sidecar import OutboundTrafficMode
from meshlib.control.istio.virtualservice import (
    L4MatchAttributes,
    RouteDestination,
    TCPRoute,
    TLSMatchAttributes,
)
from meshlib.control.registry import Protocol, Service
from meshlib.xds import pb
from meshlib.xds.names import BLACK_HOLE_CLUSTER, ISTIO_METADATA, cluster_name

TCP_PROXY = "envoy.filters.network.tcp_proxy"
PASSTHROUGH_CHAIN = "PassthroughFilterChain"
BLOCKED_CHAIN = "BlackHoleFilterChain"

_Pair = tuple[str, str]
"""A subnet and a name; empty: any."""


class Chains:
    """The chains of a listener: of one host, or of several that share it."""

    def __init__(
        self,
        context: Context,
        told: Told | None = None,
        *,
        shared: bool = False,
        before: Sequence[tuple[str, Any]] = (),
    ) -> None:
        """`told`: what is logged of connections; None: nothing. `before`: name and configuration of the
        filters that see a connection first.
        """
        self.made: list[Any] = []
        self.skipped: list[Skipped] = []
        self._context, self._told, self._shared, self._before = context, told, shared, before
        self._taken: set[_Pair] = set()
        self._addresses: Sequence[str] = ()

    def add(self, service: Service, addresses: Sequence[str] = ()) -> None:
        """The chains of a service at the listener's port; `addresses`: of connections to these alone."""
        self._addresses = addresses
        port = service.port(self._context.port)
        virtual = self._context.scope.connecting(service.host)
        document = virtual.document if virtual is not None else None
        if port is not None and port.protocol is Protocol.TLS:
            routed = document is not None and self.tls(document)
        else:
            routed = document is not None and self.tcp(document)
        if not routed:
            named = port is not None and port.protocol is Protocol.TLS and not addresses
            self._default(service, named=named)

    def put(self, listener: Any) -> None:
        """All of them on an envoy.config.listener.v3.Listener, and what becomes of the rest."""
        listener.filter_chains.extend(self.made)
        if ("", "") not in self._taken:
            blocked = self._context.scope.outbound is OutboundTrafficMode.REGISTRY_ONLY
            cluster = BLACK_HOLE_CLUSTER if blocked else outside(self._context)
            rest = pb.FilterChain(name=BLOCKED_CHAIN if blocked else PASSTHROUGH_CHAIN)
            self._finish(rest, pb.TcpProxy(stat_prefix=cluster, cluster=cluster))
            listener.default_filter_chain.CopyFrom(rest)

    def tls(self, document: AnyDocument, serves: Callable[[str], bool] = lambda name: True) -> bool:
        """The chains of its `tls` rules, for names that are served. Whether a rule holds for this client."""
        found = False
        for number, rule in enumerate(document.spec.tls):
            for place, match in enumerate(rule.match):
                if self._refused(document, ("spec", "tls", number, "match", place), match):
                    continue
                names = [name for name in map(str.lower, match.sni_hosts) if serves(name)]
                if not names:
                    continue
                found = True
                proxy = self._proxy(rule.route, document)
                source = (f"spec.tls[{number}].match[{place}]", "spec", "tls", number, "match", place)
                self._append(
                    proxy, match.destination_subnets, () if "*" in names else names, document, source
                )
        return found

    def tcp(self, document: AnyDocument) -> bool:
        """The chains of its `tcp` rules. Whether one takes all connections that are left."""
        for number, rule in enumerate(document.spec.tcp):
            subnets = self._subnets(document, number, rule)
            if subnets is not None:
                source = (f"spec.tcp[{number}]", "spec", "tcp", number)
                self._append(self._proxy(rule.route, document), subnets, (), document, source)
                if not subnets:
                    return True
        return False

    def _subnets(self, document: AnyDocument, number: int, rule: TCPRoute) -> list[str] | None:
        """Those of a rule; none at all: any; None: the rule does not hold for this client."""
        if not rule.match:
            refused = self._refused(document, ("spec", "tcp", number), None)
            return None if refused else []
        found: list[str] = []
        for place, match in enumerate(rule.match):
            if self._refused(document, ("spec", "tcp", number, "match", place), match):
                continue
            if not match.destination_subnets:
                return []
            found += match.destination_subnets
        return found or None

    def _refused(
        self,
        document: AnyDocument,
        path: tuple[str | int, ...],
        match: TLSMatchAttributes | L4MatchAttributes | None,
    ) -> bool:
        reason = refusal(self._context, match, document)
        if reason:
            self.skipped.append(Skipped(document.source(*path), reason))
        return bool(reason)

    def _default(self, service: Service, *, named: bool) -> None:
        cluster = cluster_name(self._context.port, "", service.host)
        proxy = pb.TcpProxy(stat_prefix=cluster, cluster=cluster)
        self._settle(proxy, service.host)
        names = [service.host] if named and self._shared and service.host != "*" else ()
        document = service.source(self._context.port)
        self._append(proxy, (), names, document, ("default", "spec"), name=cluster)

    def _proxy(self, route: tuple[RouteDestination, ...], document: AnyDocument) -> Any:
        made = pb.TcpProxy()
        namespace = document.namespace
        splits = route if len(route) == 1 else tuple(split for split in route if split.weight > 0)
        clusters = [cluster_of(self._context, split.destination, namespace) for split in splits]
        if len(splits) == 1:
            made.cluster = made.stat_prefix = clusters[0]
        else:
            made.stat_prefix = f"{document.name}.{namespace}"
            for split, cluster in zip(splits, clusters, strict=True):
                made.weighted_clusters.clusters.add(name=cluster, weight=split.weight)
        first = route[0].destination if route else None
        if first is not None:
            host = expand(first.host, namespace, self._context.scope.domain)
            self._settle(made, host, first.subset if len(route) == 1 else "")
        return made

    def _settle(self, proxy: Any, host: str, subset: str = "") -> None:
        """What the host's DestinationRule says of all connections to it."""
        rule, mesh = self._context.rule(host), self._context.scope.graph.mesh
        policy = rule.policy if rule is not None else None
        default = mesh.default_traffic_policy
        pool = (policy.connection_pool if policy else None) or (default.connection_pool if default else None)
        tcp = pool.tcp if pool is not None else None
        if tcp is not None and tcp.idle_timeout is not None:
            proxy.idle_timeout.CopyFrom(pb.duration(tcp.idle_timeout))
        if tcp is not None and tcp.max_connection_duration:
            proxy.max_downstream_connection_duration.CopyFrom(pb.duration(tcp.max_connection_duration))
        own = rule.subsets[subset][0].traffic_policy if rule is not None and subset in rule.subsets else None
        balancer = (own.load_balancer if own else None) or (policy.load_balancer if policy else None)
        hashed = balancer.consistent_hash if balancer else None
        if hashed is not None and hashed.use_source_ip:
            proxy.hash_policy.add().source_ip.SetInParent()
        put_tunnel(proxy, rule, subset)

    def _append(
        self,
        proxy: Any,
        subnets: Iterable[str],
        names: Iterable[str],
        document: AnyDocument,
        source: tuple[str | int, ...],
        name: str = "",
    ) -> None:
        ranges = [one for one in dict.fromkeys(map(_range, subnets)) if one] or [*self._addresses] or [""]
        wanted = list(dict.fromkeys(names)) or [""]
        rule, *path = source
        free_ones = list(self._free(ranges, wanted))
        if not free_ones:
            self.skipped.append(Skipped(document.source(*path), "rules before it take all that it asks for"))
        for free, left in free_ones:
            chain = pb.FilterChain(name=name)
            chain.filter_chain_match.server_names.extend(sorted(one for one in left if one))
            for one in sorted(filter(None, free)):
                address, _, length = one.partition("/")
                made = chain.filter_chain_match.prefix_ranges.add(address_prefix=address)
                made.prefix_len.value = int(length)
            mark_document(chain, document, str(rule), *path)
            chain.metadata.filter_metadata[ISTIO_METADATA].update({"config": config_path(document)})
            if not chain.filter_chain_match.ByteSize():
                chain.ClearField("filter_chain_match")
            self._finish(chain, proxy)
            self.made.append(chain)

    def _free(self, ranges: list[str], names: list[str]) -> Iterator[tuple[list[str], list[str]]]:
        """What of these subnets and names no chain before has taken; from now on all of it is."""
        pairs = {(subnet, name) for subnet in ranges for name in names}
        taken = pairs & self._taken
        self._taken |= pairs
        if not taken:
            yield ranges, names
            return
        for subnet in ranges:
            left = [name for name in names if (subnet, name) not in taken]
            if left:
                yield [subnet], left

    def _finish(self, chain: Any, proxy: Any) -> None:
        if self._told is not None:
            put_logs(proxy, chain, self._told.logs)
        for name, config in self._before:
            chain.filters.add(name=name, typed_config=pb.pack(config))
        chain.filters.add(name=TCP_PROXY, typed_config=pb.pack(proxy))


def refusal(
    context: Context, match: TLSMatchAttributes | L4MatchAttributes | None, document: AnyDocument
) -> str:
    """Why a match of the document never holds for this client; empty: it may."""
    own = match.gateways if match is not None else ()
    asked = own or document.spec.gateways or (MESH,)
    if not context.bound(asked, document.namespace):
        return f"it is for the gateways {', '.join(asked)}"
    return mismatch(context, match)


def clusters_in(listener: Any) -> Iterator[str]:
    """The clusters to which the chains of a Listener lead; some may come twice."""
    for chain in (*listener.filter_chains, listener.default_filter_chain):
        for each in chain.filters:
            if each.name == TCP_PROXY:
                proxy = pb.unpack(each.typed_config)
                if proxy.cluster:
                    yield proxy.cluster
                yield from (cluster.name for cluster in proxy.weighted_clusters.clusters)


def addresses_of(service: Service | None) -> list[str]:
    """The IP addresses that a service has for itself."""
    found = []
    for address in service.addresses if service is not None else ():
        try:
            found.append(str(ipaddress.ip_address(address)))
        except ValueError:
            continue
    return found


def _range(subnet: str) -> str:
    """`address/length`, without the bits behind the length; empty, as in Istio: that of all addresses."""
    network = str(ipaddress.ip_network(subnet, strict=False))
    return "" if network == "0.0.0.0/0" else network
