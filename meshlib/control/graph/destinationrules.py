"""Which DestinationRule holds for a host, for one client.

Rules (Istio):

- Looked up in the client's namespace, then in the service's, then in the root namespace; the first that
  has any rule for the host decides, nothing is merged across them. Within one the closest host wins.
- Rules of one namespace and host are merged, oldest first: subsets are joined, the first of a name
  wins, and the first traffic policy stands whole.
- One with a workloadSelector holds for clients of its own namespace that carry the labels, and wins
  over those without.
- The root namespace's private rules are for its own clients only.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from meshlib.control.graph.hosts import HostIndex, expand
from meshlib.control.graph.visibility import by_age, exported_to, visible
from meshlib.control.istio.destinationrule import Subset, TrafficPolicy
from meshlib.control.istio.document import AnyDocument


@dataclass(frozen=True, slots=True, eq=False)
class DestinationRule:
    """The DestinationRules of one namespace and host as one."""

    host: str
    namespace: str
    documents: tuple[AnyDocument, ...]
    policy: TrafficPolicy | None
    policy_document: AnyDocument | None
    """Where the policy stands."""
    subsets: Mapping[str, tuple[Subset, AnyDocument, int]]
    """By name: the subset, the document in which it stands, and its place there."""

    @property
    def fingerprint(self) -> tuple[str, ...]:
        """Equal for equal content."""
        return tuple(document.fingerprint for document in self.documents)


@dataclass(slots=True)
class _Kept:
    document: AnyDocument
    host: str
    export: tuple[str, ...]
    selector: Mapping[str, str]


class DestinationRules:
    """All of them, answered by client and service."""

    def __init__(
        self, documents: Iterable[AnyDocument], default: tuple[str, ...], root: str, domain: str
    ) -> None:
        """`default` is the mesh's exportTo for them, `root` the root namespace."""
        self._root = root
        self._plain: dict[str, list[_Kept]] = {}
        self._selecting: dict[str, list[_Kept]] = {}
        self._narrow: set[str] = set()
        """Namespaces with a rule that not everybody sees."""
        self._views: dict[tuple[str, str, frozenset[int]], _Seen] = {}
        for document in by_age(list(documents)):
            selector = document.spec.workload_selector
            kept = _Kept(
                document,
                expand(document.spec.host, document.namespace, domain),
                exported_to(document.spec.export_to, default),
                selector.match_labels if selector else {},
            )
            into = self._plain.setdefault(document.namespace, [])
            if selector is not None:
                into = self._selecting.setdefault(document.namespace, [])
            elif "*" not in kept.export:
                self._narrow.add(document.namespace)
            into.append(kept)

    def find(
        self, host: str, owner: str, namespace: str, labels: Mapping[str, str]
    ) -> DestinationRule | None:
        """The rule for a host of namespace `owner`, for a client of `namespace` with `labels`."""
        places = dict.fromkeys((namespace, owner, self._root))
        for place in places:
            if place not in self._plain:
                continue
            found = self._seen(place, namespace, labels).closest(host)
            if found is not None:
                return found
        return None

    def _seen(self, place: str, namespace: str, labels: Mapping[str, str]) -> "_Seen":
        chosen = [
            kept
            for kept in self._selecting.get(place, ())
            if place == namespace and all(labels.get(key) == value for key, value in kept.selector.items())
        ]
        key = (place, self._view(place, namespace), frozenset(id(kept) for kept in chosen))
        seen = self._views.get(key)
        if seen is None:
            plain = [
                kept
                for kept in self._plain[place]
                if place == namespace or visible(kept.export, place, namespace)
            ]
            seen = self._views[key] = _Seen(place, chosen, plain)
        return seen

    def _view(self, place: str, namespace: str) -> str:
        """Namespaces that see the same of a place have one key."""
        return namespace if place == namespace or place in self._narrow else "*"


class _Seen:
    """The rules of one namespace as one client sees them; merged when they are asked for."""

    def __init__(self, namespace: str, chosen: list[_Kept], plain: list[_Kept]) -> None:
        self._namespace = namespace
        self._groups: HostIndex[list[_Kept]] = HostIndex()
        self._made: dict[str, DestinationRule] = {}
        by_host: dict[str, list[_Kept]] = {}
        for kept in chosen:
            by_host.setdefault(kept.host, []).append(kept)
        selected = set(by_host)
        for kept in plain:
            if kept.host not in selected:
                by_host.setdefault(kept.host, []).append(kept)
        for host, group in by_host.items():
            self._groups.put(host, group)

    def closest(self, host: str) -> DestinationRule | None:
        """The rule of the closest host."""
        group = self._groups.closest(host)
        if group is None:
            return None
        own = group[0].host
        if own not in self._made:
            self._made[own] = _merge(own, self._namespace, group)
        return self._made[own]


def _merge(host: str, namespace: str, group: list[_Kept]) -> DestinationRule:
    first = set(group[0].export)
    group = [kept for kept in group if set(kept.export) == first or kept is group[0]]
    subsets: dict[str, tuple[Subset, AnyDocument, int]] = {}
    policy: TrafficPolicy | None = None
    source: AnyDocument | None = None
    for kept in group:
        if policy is None and kept.document.spec.traffic_policy is not None:
            policy, source = kept.document.spec.traffic_policy, kept.document
        for number, subset in enumerate(kept.document.spec.subsets):
            subsets.setdefault(subset.name, (subset, kept.document, number))
    return DestinationRule(host, namespace, tuple(k.document for k in group), policy, source, subsets)
