"""Which VirtualService holds for a host, for clients of one namespace.

Rules (Istio):

- A namespace sees its own private ones first, then those exported to it, then public ones; each oldest
  first. Two for one host are not merged: the first one seen has the host, the other none of it.
- For a service the VirtualService of the closest host holds: exact, else the longest wildcard.
- Clients are bound by the gateway name `mesh`, of the whole document. A match may narrow its gateways, not
  widen them: it is looked at only for those that the document names.
- One without hosts is a delegate and holds for nothing by itself.
- Rules of requests (http) and of connections (tls, tcp) are looked for apart: one that has only the one kind
  leaves the other kind to the next.
- Those for gateways alone hold for no client; what browsers may do at a server (CORS), they say nevertheless.
"""

from collections.abc import Iterable, Iterator

from meshlib.control.graph.delegates import Rule, Skipped, rules_of
from meshlib.control.graph.hosts import HostIndex, expand
from meshlib.control.graph.visibility import by_age, exported_to, rank, visible
from meshlib.control.istio.document import AnyDocument
from meshlib.control.istio.gateway import gateway_key
from meshlib.control.istio.virtualservice import RouteDestination

MESH = "mesh"


class VirtualService:
    """A VirtualService with full host names, its delegates' rules in place."""

    def __init__(self, document: AnyDocument, hosts: tuple[str, ...], owner: "VirtualServices") -> None:
        self.document = document
        self.hosts = hosts
        self.gateways: tuple[str, ...] = document.spec.gateways or (MESH,)
        self._owner = owner
        self._rules: tuple[tuple[Rule, ...], tuple[Skipped, ...]] | None = None

    def __repr__(self) -> str:
        return f"<{self.document.title} for {', '.join(self.hosts)}>"

    @property
    def rules(self) -> tuple[Rule, ...]:
        """Its rules, in order."""
        return self._both()[0]

    @property
    def connections(self) -> tuple[RouteDestination, ...]:
        """Everywhere that its rules of connections lead to."""
        spec = self.document.spec
        return tuple(split for rule in (*spec.tls, *spec.tcp) for split in rule.route)

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """Rules left out while delegates were put in place."""
        return self._both()[1]

    @property
    def fingerprint(self) -> tuple[str, ...]:
        """Changes whenever the rules do."""
        documents = dict.fromkeys((self.document, *(rule.document for rule in self.rules)))
        return (*(document.fingerprint for document in documents), *(s.reason for s in self.skipped))

    def _both(self) -> tuple[tuple[Rule, ...], tuple[Skipped, ...]]:
        if self._rules is None:
            root = self.document.namespace

            def find(namespace: str, name: str) -> AnyDocument | None:
                return self._owner.delegate(namespace, name, root)

            self._rules = rules_of(self.document, find)
        return self._rules


class VirtualServices:
    """All of them, answered by namespace."""

    def __init__(self, documents: Iterable[AnyDocument], default: tuple[str, ...], domain: str) -> None:
        """`default` is the mesh's exportTo for them."""
        self._default = default
        self._delegates: dict[tuple[str, str], AnyDocument] = {}
        self._requests, self._connections = _Seen(self), _Seen(self)
        self._cors_hosts: frozenset[str] | None = None
        self._bound: dict[tuple[str, str], list[VirtualService]] | None = None
        every: list[VirtualService] = []
        for document in by_age(list(documents)):
            if not document.spec.hosts:
                self._delegates[document.namespace, document.name] = document
                continue
            hosts = tuple(expand(host, document.namespace, domain) for host in document.spec.hosts)
            made = VirtualService(document, hosts, self)
            every.append(made)
            if MESH not in made.gateways:
                continue
            spec = document.spec
            if spec.http:
                self._requests.add(made)
            if spec.tls or spec.tcp:
                self._connections.add(made)

        self.every = tuple(every)
        """Those that have hosts, for gateways too, oldest first."""

    def cors_hosts(self, domain: str) -> frozenset[str]:
        """The full hosts that rules with a corsPolicy send to."""
        if self._cors_hosts is None:
            self._cors_hosts = frozenset(
                expand(split.destination.host, rule.document.namespace, domain)
                for virtual in self.every
                for rule in virtual.rules
                if rule.route.cors_policy is not None
                for split in rule.route.route
                if split.destination is not None
            )
        return self._cors_hosts

    def bound(self, gateway: tuple[str, str], namespace: str) -> Iterator[VirtualService]:
        """Those for the Gateway of that namespace and name that `namespace` sees, oldest first."""
        if self._bound is None:
            self._bound = {}
            for virtual in self.every:
                place = virtual.document.namespace
                names = (name for name in virtual.gateways if name != MESH)
                for key in dict.fromkeys(gateway_key(name, place) for name in names):
                    self._bound.setdefault(key, []).append(virtual)
        for virtual in self._bound.get(gateway, ()):
            if visible(self.exported(virtual.document), virtual.document.namespace, namespace):
                yield virtual

    def exported(self, document: AnyDocument) -> tuple[str, ...]:
        """Its exportTo in force."""
        return exported_to(document.spec.export_to, self._default)

    def delegate(self, namespace: str, name: str, root: str) -> AnyDocument | None:
        """A delegate that the namespace `root` may use."""
        document = self._delegates.get((namespace, name))
        if document is None or not visible(self.exported(document), namespace, root):
            return None
        return document

    def seen_from(self, namespace: str) -> HostIndex[VirtualService]:
        """What clients of a namespace see of rules of requests, by host."""
        return self._requests.seen_from(namespace)

    def connecting_from(self, namespace: str) -> HostIndex[VirtualService]:
        """What clients of a namespace see of rules of connections, by host."""
        return self._connections.seen_from(namespace)


class _Seen:
    """VirtualServices with rules of one kind, by who sees them. They are added oldest first."""

    def __init__(self, owner: VirtualServices) -> None:
        self._owner = owner
        self._public: list[VirtualService] = []
        self._narrow: list[VirtualService] = []
        self._by_namespace: dict[str, HostIndex[VirtualService]] = {}

    def add(self, virtual: VirtualService) -> None:
        public = "*" in self._owner.exported(virtual.document)
        (self._public if public else self._narrow).append(virtual)

    def seen_from(self, namespace: str) -> HostIndex[VirtualService]:
        exported = self._owner.exported
        narrow = [
            virtual
            for virtual in self._narrow
            if visible(exported(virtual.document), virtual.document.namespace, namespace)
        ]
        key = namespace if narrow else ""
        found = self._by_namespace.get(key)
        if found is None:
            narrow.sort(key=lambda v: rank(exported(v.document), v.document.namespace, namespace))
            found = HostIndex()
            for virtual in (*narrow, *self._public):
                for host in virtual.hosts:
                    found.put(host, virtual)
            self._by_namespace[key] = found
        return found
