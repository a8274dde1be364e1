"""The documents as the analyses look them up: hosts, ports, subsets, gateways, endpoints."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from meshlib.control.istio.destinationrule import DestinationRule
from meshlib.control.istio.document import AnyDocument, Document, FieldPath
from meshlib.control.istio.fields import camel
from meshlib.control.istio.gateway import Gateway
from meshlib.control.istio.meshconfig import MeshConfig
from meshlib.control.istio.parse import spell
from meshlib.control.istio.problem import Problem, Severity
from meshlib.control.istio.serviceentry import ServiceEntry
from meshlib.control.istio.validity.hosts import covers, is_ip
from meshlib.control.istio.virtualservice import VirtualService

SUPPRESS = "galley.istio.io/analyze-suppress"


@dataclass(frozen=True)
class World:
    """All documents, by what the analyses ask for."""

    documents: tuple[AnyDocument, ...]
    ports: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """The ports of every host of the registry."""
    root: str = "istio-system"

    @classmethod
    def of(cls, documents: Iterable[AnyDocument]) -> "World":
        """Index the documents."""
        held = tuple(documents)
        ports: dict[str, tuple[int, ...]] = {}
        root = "istio-system"
        for document in held:
            spec = document.spec
            if document.kind == "Service":
                host = f"{document.name}.{document.namespace}.svc.cluster.local"
                ports[host] = tuple(port.port for port in spec.ports)
            elif isinstance(spec, ServiceEntry):
                for name in map(str.lower, spec.hosts):
                    numbers = (port.number for port in spec.ports)
                    ports[name] = tuple(dict.fromkeys((*ports.get(name, ()), *numbers)))
            elif isinstance(spec, MeshConfig):
                root = spec.root_namespace
        return cls(held, ports, root)

    def of_kind(self, kind: str) -> Iterator[AnyDocument]:
        """The documents of a kind, oldest first as Istio has it."""
        return iter(self._by_kind.get(kind, ()))

    @cached_property
    def _by_kind(self) -> Mapping[str, list[AnyDocument]]:
        found: dict[str, list[AnyDocument]] = {}
        for document in sorted(self.documents, key=lambda d: d.age):
            found.setdefault(document.kind, []).append(document)
        return found

    @property
    def virtual_services(self) -> Iterator[Document[VirtualService]]:
        """The VirtualServices, oldest first."""
        return self.of_kind("VirtualService")

    @property
    def destination_rules(self) -> Iterator[Document[DestinationRule]]:
        """The DestinationRules, oldest first."""
        return self.of_kind("DestinationRule")

    @cached_property
    def gateways(self) -> Mapping[tuple[str, str], Document[Gateway]]:
        """The Gateways by (namespace, name)."""
        return {(d.namespace, d.name): d for d in self.of_kind("Gateway")}

    def known(self, host: str) -> str | None:
        """The host of the registry that a host stands for: itself or a wildcard around it."""
        if host in self.ports:
            return host
        return max((name for name in self._wild if covers(name, host)), key=len, default=None)

    @cached_property
    def _wild(self) -> tuple[str, ...]:
        return tuple(name for name in self.ports if name.startswith("*"))


def full(host: str, namespace: str) -> str:
    """A short name as Istio completes it: `reviews` is `reviews.<namespace>.svc.cluster.local`."""
    host = host.lower()
    if "." in host or host in ("", "*") or is_ip(host):
        return host
    return f"{host}.{namespace}.svc.cluster.local"


def problem(
    severity: Severity,
    code: str,
    document: AnyDocument,
    path: FieldPath,
    message: str,
    found: str = "",
    allowed: str = "",
) -> Problem:
    """A finding about a field of a document; the path is of attribute names, below the document."""
    line, written = place(document, path)
    return Problem(
        severity, code, message, document.title, document.file, line, spell(written), found, allowed
    )


def place(document: AnyDocument, path: FieldPath) -> tuple[int, FieldPath]:
    """The line and the spelling of a path in the file."""
    line, written = document.line, ()  # type: int, FieldPath
    for part in path:
        choices: tuple[str | int, ...] = (
            (part,) if isinstance(part, int) else (part, camel(part), part.rstrip("_"))
        )
        step = next(((*written, name) for name in choices if (*written, name) in document.lines), None)
        written = step or (*written, camel(part) if isinstance(part, str) else part)
        line = document.line_of(written) or line
    return line, written
