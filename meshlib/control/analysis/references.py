"""What a document names and nobody defines: hosts, subsets, gateways, ports, workloads."""

from collections.abc import Iterator

from meshlib.control.analysis.world import World, full, problem
from meshlib.control.istio.claims import claims_of
from meshlib.control.istio.document import Document, FieldPath
from meshlib.control.istio.gateway import gateway_key
from meshlib.control.istio.problem import NEVER, Problem, Severity
from meshlib.control.istio.serviceentry import Resolution, ServiceEntry
from meshlib.control.istio.validity.hosts import covers, overlap
from meshlib.control.istio.virtualservice import Destination, VirtualService

ERROR, WARNING, INFO = Severity.ERROR, Severity.WARNING, Severity.INFO


def analyze(world: World) -> Iterator[Problem]:
    """Every reference."""
    subsets = _Subsets(world)
    for service in world.virtual_services:
        for path, destination in destinations(service.spec):
            yield from _destination(world, service, path, destination, subsets)
        yield from _gateways(world, service)
        yield from _claims(world, service)
    yield from _rules(world)
    yield from _ports(world)


def destinations(spec: VirtualService) -> Iterator[tuple[FieldPath, Destination]]:
    """Every destination of a VirtualService, mirrors too, with its path."""
    for group in ("http", "tls", "tcp"):
        for index, rule in enumerate(getattr(spec, group)):
            for position, target in enumerate(rule.route):
                if target.destination:
                    yield ("spec", group, index, "route", position, "destination"), target.destination
    for index, http in enumerate(spec.http):
        if http.mirror:
            yield ("spec", "http", index, "mirror"), http.mirror
        for position, mirror in enumerate(http.mirrors):
            if mirror.destination:
                yield ("spec", "http", index, "mirrors", position, "destination"), mirror.destination


class _Subsets:
    """The names of the subsets of a host, of the rules of wildcards around it too."""

    def __init__(self, world: World) -> None:
        self._exact: dict[str, set[str]] = {}
        self._wild: dict[str, set[str]] = {}
        for rule in world.destination_rules:
            host = full(rule.spec.host, rule.namespace)
            found = self._wild if host.startswith("*") else self._exact
            found.setdefault(host, set()).update(subset.name for subset in rule.spec.subsets)

    def of(self, host: str) -> set[str]:
        wild = (names for around, names in self._wild.items() if covers(around, host))
        return self._exact.get(host, set()).union(*wild)


def _destination(
    world: World,
    service: Document[VirtualService],
    path: FieldPath,
    destination: Destination,
    subsets: _Subsets,
) -> Iterator[Problem]:
    host = full(destination.host, service.namespace)
    known = world.known(host)
    if known is None:
        message = "no Service and no ServiceEntry has this host; requests to it are answered with 503"
        yield problem(ERROR, "IST0101", service, (*path, "host"), message, repr(host))
        return
    if destination.subset:
        names = subsets.of(host)
        if destination.subset not in names:
            message = f"no DestinationRule of {host} has this subset; requests to it are answered with 503"
            allowed = ", ".join(sorted(names)) or "a subset of a DestinationRule"
            yield problem(
                ERROR, "IST0101", service, (*path, "subset"), message, repr(destination.subset), allowed
            )
    ports = world.ports[known]
    listed = ", ".join(map(str, ports))
    if destination.port is None and len(ports) > 1:
        yield problem(ERROR, "IST0112", service, path, f"{host} has several ports", "no port", listed)
    if destination.port is not None and ports and destination.port.number not in ports:
        found = str(destination.port.number)
        yield problem(ERROR, "IST0101", service, (*path, "port"), f"{host} has no such port", found, listed)


def _gateways(world: World, service: Document[VirtualService]) -> Iterator[Problem]:
    known = world.gateways
    own = [*_keys(service.spec.gateways or ("mesh",), service)]
    lists: list[tuple[FieldPath, tuple[str, ...]]] = [(("spec", "gateways"), service.spec.gateways)]
    for group in ("http", "tls", "tcp"):
        for index, rule in enumerate(getattr(service.spec, group)):
            for position, match in enumerate(rule.match):
                lists.append((("spec", group, index, "match", position, "gateways"), match.gateways))
    for path, names in lists:
        for index, (name, key) in enumerate(zip(names, _keys(names, service), strict=True)):
            if name != "mesh" and key not in known:
                yield problem(ERROR, "IST0101", service, (*path, index), "no such Gateway", repr(name))
            elif key not in own and service.spec.hosts:
                message, allowed = (
                    "it never holds: the document is not for",
                    ", ".join(service.spec.gateways or ("mesh",)),
                )
                yield problem(WARNING, NEVER, service, (*path, index), message, repr(name), allowed)
    keys = [gateway_key(name, service.namespace) for name in service.spec.gateways]
    bound = [known[key] for key in keys if key in known]
    if not bound:
        return
    offered = [
        name.rpartition("/")[2]
        for gateway in bound
        for server in gateway.spec.servers
        for name in server.hosts
    ]
    for index, host in enumerate(service.spec.hosts):
        if not any(overlap(full(host, service.namespace), name) or overlap(host, name) for name in offered):
            path = ("spec", "hosts", index)
            message, allowed = "no server of its gateways has this host", ", ".join(sorted(set(offered)))
            yield problem(WARNING, "IST0132", service, path, message, repr(host), allowed)


def _keys(names: tuple[str, ...], service: Document[VirtualService]) -> Iterator[tuple[str, str]]:
    """Of Gateways; `mesh` is none."""
    for name in names:
        yield ("", "mesh") if name == "mesh" else gateway_key(name, service.namespace)


def _claims(world: World, service: Document[VirtualService]) -> Iterator[Problem]:
    if next(world.of_kind("RequestAuthentication"), None) is not None:
        return
    for index, rule in enumerate(service.spec.http):
        for position, match in enumerate(rule.match):
            for group, name in claims_of(match):
                path = ("spec", "http", index, "match", position, group, name)
                message = "claims are known only with a RequestAuthentication"
                yield problem(ERROR, "IST0149", service, path, message, repr(name))


def _rules(world: World) -> Iterator[Problem]:
    labels = _static_labels(world)
    for rule in world.destination_rules:
        host = full(rule.spec.host, rule.namespace)
        if world.known(host) is None and not _covers_any(host, world):
            message = "no Service and no ServiceEntry has this host"
            yield problem(WARNING, "IST0174", rule, ("spec", "host"), message, repr(host))
            continue
        for index, subset in enumerate(rule.spec.subsets):
            given = labels.get(host)
            if given and not any(subset.labels.items() <= one.items() for one in given):
                message = (
                    "none of the endpoints that are written down has these labels; "
                    "servers that register may have them"
                )
                path: FieldPath = ("spec", "subsets", index, "labels")
                yield problem(INFO, "IST0173", rule, path, message, str(dict(subset.labels)))


def _covers_any(host: str, world: World) -> bool:
    return host.startswith("*") and any(covers(host, name) for name in world.ports)


def _static_labels(world: World) -> dict[str, list[dict[str, str]]]:
    found: dict[str, list[dict[str, str]]] = {}
    entries = [(d.namespace, dict(d.spec.labels)) for d in world.of_kind("WorkloadEntry")]
    for document in world.documents:
        spec = document.spec
        if isinstance(spec, ServiceEntry):
            chosen = [dict(endpoint.labels) for endpoint in spec.endpoints]
            if spec.workload_selector:
                chosen += _selected(entries, document.namespace, dict(spec.workload_selector.labels))
            for host in spec.hosts:
                found.setdefault(host.lower(), []).extend(chosen)
        elif document.kind == "Service" and spec.selector:
            host = f"{document.name}.{document.namespace}.svc.cluster.local"
            found.setdefault(host, []).extend(_selected(entries, document.namespace, dict(spec.selector)))
    return found


def _selected(
    entries: list[tuple[str, dict[str, str]]], namespace: str, selector: dict[str, str]
) -> list[dict[str, str]]:
    return [labels for space, labels in entries if space == namespace and selector.items() <= labels.items()]


_PREFIXES = ("http", "http2", "https", "grpc", "grpc-web", "tcp", "tls", "udp", "mongo", "mysql", "redis")


def _ports(world: World) -> Iterator[Problem]:
    for document in world.documents:
        if document.kind == "Service":
            for index, port in enumerate(document.spec.ports):
                name = port.name.lower()
                fits = any(name == prefix or name.startswith(prefix + "-") for prefix in _PREFIXES)
                if not fits and not port.app_protocol:
                    message = "the name says no protocol; the port is taken for HTTP or TCP as it comes"
                    path: FieldPath = ("spec", "ports", index, "name")
                    allowed = "a name such as http or http-web, or appProtocol"
                    yield problem(INFO, "IST0118", document, path, message, repr(port.name), allowed)
        elif document.kind == "ServiceEntry" and document.spec.resolution is not Resolution.NONE:
            for index, entry_port in enumerate(document.spec.ports):
                if entry_port.protocol.upper() in ("TCP", "") and not document.spec.addresses:
                    message = "a TCP port without addresses takes all traffic of the port in an Envoy"
                    yield problem(
                        WARNING, "IST0134", document, ("spec", "ports", index), message, "", "addresses"
                    )
