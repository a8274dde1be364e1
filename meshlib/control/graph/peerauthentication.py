"""Which mode a workload's port has: mutual TLS only, plain text only, or both.

Rules (Istio):

- The port's setting > the workload's > its namespace's > the root namespace's > PERMISSIVE. UNSET, at any
  of them, inherits.
- Of several on one level the oldest wins, with all that it says of ports.
- One without a selector is its namespace's, in the root namespace the mesh's. One of the root namespace
  with a selector holds for nobody.
- Settings of ports need a selector, and are by the workload's port.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from meshlib.control.graph.visibility import by_age
from meshlib.control.istio.document import AnyDocument, FieldPath
from meshlib.control.istio.peerauthentication import MutualTLS, MutualTLSMode


@dataclass(frozen=True, slots=True)
class Mode:
    """A mode, never UNSET, and what decided it."""

    mode: MutualTLSMode = MutualTLSMode.PERMISSIVE
    document: AnyDocument | None = None
    """None: it is the default."""
    path: FieldPath = ()
    """Of the field that says so."""

    @property
    def source(self) -> str:
        """`file:line`; empty for the default."""
        return self.document.source(*self.path) if self.document is not None else ""


DEFAULT = Mode()
_MODE: FieldPath = ("spec", "mtls", "mode")


class PeerAuthentications:
    """All of them, answered by workload and port."""

    def __init__(self, documents: Iterable[AnyDocument], root: str) -> None:
        """`root` is the root namespace."""
        self._wide: dict[str, Mode | None] = {}
        self._selecting: dict[str, list[AnyDocument]] = {}
        self._mesh: Mode | None = None
        for document in by_age(list(documents)):
            if _labels(document):
                if document.namespace != root:
                    self._selecting.setdefault(document.namespace, []).append(document)
            elif document.namespace not in self._wide:
                self._wide[document.namespace] = _said(document, document.spec.mtls, _MODE)
        self._mesh = self._wide.pop(root, None)

    def of_namespace(self, namespace: str) -> Mode:
        """What holds for the workloads of a namespace that nothing selects."""
        return self._wide.get(namespace) or self._mesh or DEFAULT

    def of_port(self, namespace: str, labels: Mapping[str, str], port: int) -> Mode:
        """What holds for a port of the workload with these labels."""
        for document in self._selecting.get(namespace, ()):
            if all(labels.get(key) == value for key, value in _labels(document).items()):
                place = ("spec", "portLevelMtls", str(port), "mode")
                found = _said(document, document.spec.port_level_mtls.get(port), place)
                return found or _said(document, document.spec.mtls, _MODE) or self.of_namespace(namespace)
        return self.of_namespace(namespace)

    def ports(self, namespace: str, labels: Mapping[str, str]) -> frozenset[int]:
        """The ports of the workload with these labels of which something is said."""
        for document in self._selecting.get(namespace, ()):
            if all(labels.get(key) == value for key, value in _labels(document).items()):
                return frozenset(document.spec.port_level_mtls)
        return frozenset()

    def takes_mutual_tls(self, namespace: str, labels: Mapping[str, str], port: int) -> bool:
        """Whether such a port takes mutual TLS at all."""
        return self.of_port(namespace, labels, port).mode is not MutualTLSMode.DISABLE


def _labels(document: AnyDocument) -> Mapping[str, str]:
    selector = document.spec.selector
    found: Mapping[str, str] = selector.match_labels if selector is not None else {}
    return found


def _said(document: AnyDocument, settings: MutualTLS | None, path: FieldPath) -> Mode | None:
    if settings is None or settings.mode is MutualTLSMode.UNSET:
        return None
    return Mode(settings.mode, document, path)
