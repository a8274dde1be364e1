"""Documents that get in each other's way."""

from collections import defaultdict
from collections.abc import Iterator

from meshlib.control.analysis.world import World, full, problem
from meshlib.control.istio.destinationrule import ClientTLSMode, TrafficPolicy
from meshlib.control.istio.document import AnyDocument, FieldPath
from meshlib.control.istio.problem import HIDDEN, Problem, Severity
from meshlib.control.istio.validity.hosts import overlap
from meshlib.control.registry import unlike

ERROR, WARNING = Severity.ERROR, Severity.WARNING


def analyze(world: World) -> Iterator[Problem]:
    """Every conflict."""
    yield from _mesh_hosts(world)
    yield from _rules(world)
    yield from _entries(world)
    yield from _selectors(world, "Sidecar", ERROR, "IST0110", "IST0111")
    yield from _selectors(world, "Telemetry", ERROR, "IST0159", "IST0160")
    yield from _selectors(world, "PeerAuthentication", WARNING, HIDDEN, HIDDEN)
    yield from _gateways(world)
    yield from _protocols(world)
    yield from _unverified(world)


def _mesh_hosts(world: World) -> Iterator[Problem]:
    """VirtualServices of the mesh are not merged: the oldest wins, the others are without effect."""
    owners: dict[str, AnyDocument] = {}
    for service in world.virtual_services:
        if service.spec.gateways and "mesh" not in service.spec.gateways:
            continue
        for index, host in enumerate(service.spec.hosts):
            name = full(host, service.namespace)
            first = owners.setdefault(name, service)
            private = "." in service.spec.export_to or "." in first.spec.export_to
            if first is service or (private and first.namespace != service.namespace):
                continue
            message = (
                f"{first.title} ({first.source()}) has this host already, and it wins; they are not merged"
            )
            yield problem(ERROR, "IST0109", service, ("spec", "hosts", index), message, repr(name))


def _rules(world: World) -> Iterator[Problem]:
    """DestinationRules of one namespace and host are merged, oldest first; what stands twice counts once."""
    merged: dict[tuple[str, str], list[AnyDocument]] = defaultdict(list)
    for rule in world.destination_rules:
        if rule.spec.workload_selector is None:
            merged[rule.namespace, full(rule.spec.host, rule.namespace)].append(rule)
    for first, *others in merged.values():
        policy = first if first.spec.traffic_policy is not None else None
        subsets = {subset.name: (subset, first) for subset in first.spec.subsets}
        for rule in others:
            if set(rule.spec.export_to) != set(first.spec.export_to):
                message = f"another exportTo than {first.title} ({first.source()}), so they are not merged"
                yield problem(WARNING, HIDDEN, rule, ("spec", "export_to"), message)
                continue
            own = rule.spec.traffic_policy
            if own is not None and policy is None:
                policy = rule
            elif own is not None and policy is not None and own != policy.spec.traffic_policy:
                message = f"{policy.title} ({policy.source()}) has a policy for this host, and it wins whole"
                yield problem(WARNING, HIDDEN, rule, ("spec", "traffic_policy"), message)
            for index, subset in enumerate(rule.spec.subsets):
                known, where = subsets.setdefault(subset.name, (subset, rule))
                if known != subset:
                    message = f"{where.title} ({where.source()}) has another subset of this name, and it wins"
                    at: FieldPath = ("spec", "subsets", index, "name")
                    yield problem(WARNING, HIDDEN, rule, at, message, repr(subset.name))


def _entries(world: World) -> Iterator[Problem]:
    """ServiceEntries of one namespace and host are merged if they are alike; else the oldest wins."""
    owners: dict[tuple[str, str], AnyDocument] = {}
    for entry in world.of_kind("ServiceEntry"):
        for host in entry.spec.hosts:
            first = owners.setdefault((entry.namespace, host.lower()), entry)
            at = unlike(first, entry)
            if at:
                message = (
                    f"not as {first.title} ({first.source()}) has it, which is the service of {host}: "
                    "of this one only the endpoints count, at ports of the same name"
                )
                yield problem(WARNING, HIDDEN, entry, at, message)
            names = {port.name: port.number for port in first.spec.ports}
            for index, port in enumerate(entry.spec.ports):
                if names.get(port.name, port.number) != port.number:
                    message = (
                        f"{first.title} ({first.source()}) has port {names[port.name]} of {host} under this "
                        "name: endpoints belong to a port by its name, so both ports have those of both"
                    )
                    path: FieldPath = ("spec", "ports", index, "name")
                    yield problem(WARNING, HIDDEN, entry, path, message, repr(port.name))


def _labels(document: AnyDocument) -> tuple[str, dict[str, str]]:
    if document.kind == "Sidecar":
        selector = document.spec.workload_selector
        return "workload_selector", dict(selector.labels) if selector else {}
    return "selector", dict(document.spec.selector.match_labels) if document.spec.selector else {}


def _selectors(world: World, kind: str, severity: Severity, same: str, none: str) -> Iterator[Problem]:
    seen: dict[tuple[str, tuple[tuple[str, str], ...]], AnyDocument] = {}
    for document in world.of_kind(kind):
        field, labels = _labels(document)
        if kind == "Telemetry" and (document.spec.target_ref or document.spec.target_refs):
            continue
        first = seen.setdefault((document.namespace, tuple(sorted(labels.items()))), document)
        if first is document:
            continue
        if labels:
            message = f"selects the same workloads as {first.title} ({first.source()}), which wins"
            yield problem(severity, same, document, ("spec", field), message)
        else:
            message = f"{first.title} ({first.source()}) has no selector either, and it wins"
            yield problem(severity, none, document, ("spec",), message)


def _gateways(world: World) -> Iterator[Problem]:
    seen: list[tuple[AnyDocument, dict[str, str], int, str, str]] = []
    for gateway in world.of_kind("Gateway"):
        for index, server in enumerate(gateway.spec.servers):
            for position, host in enumerate(server.hosts):
                number = server.port.number if server.port else 0
                for other, labels, port, bind, taken in seen:
                    if (
                        other is not gateway
                        and (port, bind) == (number, server.bind)
                        and (
                            labels == dict(gateway.spec.selector) and overlap(host.rpartition("/")[2], taken)
                        )
                    ):
                        message = (
                            f"{other.title} ({other.source()}) serves this host on port {number} already"
                        )
                        path: FieldPath = ("spec", "servers", index, "hosts", position)
                        yield problem(ERROR, "IST0145", gateway, path, message, repr(host))
                        break
                seen.append(
                    (gateway, dict(gateway.spec.selector), number, server.bind, host.rpartition("/")[2])
                )


def _protocols(world: World) -> Iterator[Problem]:
    seen: dict[tuple[str, int], list[tuple[str, AnyDocument]]] = defaultdict(list)
    for entry in world.of_kind("ServiceEntry"):
        for index, port in enumerate(entry.spec.ports):
            for host in entry.spec.hosts:
                for protocol, first in seen[host.lower(), port.number]:
                    if protocol != port.protocol.upper() and first is not entry:
                        message = f"{first.title} ({first.source()}) says {protocol} for {host}:{port.number}"
                        path: FieldPath = ("spec", "ports", index, "protocol")
                        yield problem(WARNING, "IST0177", entry, path, message, repr(port.protocol))
                seen[host.lower(), port.number].append((port.protocol.upper(), entry))


def _unverified(world: World) -> Iterator[Problem]:
    message = "no caCertificates: the server's certificate is verified by the system's authorities only"
    for rule in world.destination_rules:
        places: list[tuple[FieldPath, TrafficPolicy | None]] = [
            (("spec", "traffic_policy"), rule.spec.traffic_policy)
        ]
        places += [
            (("spec", "subsets", index, "traffic_policy"), subset.traffic_policy)
            for index, subset in enumerate(rule.spec.subsets)
        ]
        for path, policy in places:
            levels = [("IST0128", path, policy.tls)] if policy else []
            for index, level in enumerate(policy.port_level_settings if policy else ()):
                levels.append(("IST0129", (*path, "port_level_settings", index), level.tls))
            for code, at, tls in levels:
                plain = tls is None or tls.mode not in (ClientTLSMode.SIMPLE, ClientTLSMode.MUTUAL)
                if plain or tls is None or tls.ca_certificates or tls.credential_name:
                    continue
                yield problem(WARNING, code, rule, (*at, "tls"), message)
