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
- The endpoints of a DNS cluster are what its names stand for (`dns.py`): it is not there before they are
  known, or their time is over, and new ones are published as if the control service had said so.
- A change costs what it touches: the targets that a resource is a part of (`needs.py`), and no others.
- What is to be told of requests is in force at once: it decides nothing.
- What came last of each resource, good or not, is `accepted`'s affair.

Not thread-safe but for reading `view` and `targets`: the caller holds a lock around all else.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from operator import itemgetter
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

from meshlib.core.balance.cluster import Cluster, Resolution
from meshlib.core.balance.endpoints import EndpointSet
from meshlib.core.mtls import InboundMode, Trust
from meshlib.core.route.chain import Connections
from meshlib.core.route.table import RouteTable
from meshlib.core.telemetry import NOTHING, Telling
from meshlib.core.view import View
from meshlib.dataplane.accepted import Accepted, Routes, is_served
from meshlib.dataplane.cache import LastGood
from meshlib.dataplane.dns import AsWritten, Names
from meshlib.dataplane.needs import Key, Needs
from meshlib.errors import RefusedResource
from meshlib.values import dataclass
from meshlib.xds.kinds import Kind
from meshlib.xds.names import ROOTS_SECRET
from meshlib.xds.snapshot import Resource

if TYPE_CHECKING:
    from meshlib.core.inbound import Inbound  # which is large, and servers' alone

KINDS = (Kind.LISTENER, Kind.ROUTES, Kind.CLUSTER, Kind.ENDPOINTS, Kind.SECRET)
"""What is asked for."""

_ROOTS: Key = (Kind.SECRET, ROOTS_SECRET)
_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True)
class Target:
    """What is known of a target: it is answered when it is published, missing or has failed."""

    table: RouteTable | None = None
    """Where requests go. Neither this nor `inbound`: the control service knows no such target."""
    inbound: "Inbound | None" = None
    """What a served port asks of its callers."""
    connections: Connections | None = None
    """Where connections go that are no requests."""
    failed: RefusedResource | None = None


class Views:
    """Collects resources and publishes views."""

    def __init__(
        self,
        decoders: Mapping[Kind, Callable[[Any], Any]],
        published: Callable[[View, set[str]], None] = lambda _view, _clusters: None,
        names: Names | None = None,
    ) -> None:
        """`decoders` gives for each kind the function from message to core value, raising Refused; a
        listener's value is a TargetListener or an Inbound. `published` is called with each new view and the
        clusters that are not as they were, under the caller's lock. `names` None: they are not looked up.
        """
        self._published = published
        self._names = names or AsWritten()
        self._resolved: dict[str, EndpointSet] = {}
        """By cluster: what its names stand for."""
        self._accepted = Accepted(KINDS, decoders)
        self._held = self._accepted.of
        self._wanted: dict[str, None] = {}
        self._needs = Needs()
        self._turned: set[Key] = set()
        self._touched: set[str] = set()
        self._in_force: dict[str, Routes] = {}
        self._inbound: dict[str, Inbound] = {}
        self._waiting: set[str] = set()
        self._serving: Counter[str] = Counter()
        """By cluster, how many tables in force name it."""
        self._holding: Counter[str] = Counter()
        """By cluster, how many of these are held in force until their successor is whole."""
        self.view = View()
        self.targets: Mapping[str, Target] = MappingProxyType({})
        """Every target that was answered. A new mapping with each change, later than its view."""

    def __repr__(self) -> str:
        return f"Views({self.view!r}, {len(self._wanted)} wanted, {len(self._waiting)} held back)"

    def want(self, names: Iterable[str]) -> None:
        """These targets are needed from now on."""
        for name in names:
            if name not in self._wanted:
                self._wanted[name] = None
                self._needs.want(name)

    def wants(self, name: str) -> bool:
        """Whether this target is needed."""
        return name in self._wanted

    def forget(self, names: Iterable[str]) -> None:
        """These targets are not needed any more."""
        gone = [name for name in names if name in self._wanted]
        for name in gone:
            del self._wanted[name]
            self._needs.forget(name)
            self._touched.discard(name)
        self._publish(self.view.version, gone, set())
        self._drop_unneeded(())

    def apply(
        self, kind: Kind, version: str, resources: Mapping[str, Resource], removed: Iterable[str] = ()
    ) -> dict[str, str]:
        """Takes one update. Gives what is refused: the name and the reason, for the NACK."""
        if kind not in self._held:
            return dict.fromkeys(resources, f"{kind.short} was not asked for")
        keys = [(kind, name) for name in (*resources, *removed)]
        clusters = {name for key in keys for name in self._clusters_at(key)}
        were_here = {name for name in clusters if self._is_here(name)}
        refused = {}
        for name, resource in resources.items():
            if (why := self._accepted.take(kind, name, version, resource)) is not None:
                refused[name] = why
        for name in removed:
            self._accepted.gone(kind, name)
        if kind is Kind.CLUSTER:
            for name in clusters:
                self._needs.name((kind, name), self._named_by_cluster(name))
                self._ask(name)
        targets = {name for key in keys for name in self._led_by(key)}
        for name in clusters:
            if (name in were_here) != self._is_here(name):
                targets.update(self._needs.targets((Kind.CLUSTER, name)))
        for key in keys:
            self._touched.update(self._needs.targets(key))
        self._publish(version, targets, clusters)
        self._drop_unneeded(keys)
        return refused

    def resolved(self, names: Iterable[str]) -> None:
        """The names of these clusters may stand for something else now."""
        clusters = {name for name in names if name in self._held[Kind.CLUSTER]}
        targets: set[str] = set()
        for name in clusters:
            was_here = self._is_here(name)
            self._learn(name)
            if was_here != self._is_here(name):
                targets.update(self._needs.targets((Kind.CLUSTER, name)))
        self._touched |= targets
        self._publish(self.view.version, targets, clusters)
        self._drop_unneeded(())

    def _ask(self, name: str) -> None:
        """Asks for the names of a cluster as it is now, if it has some."""
        entry = self._held[Kind.CLUSTER].get(name)
        cluster = entry.value if entry is not None else None
        named = cluster is not None and cluster.named is not None
        self._names.follow(name, cluster if named else None)
        self._learn(name)

    def _learn(self, name: str) -> None:
        found = self._names.endpoints(name)
        if found is None:
            self._resolved.pop(name, None)
        elif found != self._resolved.get(name):
            self._resolved[name] = found

    def _clusters_at(self, key: Key) -> Iterable[str]:
        """The clusters that a cluster, endpoints or the roots are a part of."""
        kind, name = key
        if kind is Kind.CLUSTER:
            return (name,)
        return [user for of, user in self._needs.users(key) if of is Kind.CLUSTER]

    def _led_by(self, key: Key) -> Iterable[str]:
        """The targets that a listener, routes or the roots of a served port lead to."""
        kind, name = key
        if kind is Kind.LISTENER:
            return (name,) if name in self._wanted else ()
        if kind is Kind.CLUSTER:
            return ()
        return [user for of, user in self._needs.users(key) if of is Kind.LISTENER]

    def needs(self) -> dict[Kind, set[str]]:
        """The names to be subscribed of each kind, now."""
        found: dict[Kind, set[str]] = {kind: set() for kind in KINDS}
        for kind, name in self._needs:
            found[kind].add(name)
        return found

    def turned(self) -> dict[Kind, tuple[list[str], list[str]]]:
        """The names to subscribe, and those to unsubscribe, of each kind, since this was asked last."""
        found: dict[Kind, tuple[list[str], list[str]]] = {kind: ([], []) for kind in KINDS}
        for key in sorted(self._turned | self._needs.turned(), key=itemgetter(1)):
            found[key[0]][key not in self._needs].append(key[1])
        self._turned = set()
        return found

    def touched(self) -> set[str]:
        """The targets of which a part came since this was asked last, whole or not."""
        found, self._touched = self._touched, set()
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
        decided = known.table or known.inbound
        version = self.view.version
        return LastGood(version, tuple(resources), frozenset(absent), decided.version if decided else version)

    def _parts(self, target: str, routes: Routes | None) -> Iterator[tuple[Kind, str]]:
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
        newest = self._accepted.newest(target)
        if is_served(newest):
            return frozenset(() if self._can_serve(newest) else {"the mesh's roots"})
        if not isinstance(newest, Routes):
            listener = self._held[Kind.LISTENER].get(target)
            return frozenset(
                {f"its listener {target}" if listener is None else f"its routes {listener.value}"}
            )
        return frozenset(f"cluster {name}" for name in newest.clusters if not self._is_here(name))

    def held(self, kind: Kind) -> dict[str, str]:
        """The version of each resource held, by name."""
        return self._accepted.versions(kind)

    def absent(self, kind: Kind) -> set[str]:
        """The names of what is known not to exist."""
        return self._accepted.absent(kind)

    def _is_here(self, cluster: str) -> bool:
        entry = self._held[Kind.CLUSTER].get(cluster)
        if entry is None:
            return False
        if entry.value is None:
            return True
        if _trusts_mesh(entry.value) and ROOTS_SECRET not in self._held[Kind.SECRET]:
            return False
        if entry.value.named is not None:
            return cluster in self._resolved
        return not _by_discovery(entry.value) or entry.value.endpoints_name in self._held[Kind.ENDPOINTS]

    def _can_serve(self, inbound: "Inbound") -> bool:
        return not _takes_tls(inbound) or ROOTS_SECRET in self._held[Kind.SECRET]

    def _named_by_cluster(self, name: str) -> frozenset[Key]:
        entry = self._held[Kind.CLUSTER].get(name)
        cluster = None if entry is None else entry.value
        if cluster is None:
            return frozenset()
        found: set[Key] = {(Kind.ENDPOINTS, cluster.endpoints_name)} if _by_discovery(cluster) else set()
        if _trusts_mesh(cluster):
            found.add(_ROOTS)
        return frozenset(found)

    def _named_by_target(self, name: str, newest: object) -> frozenset[Key]:
        """What is in force is needed, and what shall be."""
        if name not in self._wanted:
            return frozenset()
        found: set[Key] = set()
        listener = self._held[Kind.LISTENER].get(name)
        if listener is not None and isinstance(listener.value, str):
            found.add((Kind.ROUTES, listener.value))
        for routes in (newest, self._in_force.get(name)):
            if isinstance(routes, Routes):
                found.update((Kind.CLUSTER, cluster) for cluster in routes.clusters)
        for served in (newest, self._inbound.get(name)):
            if is_served(served) and _takes_tls(served):
                found.add(_ROOTS)
        return frozenset(found)

    def _decide(self, name: str, newest: "Routes | Inbound | RefusedResource | None") -> Target | None:
        """What is in force of a target from now on; None: it is not known yet."""
        old, served = self._in_force.pop(name, None), self._inbound.pop(name, None)
        self._waiting.discard(name)
        if name not in self._wanted:
            return None
        if isinstance(newest, Routes) and all(map(self._is_here, newest.clusters)):
            self._in_force[name] = newest
            return Target(newest.table, connections=newest.connections)
        if is_served(newest) and self._can_serve(newest):
            self._inbound[name] = newest
            return Target(inbound=newest)
        if self._accepted.is_missing(name):
            return Target()
        if old is None and served is None and isinstance(newest, RefusedResource):
            return Target(failed=newest)
        self._waiting.add(name)
        if old is not None:
            self._in_force[name] = old
            return Target(old.table, connections=old.connections)
        if served is not None:
            self._inbound[name] = served
            return Target(inbound=served)
        return None

    def _renew(self, name: str) -> tuple[Target | None, frozenset[str]]:
        """Decides a target anew. Gives it, and the clusters that tables in force may name otherwise now."""
        newest = self._accepted.newest(name)
        before, was_waiting = self._in_force.get(name), name in self._waiting
        target = self._decide(name, newest)
        self._needs.name((Kind.LISTENER, name), self._named_by_target(name, newest))
        after, waits = self._in_force.get(name), name in self._waiting
        if before is after and was_waiting is waits:
            return target, frozenset()
        for routes, waiting, one in ((before, was_waiting, -1), (after, waits, 1)):
            for cluster in routes.clusters if routes is not None else ():
                self._serving[cluster] += one
                self._holding[cluster] += one * waiting
        return target, (before.clusters if before else frozenset()) | (
            after.clusters if after else frozenset()
        )

    def _publish(self, version: str, names: Iterable[str], clusters: set[str]) -> None:
        """Puts in force what became of these targets and clusters; all else stays as it is."""
        targets: dict[str, Target | None] = {}
        for name in names:
            targets[name], changed = self._renew(name)
            clusters |= changed
        served: dict[str, Cluster | None] = {}
        endpoints: dict[str, EndpointSet | None] = {}
        for name in clusters:
            served[name], endpoints[name] = self._cluster(name)
        roots = self._held[Kind.SECRET].get(ROOTS_SECRET)
        view = View(
            version,
            _with(self.view.tables, {n: t.table if t else None for n, t in targets.items()}),
            _with(self.view.clusters, served),
            _with(self.view.endpoints, endpoints),
            _with(self.view.inbound, {n: t.inbound if t else None for n, t in targets.items()}),
            roots.value or b"" if roots is not None else b"",
            _with(self.view.telling, {name: self._telling(name) for name in targets}),
            _with(self.view.connections, {n: t.connections if t else None for n, t in targets.items()}),
        )
        self.view = view
        self._published(view, clusters)
        # Last: who finds a target here finds it in the view.
        self.targets = _with(self.targets, targets)

    def _telling(self, name: str) -> Telling | None:
        """What is told of a target, as its newest good listener says; None: nothing."""
        listener = self._held[Kind.LISTENER].get(name) if name in self._wanted else None
        if listener is None or listener.telling == NOTHING:
            return None
        before = self.view.telling.get(name)
        return before if before == listener.telling else listener.telling

    def _cluster(self, name: str) -> tuple[Cluster | None, EndpointSet | None]:
        """A cluster that tables in force name, and its endpoints; for one held in force also what is gone."""
        if not self._serving[name]:
            del self._serving[name], self._holding[name]
            return None, None
        entry, held = self._held[Kind.CLUSTER].get(name), self._holding[name] > 0
        cluster = entry.value if entry is not None else None
        if cluster is None and held:
            cluster = self.view.clusters.get(name)
        if cluster is None:
            return None, None
        if cluster.inline is not None:
            return cluster, cluster.inline
        if cluster.named is not None:
            return cluster, self._resolved.get(name) or self.view.endpoints.get(name)
        listed = self._held[Kind.ENDPOINTS].get(cluster.endpoints_name)
        if listed is not None and listed.value is not None:
            return cluster, listed.value
        return cluster, self.view.endpoints.get(name) if listed is None or held else None

    def _drop_unneeded(self, keys: Iterable[Key]) -> None:
        """Of these, of what lost its last user, and of what they name."""
        left = {*keys}
        while turned := self._needs.turned() | left:
            self._turned |= turned - left
            for key in turned:
                if key not in self._needs and self._held[key[0]].pop(key[1], None) is not None:
                    self._needs.name(key, frozenset())
                    if key[0] is Kind.CLUSTER:
                        self._ask(key[1])
            left = set()


def _trusts_mesh(cluster: Cluster) -> bool:
    """Whether some endpoint of the cluster must be vouched for by the mesh's roots."""
    asked = (cluster.tls, *(transport.tls for transport in cluster.transports))
    return any(tls is not None and tls.trust is Trust.MESH for tls in asked)


def _takes_tls(inbound: "Inbound") -> bool:
    return inbound.tls.mode is not InboundMode.DISABLE


def _by_discovery(cluster: Cluster) -> bool:
    """Whether its endpoints are a resource of their own."""
    return cluster.inline is None and cluster.resolution is Resolution.ENDPOINTS


def _with(mapping: Mapping[str, _Value], changes: Mapping[str, _Value | None]) -> Mapping[str, _Value]:
    """The mapping with these changes, None: gone. Itself, if it is so already."""
    different = {name: value for name, value in changes.items() if mapping.get(name) is not value}
    if not different:
        return mapping
    made = mapping.copy() if isinstance(mapping, MappingProxyType) else dict(mapping)
    for name, value in different.items():
        if value is None:
            del made[name]
        else:
            made[name] = value
    return MappingProxyType(made)
