"""Decoded resources become one immutable `View`, published in one assignment, whole and consistent.

Rules:

- A target (`host:port`) appears when its listener, its routes, all clusters that they name and the
  endpoints of these are there. Make before break: a new table that names what has not come yet is
  held back and the old one stays, with all that it names, until the last piece arrived.
- What the control service says does not exist (a name in `removed`) is known to be missing and
  holds nothing back: the table is published and the cluster is not in the view (503 NC).
- A refused resource leaves the last good one of its name in force. If there never was one, a
  cluster or endpoints count as missing; a listener or routes make the target fail with the reason.
- `needs` follows what is published and what is held back; what nothing needs any more is dropped.
- A port that this process serves is a target too, by the name of its listener (`xds.names.inbound_listener`).
- Who is to trust the mesh's roots (a cluster, a served port) is held back until they are there, or known
  to be missing; they are asked for as soon as somebody is.
- An update of endpoints alone touches only its entries.
- What is to be told of requests is in force at once: it decides nothing.

Not thread-safe but for reading `view` and `targets`: the caller holds a lock around all else.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from meshlib.core.balance.cluster import Cluster, Resolution
from meshlib.core.balance.endpoints import EndpointSet
from meshlib.core.inbound import Inbound
from meshlib.core.mtls import InboundMode, Trust
from meshlib.core.route.rule import Forward
from meshlib.core.route.table import RouteTable
from meshlib.core.telemetry import NOTHING, Telling
from meshlib.core.view import TargetListener, View
from meshlib.dataplane.cache import LastGood
from meshlib.dataplane.decode.errors import Refused
from meshlib.errors import RefusedResource
from meshlib.xds.kinds import Kind
from meshlib.xds.names import ROOTS_SECRET
from meshlib.xds.snapshot import Resource

KINDS = (Kind.LISTENER, Kind.ROUTES, Kind.CLUSTER, Kind.ENDPOINTS, Kind.SECRET)
"""What is asked for."""


@dataclass(slots=True)
class _Held:
    """One resource that was accepted; None as `value`: it does not exist, or never was any good."""

    value: Any = None
    resource: Resource | None = None
    refused: str = ""
    """Why the newest one was refused; empty: it was not."""
    telling: Telling = NOTHING
    """Of a listener."""


@dataclass(frozen=True, slots=True)
class _Routes:
    """A table and the clusters that it names."""

    table: RouteTable
    clusters: frozenset[str]


@dataclass(frozen=True, slots=True)
class Target:
    """What is known of a target: it is answered when it is published, missing or has failed."""

    table: RouteTable | None = None
    """Where requests go. Neither this nor `inbound`: the control service knows no such target."""
    inbound: Inbound | None = None
    """What a served port asks of its callers."""
    failed: RefusedResource | None = None


class Views:
    """Collects resources and publishes views."""

    def __init__(
        self,
        decoders: Mapping[Kind, Callable[[Any], Any]],
        published: Callable[[View], None] = lambda _: None,
    ) -> None:
        """`decoders` gives for each kind the function from message to core value, raising Refused; a
        listener's value is a TargetListener or an Inbound. `published` is called with each new view, under
        the caller's lock.
        """
        self._decoders = decoders
        self._published = published
        self._held: dict[Kind, dict[str, _Held]] = {kind: {} for kind in KINDS}
        self._wanted: dict[str, None] = {}
        self._in_force: dict[str, _Routes] = {}
        self._inbound: dict[str, Inbound] = {}
        self._waiting: set[str] = set()
        self.view = View()
        self.targets: Mapping[str, Target] = {}
        """Every target that was answered. A new mapping with each change."""

    def __repr__(self) -> str:
        return f"Views({self.view!r}, {len(self._wanted)} wanted, {len(self._waiting)} held back)"

    @property
    def waiting(self) -> frozenset[str]:
        """Targets whose newest table is held back."""
        return frozenset(self._waiting)

    def want(self, names: Iterable[str]) -> None:
        """These targets are needed from now on."""
        self._wanted.update(dict.fromkeys(names))

    def wants(self, name: str) -> bool:
        """Whether this target is needed."""
        return name in self._wanted

    def forget(self, names: Iterable[str]) -> None:
        """These targets are not needed any more."""
        for name in names:
            self._wanted.pop(name, None)
        self._drop_unneeded()
        self._publish(self.view.version)

    def apply(
        self, kind: Kind, version: str, resources: Mapping[str, Resource], removed: Iterable[str] = ()
    ) -> dict[str, str]:
        """Takes one update. Gives what is refused: the name and the reason, for the NACK."""
        held, refused = self._held.get(kind), {}
        if held is None:
            return dict.fromkeys(resources, f"{kind.short} was not asked for")
        for name, resource in resources.items():
            entry = held.setdefault(name, _Held())
            try:
                entry.value, entry.telling = self._decode(kind, resource)
                entry.resource, entry.refused = resource, ""
            except Refused as error:
                entry.refused = refused[name] = str(error)
        for name in removed:
            held[name] = _Held()
        if kind is Kind.ENDPOINTS and not self._waiting and self.targets.keys() >= self._wanted.keys():
            self._patch_endpoints(version, {*resources, *removed})
        else:
            self._publish(version)
            self._drop_unneeded()
        return refused

    def needs(self) -> dict[Kind, set[str]]:
        """The names to be subscribed of each kind, now."""
        found: dict[Kind, set[str]] = {kind: set() for kind in KINDS}
        found[Kind.LISTENER] = set(self._wanted)
        for name in self._wanted:
            entry = self._held[Kind.LISTENER].get(name)
            if entry is not None and isinstance(entry.value, str):
                found[Kind.ROUTES].add(entry.value)
            for routes in (self._newest(name), self._in_force.get(name)):
                if isinstance(routes, _Routes):
                    found[Kind.CLUSTER] |= routes.clusters
        for name in found[Kind.CLUSTER]:
            entry = self._held[Kind.CLUSTER].get(name)
            if entry is None or entry.value is None:
                continue
            if _by_discovery(entry.value):
                found[Kind.ENDPOINTS].add(entry.value.endpoints_name)
            if _trusts_mesh(entry.value):
                found[Kind.SECRET].add(ROOTS_SECRET)
        served = (self._newest(name) for name in self._wanted)
        if any(isinstance(one, Inbound) and _takes_tls(one) for one in (*served, *self._inbound.values())):
            found[Kind.SECRET].add(ROOTS_SECRET)
        return found

    def kept(self, target: str) -> LastGood | None:
        """What is in force for a target; None if nothing is, or while a newer table is held back.

        What it names and is known to be missing belongs to it: with that alone it would wait for ever.
        """
        known = self.targets.get(target)
        if known is None or known.failed is not None or target in self._waiting:
            return None
        resources: list[Resource] = []
        absent: set[tuple[Kind, str]] = set()
        for kind, name in self._parts(target, self._in_force.get(target)):
            entry = self._held[kind].get(name)
            if entry is None:
                continue
            if entry.resource is not None:
                resources.append(entry.resource)
            else:
                absent.add((kind, name))
        return LastGood(self.view.version, tuple(resources), frozenset(absent))

    def _parts(self, target: str, routes: _Routes | None) -> Iterator[tuple[Kind, str]]:
        """All that a target in force is made of, by kind and name."""
        yield Kind.LISTENER, target
        yield Kind.SECRET, ROOTS_SECRET
        listener = self._held[Kind.LISTENER].get(target)
        if listener is not None and isinstance(listener.value, str):
            yield Kind.ROUTES, listener.value
        for name in sorted(routes.clusters if routes is not None else ()):
            yield Kind.CLUSTER, name
            cluster = self._held[Kind.CLUSTER].get(name)
            if cluster is not None and cluster.value is not None:
                yield Kind.ENDPOINTS, cluster.value.endpoints_name

    def missing(self, target: str) -> frozenset[str]:
        """What a target waits for, in words; empty if it waits for nothing."""
        newest = self._newest(target)
        if isinstance(newest, Inbound):
            return frozenset(() if self._can_serve(newest) else {"the mesh's roots"})
        if not isinstance(newest, _Routes):
            listener = self._held[Kind.LISTENER].get(target)
            return frozenset(
                {f"its listener {target}" if listener is None else f"its routes {listener.value}"}
            )
        return frozenset(f"cluster {name}" for name in newest.clusters if not self._is_here(name))

    def held(self, kind: Kind) -> dict[str, str]:
        """The version of each resource held, by name."""
        return {n: e.resource.version for n, e in self._held[kind].items() if e.resource is not None}

    def absent(self, kind: Kind) -> set[str]:
        """The names of what is known not to exist."""
        return {n for n, e in self._held[kind].items() if e.resource is None and not e.refused}

    def _decode(self, kind: Kind, resource: Resource) -> tuple[Any, Telling]:
        try:
            message = resource.message()
        except Exception as error:  # noqa: BLE001 - protobuf's DecodeError, without loading protobuf here
            raise Refused("", f"can't be decoded: {error}") from None
        value = self._decoders[kind](message)
        telling = value.telling if isinstance(value, TargetListener | Inbound) else NOTHING
        if isinstance(value, TargetListener):
            value = value.routes
        return _Routes(value, clusters_of(value)) if isinstance(value, RouteTable) else value, telling

    def _newest(self, target: str) -> _Routes | Inbound | RefusedResource | None:
        """The newest good value of a target; an error: there never was one; None: it has not come."""
        listener = self._held[Kind.LISTENER].get(target)
        if listener is None:
            return None
        if isinstance(listener.value, _Routes | Inbound):
            return listener.value
        if listener.value is None:
            return RefusedResource(f"listener {target}: {listener.refused}") if listener.refused else None
        routes = self._held[Kind.ROUTES].get(listener.value)
        if routes is None:
            return None
        if routes.value is None and routes.refused:
            return RefusedResource(f"routes {listener.value}: {routes.refused}")
        return routes.value if isinstance(routes.value, _Routes) else None

    def _missing(self, target: str) -> bool:
        """Whether the control service said that there is no such target, or no routes for it."""
        listener = self._held[Kind.LISTENER].get(target)
        if listener is None:
            return False
        if isinstance(listener.value, str):
            routes = self._held[Kind.ROUTES].get(listener.value)
            return routes is not None and routes.value is None and not routes.refused
        return listener.value is None and not listener.refused

    def _is_here(self, cluster: str) -> bool:
        entry = self._held[Kind.CLUSTER].get(cluster)
        if entry is None:
            return False
        if entry.value is None:
            return True
        if _trusts_mesh(entry.value) and ROOTS_SECRET not in self._held[Kind.SECRET]:
            return False
        return not _by_discovery(entry.value) or entry.value.endpoints_name in self._held[Kind.ENDPOINTS]

    def _can_serve(self, inbound: Inbound) -> bool:
        return not _takes_tls(inbound) or ROOTS_SECRET in self._held[Kind.SECRET]

    def _publish(self, version: str) -> None:
        targets: dict[str, Target] = {}
        in_force: dict[str, _Routes] = {}
        inbound: dict[str, Inbound] = {}
        waiting: set[str] = set()
        for name in self._wanted:
            newest, old, served = self._newest(name), self._in_force.get(name), self._inbound.get(name)
            if isinstance(newest, _Routes) and all(map(self._is_here, newest.clusters)):
                in_force[name] = newest
            elif isinstance(newest, Inbound) and self._can_serve(newest):
                inbound[name] = newest
            elif self._missing(name):
                targets[name] = Target()
            elif old is not None:
                in_force[name] = old
                waiting.add(name)
            elif served is not None:
                inbound[name] = served
                waiting.add(name)
            elif isinstance(newest, RefusedResource):
                targets[name] = Target(failed=newest)
            else:
                waiting.add(name)
        self._in_force, self._inbound, self._waiting = in_force, inbound, waiting
        clusters, endpoints = self._clusters()
        targets.update((name, Target(routes.table)) for name, routes in in_force.items())
        targets.update((name, Target(inbound=served)) for name, served in inbound.items())
        tables = {name: routes.table for name, routes in in_force.items()}
        roots = self._held[Kind.SECRET].get(ROOTS_SECRET)
        view = View(
            version,
            MappingProxyType(tables),
            MappingProxyType(clusters),
            MappingProxyType(endpoints),
            MappingProxyType(inbound),
            roots.value or b"" if roots is not None else b"",
            self._telling(),
        )
        self._set(view, targets)

    def _telling(self) -> Mapping[str, Telling]:
        """What is told, as the newest good listeners say; the same mapping as before if nothing changed."""
        held = self._held[Kind.LISTENER]
        listed = ((name, held.get(name)) for name in self._wanted)
        found = {name: one.telling for name, one in listed if one is not None and one.telling != NOTHING}
        return self.view.telling if found == self.view.telling else MappingProxyType(found)

    def _clusters(self) -> tuple[dict[str, Cluster], dict[str, EndpointSet]]:
        """Clusters and endpoints that tables in force name, for those held back also what is gone."""
        clusters: dict[str, Cluster] = {}
        endpoints: dict[str, EndpointSet] = {}
        for target, routes in self._in_force.items():
            for name in routes.clusters - clusters.keys():
                entry = self._held[Kind.CLUSTER].get(name)
                cluster = entry.value if entry is not None else None
                if cluster is None and target in self._waiting:
                    cluster = self.view.clusters.get(name)
                if cluster is None:
                    continue
                clusters[name] = cluster
                listed = self._held[Kind.ENDPOINTS].get(cluster.endpoints_name)
                if cluster.inline is not None:
                    endpoints[name] = cluster.inline
                elif listed is not None and listed.value is not None:
                    endpoints[name] = listed.value
                elif name in self.view.endpoints and (listed is None or target in self._waiting):
                    endpoints[name] = self.view.endpoints[name]
        return clusters, endpoints

    def _patch_endpoints(self, version: str, names: set[str]) -> None:
        """Only endpoints changed and nothing waits for them."""
        endpoints = dict(self.view.endpoints)
        for name, cluster in self.view.clusters.items():
            if cluster.endpoints_name in names:
                value = self._held[Kind.ENDPOINTS][cluster.endpoints_name].value
                if value is None:
                    endpoints.pop(name, None)
                else:
                    endpoints[name] = value
        self._set(replace(self.view, version=version, endpoints=MappingProxyType(endpoints)), self.targets)

    def _set(self, view: View, targets: Mapping[str, Target]) -> None:
        self.view, self.targets = view, targets
        self._published(view)

    def _drop_unneeded(self) -> None:
        for kind, names in self.needs().items():
            held = self._held[kind]
            for name in held.keys() - names:
                del held[name]


def clusters_of(table: RouteTable) -> frozenset[str]:
    """Every cluster that a table names: destinations and mirrors."""
    found: set[str] = set()
    for host in table.hosts:
        for route in host.routes:
            if isinstance(route.action, Forward):
                found.update(cluster.name for cluster in route.action.clusters)
                found.update(mirror.cluster for mirror in route.action.mirrors)
    return frozenset(found)


def _trusts_mesh(cluster: Cluster) -> bool:
    """Whether some endpoint of the cluster must be vouched for by the mesh's roots."""
    asked = (cluster.tls, *(transport.tls for transport in cluster.transports))
    return any(tls is not None and tls.trust is Trust.MESH for tls in asked)


def _takes_tls(inbound: Inbound) -> bool:
    return inbound.tls.mode is not InboundMode.DISABLE


def _by_discovery(cluster: Cluster) -> bool:
    """Whether its endpoints are a resource of their own."""
    return cluster.inline is None and cluster.resolution is not Resolution.ORIGINAL
