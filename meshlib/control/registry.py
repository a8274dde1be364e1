"""The services known now, and the endpoints behind each of their ports.

Services come from Service and ServiceEntry. Endpoints come from servers that registered, from
WorkloadEntries (both by labels), from a ServiceEntry's own list, and from Endpoints and EndpointSlices.

Rules:

- A Service selects workloads of its own namespace that carry all labels of its selector; one without
  a selector selects nothing.
- A Service's target port by name is looked up in the workload's named ports. A registered server is
  reached at a port it reported: under the target's name, the service port's name, or of the target's
  number; or, if server and service have one port each, at that one.
- Two processes may serve one address and port (a new one beside the old, with its socket): that is one
  endpoint, which drains when both do.
- ServiceEntries of one host and namespace are one service, with the ports of all, if what `unlike` compares
  is the same; otherwise the oldest is it. Endpoints of a host and namespace are one set, whoever lists them:
  a port takes those of its name (Istio).
- A Service with `publishNotReadyAddresses` lists what is not ready too.
- A workload takes mutual TLS if its label `security.istio.io/tlsMode` is `istio` (or, of one that is
  written down without the label, if it has a service account), unless PeerAuthentication says DISABLE.
- Endpoints are worked out when first asked for, and kept until workloads or documents change.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum

from meshlib.control.istio.document import AnyDocument, FieldPath
from meshlib.control.istio.kubernetes import Service as KubernetesService
from meshlib.control.istio.serviceentry import Location, Resolution, ServiceEntry
from meshlib.control.istio.validity.hosts import is_ip
from meshlib.control.istio.workloadentry import WorkloadEntry
from meshlib.control.registration import Registration
from meshlib.xds.names import MUTUAL, TLS_MODE_LABEL, TUNNEL_HTTP, TUNNEL_LABEL
from meshlib.xds.node import Locality

EXPORT_TO = "networking.istio.io/exportTo"
SERVICE_NAME = "kubernetes.io/service-name"


class Protocol(Enum):
    """What is spoken at a port, as far as routing cares."""

    HTTP = "http"
    HTTP2 = "http2"
    TLS = "tls"
    TCP = "tcp"
    UDP = "udp"
    SNIFFED = "sniffed"

    @property
    def routed(self) -> bool:
        """Whether requests at such a port follow HTTP rules."""
        return self in (Protocol.HTTP, Protocol.HTTP2, Protocol.SNIFFED)


_PROTOCOLS = {
    "http": Protocol.HTTP,
    "http2": Protocol.HTTP2,
    "grpc": Protocol.HTTP2,
    "grpc-web": Protocol.HTTP2,
    "kubernetes.io/h2c": Protocol.HTTP2,
    "kubernetes.io/ws": Protocol.HTTP,
    "kubernetes.io/wss": Protocol.TLS,
    "https": Protocol.TLS,
    "tls": Protocol.TLS,
    "tcp": Protocol.TCP,
    "mongo": Protocol.TCP,
    "mysql": Protocol.TCP,
    "redis": Protocol.TCP,
    "udp": Protocol.UDP,
}
_TCP_PORTS = frozenset((25, 53, 3306, 27017))


def protocol_of(name: str, number: int, declared: str = "") -> Protocol:
    """The protocol of a port: as declared, else by its name's prefix, else found out from the bytes."""
    if declared and declared.lower() in _PROTOCOLS:
        return _PROTOCOLS[declared.lower()]
    lower = name.lower()
    if lower == "grpc-web" or lower.startswith("grpc-web-"):
        return Protocol.HTTP2
    found = _PROTOCOLS.get(lower.partition("-")[0])
    if found is not None:
        return found
    return Protocol.TCP if number in _TCP_PORTS else Protocol.SNIFFED


@dataclass(frozen=True, slots=True)
class Port:
    """A port of a service. `target` is a number, or the name of a workload's port."""

    number: int
    name: str
    protocol: Protocol
    target: int | str


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One address behind a port of a service. Equal is equal: compiled resources are kept by it."""

    address: str
    """An IP address, a host name, or `unix:///path`."""
    port: int
    labels: tuple[tuple[str, str], ...] = ()
    locality: Locality = field(default_factory=Locality)
    weight: int = 1
    draining: bool = False
    identity: tuple[str, str] | None = None
    """Namespace and service account; None: it has none that is known."""
    mutual: bool = False
    """Whether it takes Istio's mutual TLS."""
    namespace: str = ""
    """Of the workload; empty: it is not known."""

    @property
    def tunnel(self) -> bool:
        """Whether it takes HBONE, too."""
        return self.mutual and (TUNNEL_LABEL, TUNNEL_HTTP) in self.labels

    def has(self, labels: Mapping[str, str]) -> bool:
        """Whether it carries all these labels."""
        own = dict(self.labels)
        return all(own.get(key) == value for key, value in labels.items())


Takes = Callable[[str, Mapping[str, str], int], bool]
"""Whether the port of the workload of that namespace and labels takes mutual TLS (PeerAuthentication)."""


def _all(_namespace: str, _labels: Mapping[str, str], _port: int) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Workload:
    """Something that serves: a registered server or a WorkloadEntry."""

    namespace: str
    labels: Mapping[str, str]
    address: str
    ports: Mapping[str, int]
    locality: Locality = field(default_factory=Locality)
    weight: int = 1
    draining: bool = False
    registered: bool = False
    service_account: str = ""
    """Empty: it is not known."""

    @property
    def secured(self) -> bool:
        """Whether it says that it takes mutual TLS: by a label, or (written down) by having an account."""
        said = self.labels.get(TLS_MODE_LABEL)
        return said == MUTUAL if said is not None else bool(self.service_account) and not self.registered

    def endpoint(self, port: Port, takes: "Takes", *, only: bool = False) -> Endpoint | None:
        """Where it serves that port, the `only` one of its service; None: it does not."""
        number = self.number(port, only)
        if number is None or not self.address:  # in another network, behind a gateway of that
            return None
        return Endpoint(
            self.address,
            number,
            tuple(sorted(self.labels.items())),
            self.locality,
            self.weight,
            self.draining,
            (self.namespace, self.service_account) if self.service_account else None,
            self.secured and takes(self.namespace, self.labels, number),
            self.namespace,
        )

    def number(self, port: Port, only: bool) -> int | None:
        """Under which number it serves that port, the `only` one of its service; None: it does not."""
        wanted = port.target if isinstance(port.target, str) else port.name
        if wanted in self.ports:
            return self.ports[wanted]
        number = port.target if isinstance(port.target, int) else None
        if not self.registered or number in self.ports.values():
            return number
        # A process that reported a single port serves a service of a single port, whatever that is called.
        if only and len(self.ports) == 1:
            return next(iter(self.ports.values()))
        return None if self.ports else number


@dataclass(frozen=True, slots=True, eq=False)
class Service:
    """One host name with its ports. Compare by identity; `fingerprint` tells equal ones."""

    host: str
    namespace: str
    name: str
    ports: tuple[Port, ...]
    document: AnyDocument
    resolution: Resolution = Resolution.STATIC
    external: bool = False
    kubernetes: bool = False
    headless: bool = False
    selector: Mapping[str, str] | None = None
    addresses: tuple[str, ...] = ()
    subnets: tuple[str, ...] = ()
    export_to: tuple[str, ...] = ()
    """Empty: the mesh's default."""
    listed: tuple[WorkloadEntry, ...] = ()
    """The endpoints that the ServiceEntry lists itself."""
    subject_alt_names: tuple[str, ...] = ()
    not_ready: bool = False
    beside: tuple["Service", ...] = ()
    """All of its host and namespace, as they were written, itself too; empty: it is alone."""

    @property
    def fingerprint(self) -> tuple[str, ...]:
        """Equal for services of equal content."""
        return self.host, self.document.fingerprint, *(each.document.fingerprint for each in self.beside)

    def source(self, number: int) -> AnyDocument:
        """The document that the port of that number comes from."""
        if self.document.kind != "ServiceEntry" or any(p.number == number for p in self.document.spec.ports):
            return self.document
        return next((each.document for each in self.beside if each.port(number)), self.document)

    def port(self, number: int) -> Port | None:
        """The port of that number."""
        return next((port for port in self.ports if port.number == number), None)


def services_of(document: AnyDocument, domain: str) -> tuple[Service, ...]:
    """The services of a Service or ServiceEntry document; none of another kind."""
    if document.kind == "Service":
        return (_kubernetes(document, document.spec, domain),)
    if document.kind == "ServiceEntry":
        return tuple(_entry(document, document.spec, host) for host in document.spec.hosts)
    return ()


def _kubernetes(document: AnyDocument, spec: KubernetesService, domain: str) -> Service:
    ports = tuple(
        Port(
            port.port,
            port.name,
            Protocol.UDP if port.protocol == "UDP" else protocol_of(port.name, port.port, port.app_protocol),
            port.target_port or port.port,
        )
        for port in spec.ports
    )
    host = f"{document.name}.{document.namespace}.svc.{domain}"
    exported = document.annotations.get(EXPORT_TO, "")
    addresses = tuple(dict.fromkeys(a for a in (spec.cluster_ip, *spec.cluster_ips) if a and a != "None"))
    outside = spec.type == "ExternalName"
    return Service(
        host=host,
        namespace=document.namespace,
        name=document.name,
        ports=ports,
        document=document,
        resolution=Resolution.DNS if outside else Resolution.STATIC,
        external=outside,
        kubernetes=True,
        headless=spec.cluster_ip == "None",
        selector=spec.selector or None,
        addresses=addresses,
        export_to=tuple(part.strip() for part in exported.split(",") if part.strip()),
        listed=(WorkloadEntry(address=spec.external_name),) if outside else (),
        not_ready=spec.publish_not_ready_addresses,
    )


def _entry(document: AnyDocument, spec: ServiceEntry, host: str) -> Service:
    ports = tuple(
        Port(p.number, p.name, protocol_of(p.name, p.number, p.protocol), p.target_port or p.number)
        for p in spec.ports
    )
    listed = spec.endpoints
    by_name = spec.resolution in (Resolution.DNS, Resolution.DNS_ROUND_ROBIN)
    if by_name and not listed and spec.workload_selector is None:
        listed = (WorkloadEntry(address=host.lower()),)
    return Service(
        host=host.lower(),
        namespace=document.namespace,
        name=document.name,
        ports=ports,
        document=document,
        resolution=spec.resolution,
        external=spec.location is Location.MESH_EXTERNAL,
        selector=spec.workload_selector.labels if spec.workload_selector else None,
        addresses=tuple(address for address in spec.addresses if "/" not in address),
        subnets=tuple(address for address in spec.addresses if "/" in address),
        export_to=spec.export_to,
        listed=listed,
        subject_alt_names=spec.subject_alt_names,
    )


def _written(entry: WorkloadEntry, namespace: str) -> Workload:
    return Workload(
        namespace,
        entry.labels,
        entry.address,
        entry.ports,
        Locality.parse(entry.locality),
        entry.weight or 1,
        service_account=entry.service_account,
    )


def _registered(registration: Registration) -> Workload:
    return Workload(
        registration.namespace,
        registration.label_map,
        registration.address,
        registration.port_map,
        registration.locality,
        registration.weight,
        registration.draining,
        registered=True,
        service_account=registration.service_account,
    )


@dataclass(slots=True)
class _Pool:
    """Workloads by namespace and label, so that a selector is answered without looking at all."""

    found: dict[tuple[str, str, str], list[Workload]] = field(default_factory=dict)
    all: dict[str, list[Workload]] = field(default_factory=dict)

    @classmethod
    def of(cls, workloads: Iterable[Workload]) -> "_Pool":
        pool = cls()
        for workload in workloads:
            pool.all.setdefault(workload.namespace, []).append(workload)
            for key, value in workload.labels.items():
                pool.found.setdefault((workload.namespace, key, value), []).append(workload)
        return pool

    def select(self, namespace: str, selector: Mapping[str, str]) -> Sequence[Workload]:
        """Those of the namespace with all the labels; an empty selector takes all."""
        if not selector:
            return self.all.get(namespace, ())
        lists = [self.found.get((namespace, key, value), ()) for key, value in selector.items()]
        least = min(lists, key=len)
        return [w for w in least if all(w.labels.get(k) == v for k, v in selector.items())]


class Registry:
    """Services by host, and their endpoints. Immutable but for what it remembers."""

    def __init__(
        self,
        services: Mapping[str, tuple[Service, ...]],
        written: _Pool,
        listed: Mapping[tuple[str, str], tuple[AnyDocument, ...]],
        registrations: tuple[Registration, ...] = (),
        takes: Takes = _all,
    ) -> None:
        """`services` by host, best first; `listed` the Endpoints and EndpointSlices of a Service."""
        self._takes = takes
        self.services = services
        self.registrations = registrations
        self._written = written
        self._listed = listed
        self._pool = _Pool.of(_registered(r) for r in registrations)
        self._endpoints: dict[tuple[object, ...], tuple[Endpoint, ...]] = {}

    def with_registrations(self, registrations: tuple[Registration, ...]) -> "Registry":
        """The same documents with other registered servers."""
        return Registry(self.services, self._written, self._listed, registrations, self._takes)

    def endpoints(self, service: Service, port: Port) -> tuple[Endpoint, ...]:
        """The endpoints behind a port, sorted, each address once."""
        key = (service.namespace, service.host, service.resolution, port.number, port.name)
        found = self._endpoints.get(key)
        if found is None:
            # Two processes may serve one socket; of them the one that stays speaks for it.
            known = sorted(self._of_all(service, port), key=lambda e: not e.draining)
            unique = {(e.address, e.port): e for e in known}
            ordered = sorted(unique.values(), key=lambda e: (e.address, e.port))
            found = self._endpoints[key] = tuple(ordered)
        return found

    def leading_to(self, service: Service, labels: Mapping[str, str], number: int) -> frozenset[int]:
        """The numbers of a service's ports that lead to port `number` of a workload of its namespace with
        these labels: by their target's number, or as such a workload registered.
        """
        return frozenset().union(
            *(self._leading(each, labels, number) for each in service.beside or (service,))
        )

    def _leading(self, service: Service, labels: Mapping[str, str], number: int) -> frozenset[int]:
        selector = service.selector
        if selector is None or any(labels.get(key) != value for key, value in selector.items()):
            return frozenset()
        same = [one for one in self._pool.select(service.namespace, selector) if one.labels == labels]
        only = len(service.ports) == 1
        return frozenset(
            port.number
            for port in service.ports
            if port.target == number or any(one.number(port, only) == number for one in same)
        )

    def _of_all(self, service: Service, port: Port) -> Iterable[Endpoint]:
        """Those of the service, and of what else is of its host and namespace."""
        if not service.beside:
            yield from self._find(service, port)
        listed = service.resolution is Resolution.STATIC
        for each in service.beside:
            for own in each.ports:
                if own.name == port.name:
                    # What is listed for the client is not looked up by it.
                    by_name = listed and each.resolution is not Resolution.STATIC
                    yield from (e for e in self._find(each, own) if not by_name or is_ip(e.address))

    def _find(self, service: Service, port: Port) -> Iterable[Endpoint]:
        workloads = [_written(entry, service.namespace) for entry in service.listed]
        if service.selector is not None:
            workloads += self._written.select(service.namespace, service.selector)
            workloads += self._pool.select(service.namespace, service.selector)
        for workload in workloads:
            endpoint = workload.endpoint(port, self._takes, only=len(service.ports) == 1)
            if endpoint is not None:
                yield endpoint
        for document in self._listed.get((service.namespace, service.name), ()) if service.kubernetes else ():
            yield from _of_document(document, service, port)


def serving(registry: Registry, registration: Registration) -> Iterable[tuple[Port, int]]:
    """The ports of services that lead to a registered server, by host, and to which of its ports they do."""
    workload = _registered(registration)
    for host in sorted(registry.services):
        for service in registry.services[host]:
            for each in service.beside or (service,):
                selector = each.selector
                if each.namespace != workload.namespace or selector is None:
                    continue
                if any(workload.labels.get(key) != value for key, value in selector.items()):
                    continue
                for port in each.ports:
                    number = workload.number(port, len(each.ports) == 1)
                    if number is not None and port.protocol is not Protocol.UDP:
                        yield port, number


def _of_document(document: AnyDocument, service: Service, port: Port) -> Iterable[Endpoint]:
    if document.kind == "Endpoints":
        for subset in document.spec.subsets:
            number = _number(subset.ports, port)
            for address in subset.addresses:
                if number is not None:
                    yield Endpoint(address.ip, number)
            for address in subset.not_ready_addresses if service.not_ready else ():
                if number is not None:
                    yield Endpoint(address.ip, number)
        return
    number = _number(document.spec.ports, port)
    for endpoint in document.spec.endpoints:
        said = endpoint.conditions
        # One that ends is never ready; as long as it still serves, it is drained.
        drains = bool(said.terminating) and said.serving is not False
        if number is None or (said.ready is False and not drains and not service.not_ready):
            continue
        where = Locality(zone=endpoint.zone)
        for address in endpoint.addresses[:1]:
            yield Endpoint(address, number, locality=where, draining=bool(said.terminating))


def _number(ports: Iterable[object], port: Port) -> int | None:
    for listed in ports:
        name, number = getattr(listed, "name", ""), int(getattr(listed, "port", 0))
        if name == port.name or (not name and not port.name):
            return number or None
    return None


def build_registry(
    documents: Iterable[AnyDocument],
    registrations: tuple[Registration, ...] = (),
    domain: str = "cluster.local",
    takes: Takes = _all,
) -> Registry:
    """The registry of these documents. A Service beats a ServiceEntry of its host; else the oldest wins."""
    services: dict[str, list[Service]] = {}
    listed: dict[tuple[str, str], list[AnyDocument]] = {}
    written: list[Workload] = []
    for document in documents:
        if document.kind in ("Service", "ServiceEntry"):
            for service in services_of(document, domain):
                services.setdefault(service.host, []).append(service)
        elif document.kind == "WorkloadEntry":
            entry: WorkloadEntry = document.spec
            labels = {**document.labels, **entry.labels}
            written.append(_written(entry.model_copy(update={"labels": labels}), document.namespace))
        elif document.kind == "Endpoints":
            listed.setdefault((document.namespace, document.name), []).append(document)
        elif document.kind == "EndpointSlice":
            owner = document.labels.get(SERVICE_NAME, "")
            listed.setdefault((document.namespace, owner), []).append(document)
    return Registry(
        {host: _ordered(found) for host, found in services.items()},
        _Pool.of(written),
        {key: tuple(found) for key, found in listed.items()},
        registrations,
        takes,
    )


def _ordered(services: list[Service]) -> tuple[Service, ...]:
    if len(services) == 1:
        return (services[0],)
    spaces: dict[str, list[Service]] = {}
    for service in sorted(services, key=lambda s: (not s.kubernetes, s.document.age)):
        spaces.setdefault(service.namespace, []).append(service)
    merged = [each for found in spaces.values() for each in _merged(found)]
    return tuple(sorted(merged, key=lambda s: (not s.kubernetes, s.document.age)))


def _merged(services: Sequence[Service]) -> Iterable[Service]:
    """The services of one host and namespace, best first: the first one takes the ports of the others."""
    if len(services) == 1:
        return services
    first, others = services[0], services[1:]
    ports = {port.number: port for port in first.ports}
    apart: list[Service] = []
    for other in others:
        if first.kubernetes or unlike(first.document, other.document):
            apart.append(other)
            continue
        for port in other.ports:
            ports.setdefault(port.number, port)
    beside = tuple(services)
    return [
        replace(first, ports=tuple(ports.values()), beside=beside),
        *(replace(o, beside=beside) for o in apart),
    ]


def unlike(one: AnyDocument, other: AnyDocument) -> FieldPath:
    """Where two ServiceEntries of one host differ, so that they are not merged; empty: nowhere."""
    if one.spec.resolution is not other.spec.resolution:
        return "spec", "resolution"
    if one.labels != other.labels:
        return "metadata", "labels"
    if one.spec.workload_selector != other.spec.workload_selector:
        return "spec", "workload_selector"
    return ("spec", "export_to") if set(one.spec.export_to) != set(other.spec.export_to) else ()
