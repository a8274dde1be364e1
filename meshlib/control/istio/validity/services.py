"""ServiceEntry, WorkloadEntry and WorkloadGroup, as Istio's webhook checks them."""

from meshlib.control.istio.serviceentry import Resolution, ServiceEntry
from meshlib.control.istio.validity import hosts, locality
from meshlib.control.istio.validity.report import Report
from meshlib.control.istio.workloadentry import WorkloadEntry
from meshlib.control.istio.workloadgroup import ReadinessProbe, WorkloadGroup

_TOLD_APART = ("HTTP", "HTTP2", "HTTP_PROXY", "GRPC", "GRPC-WEB", "HTTPS", "TLS")
"""Protocols of which a message names the host it is for."""
_WILD = (Resolution.DYNAMIC_DNS,)


def service_entry(spec: ServiceEntry, to: Report) -> None:
    """The whole spec."""
    if not 1 <= len(spec.hosts) <= 256:
        to.at("hosts").error("not that many hosts", len(spec.hosts), "1 to 256")
    for index, name in enumerate(spec.hosts):
        if name == "*":
            to.at("hosts", index).error(
                "all hosts of the world", "'*'", "a narrower one, such as *.example.com"
            )
        else:
            hosts.host(name, to.at("hosts", index), wildcard=True)
            if name.startswith("*") and not name.startswith("*.") and spec.resolution not in _WILD:
                to.at("hosts", index).warn("a part of a label as a wildcard", repr(name), "*.example.com")
    for index, address in enumerate(spec.addresses):
        at = to.at("addresses", index)
        if not hosts.is_subnet(address):
            at.error("not an IP address or range", repr(address), "such as 10.1.2.3 or 10.1.0.0/16")
        elif "/" in address and spec.resolution not in (Resolution.NONE, Resolution.STATIC):
            at.error(
                f"a range with resolution {spec.resolution.value}",
                repr(address),
                "NONE or STATIC, or an address",
            )
    _ports(spec, to)
    _resolution(spec, to)
    for index, endpoint in enumerate(spec.endpoints):
        _endpoint(endpoint, spec, to.at("endpoints", index))
    hosts.selecting(spec.workload_selector, to.at("workload_selector"))
    hosts.export_to(spec.export_to, to.at("export_to"), none=True)


def _ports(spec: ServiceEntry, to: Report) -> None:
    if not spec.ports:
        to.at("ports").warn("no ports; nothing is sent to it", "", "number, name and protocol")
    names: set[str] = set()
    numbers: set[int] = set()
    for index, given in enumerate(spec.ports):
        at = to.at("ports", index)
        hosts.port(given.number, at.at("number"))
        if given.target_port:
            hosts.port(given.target_port, at.at("target_port"))
        if given.protocol:
            hosts.protocol(given.protocol, at.at("protocol"))
        if not hosts.is_label(given.name):
            at.at("name").error("not the name of a port", repr(given.name), hosts.LABEL)
        if given.name in names:
            at.at("name").error("a port name that stands twice", repr(given.name), "each name once")
        if given.number in numbers:
            at.at("number").error("a port that stands twice", given.number, "each port once")
        names.add(given.name)
        numbers.add(given.number)
    plain = next((p for p in spec.ports if p.protocol and p.protocol.upper() not in _TOLD_APART), None)
    if spec.resolution is not Resolution.NONE and len(spec.hosts) > 1 and plain:
        found = f"{len(spec.hosts)} hosts, a port of {plain.protocol}"
        to.at("hosts").error("several hosts that can't be told apart", found, "HTTP or TLS, or one host")


def _resolution(spec: ServiceEntry, to: Report) -> None:
    at, mode = to.at("resolution"), spec.resolution
    wild = [name for name in spec.hosts if name.startswith("*")]
    if mode is Resolution.NONE and spec.endpoints:
        to.at("endpoints").error("endpoints with resolution NONE", "", "resolution STATIC or DNS")
    if mode is Resolution.STATIC and not spec.endpoints and not spec.workload_selector:
        at.warn("STATIC without endpoints", "STATIC", "endpoints or workloadSelector")
    if mode in (Resolution.DNS, Resolution.DNS_ROUND_ROBIN) and wild and not spec.endpoints:
        to.at("hosts").error("a wildcard can't be looked up", repr(wild[0]), "endpoints, or resolution NONE")
    if mode in (Resolution.DNS, Resolution.DNS_ROUND_ROBIN) and spec.workload_selector:
        to.at("workload_selector").warn(f"with resolution {mode.value}, entries need names", "", "STATIC")
    if mode is Resolution.DNS_ROUND_ROBIN and len(spec.endpoints) > 1:
        to.at("endpoints").error("too many for DNS_ROUND_ROBIN", len(spec.endpoints), "at most 1")
    if mode is Resolution.NONE and spec.workload_selector:
        to.at("workload_selector").warn("with resolution NONE nothing is selected", "", "resolution STATIC")
    if mode is Resolution.DYNAMIC_DNS:
        _dynamic(spec, to)
        for name in ("addresses", "endpoints", "workload_selector"):
            if getattr(spec, name):
                to.at(name).error("not with DYNAMIC_DNS", "", "leave it out")


def _dynamic(spec: ServiceEntry, to: Report) -> None:
    for index, name in enumerate(spec.hosts):
        if not name.startswith("*"):
            to.at("hosts", index).error("no wildcard", repr(name), "*.example.com, with DYNAMIC_DNS")
    for index, port in enumerate(spec.ports):
        if port.protocol.upper() not in ("HTTP", "TLS", "GRPC", "HTTP2"):
            to.at("ports", index, "protocol").error(
                "not with DYNAMIC_DNS", repr(port.protocol), "HTTP, HTTP2, GRPC, TLS"
            )


def _endpoint(endpoint: WorkloadEntry, spec: ServiceEntry, to: Report) -> None:
    address = endpoint.address
    if address.startswith("unix://"):
        if spec.resolution is not Resolution.STATIC:
            to.at("address").error("a Unix socket", repr(address), "an address, or resolution STATIC")
        elif len(spec.ports) != 1:
            to.at("address").error("a Unix socket for several ports", repr(address), "a service of one port")
    elif spec.resolution is Resolution.STATIC and address and not hosts.is_ip(address):
        to.at("address").error("not an IP address", repr(address), "an IP address, with resolution STATIC")
    workload_entry(endpoint, to)
    known = {given.name for given in spec.ports}
    for name in endpoint.ports:
        if name not in known:
            to.at("ports", name).error("no such port", repr(name), ", ".join(sorted(known)))


def workload_entry(spec: WorkloadEntry, to: Report) -> None:
    """The whole spec."""
    _template(spec, to)
    address = spec.address
    if not address and not spec.network:
        to.at("address").error("no address", "", "an IP address, a DNS name or unix:///path")
    elif not address:
        to.at("address").warn(f"no address in network {spec.network}", "", "an IP address")
    elif address.startswith("unix://"):
        hosts.socket(address, to.at("address"))
        if spec.ports:
            to.at("ports").error("ports of a Unix socket", "", "leave it out")
    elif address and not hosts.is_ip(address) and not hosts.is_host(address):
        to.at("address").error("not an address", repr(address), "an IP address, a DNS name or unix:///path")


def _template(spec: WorkloadEntry, to: Report) -> None:
    for name, number in spec.ports.items():
        if not hosts.is_label(name):
            to.at("ports", name).error("not the name of a port", repr(name), hosts.LABEL)
        hosts.port(number, to.at("ports", name))
    hosts.labels(spec.labels, to.at("labels"))
    if spec.locality and not locality.plain(spec.locality):
        to.at("locality").error("not a locality", repr(spec.locality), "region/zone/subzone")


def workload_group(spec: WorkloadGroup, to: Report) -> None:
    """The whole spec."""
    if spec.template is None:
        to.error("no template", "", "template")
    else:
        _template(spec.template, to.at("template"))
    if spec.metadata:
        hosts.labels(spec.metadata.labels, to.at("metadata", "labels"))
    if probe := spec.probe:
        at = to.at("probe")
        if not (probe.http_get or probe.tcp_socket or probe.exec or probe.grpc):
            at.error("nothing is asked", "", "httpGet, tcpSocket, exec or grpc")
        for name in ("http_get", "tcp_socket", "grpc"):
            if given := getattr(probe, name):
                hosts.port(given.port, at.at(name, "port"))
        _probe(probe, at)


def _probe(probe: ReadinessProbe, to: Report) -> None:
    for name in (
        "initial_delay_seconds",
        "timeout_seconds",
        "period_seconds",
        "success_threshold",
        "failure_threshold",
    ):
        if getattr(probe, name) < 0:
            to.at(name).error("a negative number", getattr(probe, name), "0 or more")
    if probe.exec and not probe.exec.command:
        to.at("exec", "command").error("no command", "", "a command")
    for index, header in enumerate(probe.http_get.http_headers if probe.http_get else ()):
        if not header.name or not header.name.replace("-", "a").isalnum() or not header.name.isascii():
            to.at("http_get", "http_headers", index, "name").error(
                "not the name of a header", repr(header.name), "letters, digits and -"
            )
