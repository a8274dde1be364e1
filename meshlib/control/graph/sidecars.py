"""Which Sidecar holds for a client, and what it lets the client see.

Rules (Istio):

- The oldest of the client's namespace whose labels match, else its oldest without a selector, else that
  of the root namespace. Without any a client sees everything that is exported to it.
- An egress host is `namespace/host`; the namespace may be `*`, `.` (the client's own) or `~` (none).
  `~namespace/host` takes out again what the others of its listener let see.
- A listener with a port is for that port alone, and the one without for those that no other is for.
- Without egress everything is seen. Destinations of visible VirtualServices and the egressProxy are, too.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from meshlib.control.graph.hosts import covers, overlap
from meshlib.control.graph.visibility import by_age
from meshlib.control.istio.document import AnyDocument
from meshlib.control.istio.fields import WorkloadSelector


@dataclass(frozen=True, slots=True)
class Egress:
    """One egress listener: hosts, and the port that it is for (0: all)."""

    port: int
    hosts: tuple[tuple[str, str], ...]
    """Namespace and host of each."""
    without: tuple[tuple[str, str], ...] = ()
    """Those that are taken out again."""

    def sees(self, namespace: str, host: str) -> bool:
        """Whether a service of that namespace and host is seen."""
        return _any(self.hosts, namespace, host, covers) and not _any(self.without, namespace, host, covers)

    def touches(self, namespace: str, host: str) -> bool:
        """Whether a VirtualService of that namespace for that host is seen."""
        return _any(self.hosts, namespace, host, overlap) and not _any(self.without, namespace, host, covers)


def _any(
    listed: tuple[tuple[str, str], ...], namespace: str, host: str, fits: Callable[[str, str], bool]
) -> bool:
    return any(place in ("*", namespace) and fits(pattern, host) for place, pattern in listed)


def at_port(listeners: tuple[Egress, ...], port: int) -> tuple[Egress, ...]:
    """The listeners that say what is seen at a port; 0: at any."""
    if not port:
        return listeners
    own = tuple(one for one in listeners if one.port == port)
    return own or tuple(one for one in listeners if not one.port)


class Sidecars:
    """All of them, answered by client."""

    def __init__(self, documents: Iterable[AnyDocument], root: str) -> None:
        """`root` is the root namespace."""
        self._root = root
        self._by_namespace: dict[str, list[AnyDocument]] = {}
        for document in by_age(list(documents)):
            self._by_namespace.setdefault(document.namespace, []).append(document)

    def find(self, namespace: str, labels: Mapping[str, str]) -> AnyDocument | None:
        """The document for a client."""
        own = self._by_namespace.get(namespace, [])
        for document in own:
            selector: WorkloadSelector | None = document.spec.workload_selector
            if selector and all(labels.get(key) == value for key, value in selector.labels.items()):
                return document
        for document in own + self._by_namespace.get(self._root, []):
            if document.spec.workload_selector is None:
                return document
        return None


def egress_of(document: AnyDocument | None, namespace: str) -> tuple[Egress, ...] | None:
    """The egress listeners of a Sidecar for a client of that namespace; None: everything is seen."""
    if document is None or not document.spec.egress:
        return None
    return tuple(
        Egress(
            listener.port.number if listener.port else 0,
            _hosts((one for one in listener.hosts if not _is_without(one)), namespace),
            _hosts((one[1:] for one in listener.hosts if _is_without(one)), namespace),
        )
        for listener in document.spec.egress
    )


def _is_without(entry: str) -> bool:
    return entry.startswith("~") and not entry.startswith("~/")


def _hosts(hosts: Iterable[str], namespace: str) -> tuple[tuple[str, str], ...]:
    found = []
    for entry in hosts:
        place, _, host = entry.partition("/")
        if place != "~":
            found.append((namespace if place == "." else place, host.lower()))
    return tuple(found)
