"""Gateway, ServiceEntry, Sidecar, WorkloadEntry and WorkloadGroup, as Istio's webhook checks them."""

from meshlib.control.istio.gateway import Gateway, Server, ServerTLSMode, ServerTLSSettings
from meshlib.control.istio.serviceentry import Resolution, ServiceEntry
from meshlib.control.istio.sidecar import IstioEgressListener, IstioIngressListener, Sidecar
from meshlib.control.istio.validity import hosts, traffic
from meshlib.control.istio.validity.report import Report
from meshlib.control.istio.workloadentry import WorkloadEntry
from meshlib.control.istio.workloadgroup import WorkloadGroup


def gateway(spec: Gateway, to: Report) -> None:
    """The whole spec."""
    if not spec.servers:
        to.error("no servers", "", "at least one")
    hosts.selector(spec.selector, to.at("selector"))
    names: set[str] = set()
    for index, server in enumerate(spec.servers):
        at = to.at("servers", index)
        _server(server, at)
        name = server.port.name if server.port else ""
        if name and name in names:
            at.at("port", "name").error("a port name that stands twice", repr(name), "each name once")
        names.add(name)


def _server(server: Server, to: Report) -> None:
    if server.port is None:
        to.error("no port", "", "port with number, name and protocol")
    else:
        hosts.port(server.port.number, to.at("port", "number"))
        protocol(server.port.protocol, to.at("port", "protocol"))
        if not server.port.name:
            to.at("port", "name").error("no name", "", "a name")
    if not server.hosts:
        to.at("hosts").error("no hosts", "", "at least one, * is all")
    for index, name in enumerate(server.hosts):
        space, slash, plain = name.rpartition("/")
        if (slash and space not in ("*", ".") and not hosts.namespace(space)) or not (
            hosts.is_host(plain, wildcard=True) or hosts.is_ip(plain)
        ):
            to.at("hosts", index).error("not a host", repr(name), "[namespace/]host, * only at its beginning")
    _server_tls(server, to)


def _server_tls(server: Server, to: Report) -> None:
    upper = server.port.protocol.upper() if server.port else ""
    if upper in ("HTTPS", "TLS") and server.tls is None:
        to.at("tls").error(f"{upper} without tls", "", "tls with a mode")
    if server.tls is None:
        return
    if upper not in ("HTTPS", "TLS", "") and server.tls.model_fields_set - {"https_redirect"}:
        to.at("tls").error(f"tls on a port of {upper}", "", "httpsRedirect only, or protocol HTTPS or TLS")
        return
    if upper in ("HTTPS", "TLS") and server.tls.https_redirect:
        to.at("tls", "https_redirect").error("a redirect from TLS to TLS", "true", "an HTTP server")
    _certificates(server.tls, to.at("tls"))


def _certificates(tls: ServerTLSSettings, to: Report) -> None:
    named = bool(tls.credential_name or tls.credential_names or tls.tls_certificates)
    if tls.mode in (ServerTLSMode.SIMPLE, ServerTLSMode.MUTUAL, ServerTLSMode.OPTIONAL_MUTUAL) and not named:
        for name in ("server_certificate", "private_key"):
            if not getattr(tls, name):
                to.at(name).error(f"{tls.mode.value} needs it", "", "a file, or credentialName")
        if tls.mode is not ServerTLSMode.SIMPLE and not (tls.ca_certificates or tls.ca_cert_credential_name):
            to.at("ca_certificates").error(f"{tls.mode.value} needs it", "", "a file, or credentialName")
    if tls.mode is ServerTLSMode.ISTIO_MUTUAL and (named or tls.server_certificate or tls.private_key):
        to.error("ISTIO_MUTUAL uses the mesh's certificates", "", "no certificates")
    if tls.credential_name and tls.credential_names:
        to.at("credential_names").error("stands with credentialName", "", "one of them")
    for name in ("credential_names", "tls_certificates"):
        if len(getattr(tls, name)) > 2:
            to.at(name).error("too many", len(getattr(tls, name)), "at most 2")
    order = ("TLS_AUTO", "TLSV1_0", "TLSV1_1", "TLSV1_2", "TLSV1_3")
    low, high = order.index(tls.min_protocol_version.value), order.index(tls.max_protocol_version.value)
    if low > high > 0:
        to.at("max_protocol_version").error(
            "below minProtocolVersion", tls.max_protocol_version.value, order[low]
        )


def protocol(text: str, to: Report) -> None:
    """The protocol of a port."""
    if text.upper() not in hosts.PROTOCOLS:
        to.error("unknown protocol", repr(text), ", ".join(hosts.PROTOCOLS))


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
    if spec.workload_selector:
        hosts.selector(spec.workload_selector.labels, to.at("workload_selector", "labels"))
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
            protocol(given.protocol, at.at("protocol"))
        if not hosts.is_host(given.name):
            at.at("name").error("not the name of a port", repr(given.name), "letters, digits and -")
        if given.name in names:
            at.at("name").error("a port name that stands twice", repr(given.name), "each name once")
        if given.number in numbers:
            at.at("number").error("a port that stands twice", given.number, "each port once")
        names.add(given.name)
        numbers.add(given.number)


def _resolution(spec: ServiceEntry, to: Report) -> None:
    at, mode = to.at("resolution"), spec.resolution
    wild = [name for name in spec.hosts if name.startswith("*")]
    if mode is Resolution.NONE and spec.endpoints:
        to.at("endpoints").error("endpoints with resolution NONE", "", "resolution STATIC or DNS")
    if mode is Resolution.STATIC and not spec.endpoints and not spec.workload_selector:
        at.error("STATIC without endpoints", "STATIC", "endpoints or workloadSelector")
    if mode is Resolution.DNS and wild and not spec.endpoints:
        to.at("hosts").error("a wildcard can't be looked up", repr(wild[0]), "endpoints, or resolution NONE")
    if mode in (Resolution.DNS, Resolution.DNS_ROUND_ROBIN) and spec.workload_selector:
        to.at("workload_selector").warn(f"with resolution {mode.value}, entries need names", "", "STATIC")
    if mode is Resolution.DNS_ROUND_ROBIN and len(spec.endpoints) > 1:
        to.at("endpoints").error("too many for DNS_ROUND_ROBIN", len(spec.endpoints), "at most 1")
    if mode is Resolution.DYNAMIC_DNS:
        for name in ("addresses", "endpoints", "workload_selector"):
            if getattr(spec, name):
                to.at(name).error("not with DYNAMIC_DNS", "", "leave it out")


def _endpoint(endpoint: WorkloadEntry, spec: ServiceEntry, to: Report) -> None:
    address = endpoint.address
    if address.startswith("unix://"):
        if len(spec.ports) != 1:
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
    elif address.startswith("unix://"):
        if not address.removeprefix("unix://").startswith(("/", "@")):
            to.at("address").error("not the path of a socket", repr(address), "unix:///an/absolute/path")
        if spec.ports:
            to.at("ports").error("ports of a Unix socket", "", "leave it out")
    elif address and not hosts.is_ip(address) and not hosts.is_host(address):
        to.at("address").error("not an address", repr(address), "an IP address, a DNS name or unix:///path")


def _template(spec: WorkloadEntry, to: Report) -> None:
    for name, number in spec.ports.items():
        hosts.port(number, to.at("ports", name))
    hosts.labels(spec.labels, to.at("labels"))
    if spec.locality and (len(spec.locality.split("/")) > 3 or not all(spec.locality.split("/"))):
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
        for name in ("initial_delay_seconds", "timeout_seconds", "period_seconds"):
            if getattr(probe, name) < 0:
                at.at(name).error("a negative time", getattr(probe, name), "0 or more seconds")


def sidecar(spec: Sidecar, to: Report) -> None:
    """The whole spec."""
    if not spec.model_fields_set:
        to.error("an empty Sidecar", "", "egress, ingress, inboundConnectionPool or outboundTrafficPolicy")
    if spec.workload_selector:
        hosts.selector(spec.workload_selector.labels, to.at("workload_selector", "labels"))
    seen: set[int] = set()
    for index, ingress in enumerate(spec.ingress):
        at = to.at("ingress", index)
        _ingress(ingress, at)
        number = ingress.port.number if ingress.port else 0
        if number and number in seen:
            at.at("port", "number").error("a port that stands twice", number, "each port once")
        seen.add(number)
    open_ended = 0
    for index, egress in enumerate(spec.egress):
        open_ended += egress.port is None
        _egress(egress, to.at("egress", index))
        if egress.port is None and open_ended > 1:
            to.at("egress", index).error("a second listener without a port", "", "at most one")
    if spec.inbound_connection_pool:
        traffic.connection_pool(spec.inbound_connection_pool, to.at("inbound_connection_pool"))


def _ingress(listener: IstioIngressListener, to: Report) -> None:
    if listener.port is None:
        to.error("no port", "", "port with a number and a protocol")
    else:
        hosts.port(listener.port.number, to.at("port", "number"))
        protocol(listener.port.protocol, to.at("port", "protocol"))
    end = listener.default_endpoint
    if end and not end.startswith(("unix:///", "unix://@")):
        address, _, number = end.rpartition(":")
        local = address in ("127.0.0.1", "0.0.0.0", "[::1]", "[::]")  # noqa: S104 - compared, not bound
        if not local or not number.isdecimal() or not 1 <= int(number[:6]) <= 65535:
            to.at("default_endpoint").error(
                "not an endpoint", repr(end), "127.0.0.1:port, 0.0.0.0:port, unix:///path"
            )
    if listener.connection_pool:
        traffic.connection_pool(listener.connection_pool, to.at("connection_pool"))


def _egress(listener: IstioEgressListener, to: Report) -> None:
    if not listener.hosts:
        to.at("hosts").error("no hosts", "", "namespace/host, such as ./* or */*")
    for index, name in enumerate(listener.hosts):
        space, slash, plain = name.partition("/")
        space_ok = space in ("*", ".", "~") or hosts.namespace(space.removeprefix("~"))
        if not slash or not space_ok or not hosts.is_host(plain, wildcard=True):
            to.at("hosts", index).error(
                "not namespace/host", repr(name), "such as ./*, istio-system/* or */host"
            )
    if listener.port and listener.port.number:
        hosts.port(listener.port.number, to.at("port", "number"))
