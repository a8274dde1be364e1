"""Sidecar, as Istio's webhook checks it."""

from meshlib.control.istio.gateway import ServerTLSMode
from meshlib.control.istio.sidecar import (
    CaptureMode,
    IstioEgressListener,
    IstioIngressListener,
    OutboundTrafficMode,
    OutboundTrafficPolicy,
    Sidecar,
    SidecarPort,
)
from meshlib.control.istio.validity import gateway, hosts, rules, traffic
from meshlib.control.istio.validity.report import Report

_LOCAL = ("", "127.0.0.1", "0.0.0.0", "[::1]", "[::]")  # noqa: S104 - compared, not bound
_NO_TLS = ("subject_alt_names", "https_redirect", "credential_name", "credential_names", "tls_certificates")


def sidecar(spec: Sidecar, to: Report) -> None:
    """The whole spec."""
    if not (spec.egress or spec.ingress or spec.inbound_connection_pool or spec.outbound_traffic_policy):
        to.error("an empty Sidecar", "", "egress, ingress, inboundConnectionPool or outboundTrafficPolicy")
    hosts.selecting(spec.workload_selector, to.at("workload_selector"))
    taken: set[int] = set()
    for index, ingress in enumerate(spec.ingress):
        at = to.at("ingress", index)
        _ingress(ingress, at)
        if ingress.port is not None:
            _once(ingress.port.number, taken, at)
    _egresses(spec.egress, to.at("egress"))
    if spec.inbound_connection_pool:
        traffic.connection_pool(spec.inbound_connection_pool, to.at("inbound_connection_pool"))
    if spec.outbound_traffic_policy:
        _outbound(spec.outbound_traffic_policy, to.at("outbound_traffic_policy"))


def _once(number: int, seen: set[int], to: Report) -> None:
    if number and number in seen:
        to.at("port", "number").error("a port that stands twice", number, "each port once")
    seen.add(number)


def _egresses(listeners: tuple[IstioEgressListener, ...], to: Report) -> None:
    taken: set[int] = set()
    sockets: set[str] = set()
    open_ended = 0
    for index, listener in enumerate(listeners):
        at = to.at(index)
        _egress(listener, at)
        if listener.port is None:
            open_ended += 1
            if open_ended > 1:
                at.error("a second listener without a port", "", "at most one")
            elif index < len(listeners) - 1 and any(later.port for later in listeners[index:]):
                at.error("a listener without a port, and not the last", "", "at the end of the list")
        elif listener.port.number:
            _once(listener.port.number, taken, at)
        elif listener.bind in sockets:
            at.at("bind").error("a socket that stands twice", repr(listener.bind), "each socket once")
        else:
            sockets.add(listener.bind)


def _port(port: SidecarPort, to: Report) -> None:
    if port.name and not hosts.is_label(port.name):
        to.at("name").error("not the name of a port", repr(port.name), hosts.LABEL)
    if port.protocol:
        hosts.protocol(port.protocol, to.at("protocol"))
    if port.target_port:
        to.at("target_port").error("not of a Sidecar", port.target_port, "leave it out")


def _ingress(listener: IstioIngressListener, to: Report) -> None:
    if listener.port is None:
        to.error("no port", "", "port with a number and a protocol")
    else:
        hosts.port(listener.port.number, to.at("port", "number"))
        _port(listener.port, to.at("port"))
    hosts.bind(listener.bind, to.at("bind"))
    end = listener.default_endpoint
    if end.startswith("unix://"):
        hosts.socket(end, to.at("default_endpoint"))
    elif end:
        address, _, number = end.rpartition(":")
        ported = number.isascii() and number.isdecimal() and 1 <= int(number[:6]) <= 65535
        if address not in _LOCAL or ":" not in end or not ported:
            allowed = "127.0.0.1:port, 0.0.0.0:port, [::1]:port, [::]:port, :port, unix:///path"
            to.at("default_endpoint").error("not an endpoint", repr(end), allowed)
    _tls(listener, to)
    if listener.connection_pool:
        traffic.connection_pool(listener.connection_pool, to.at("connection_pool"))


def _tls(listener: IstioIngressListener, to: Report) -> None:
    tls = listener.tls
    if tls is None:
        return
    at = to.at("tls")
    for name in _NO_TLS:
        if getattr(tls, name):
            at.at(name).error("not of a Sidecar", "", "leave it out")
    if tls.mode in (ServerTLSMode.ISTIO_MUTUAL, ServerTLSMode.AUTO_PASSTHROUGH):
        at.at("mode").error(
            "not of a Sidecar", tls.mode.value, "SIMPLE, MUTUAL, OPTIONAL_MUTUAL, PASSTHROUGH"
        )
    if listener.port and listener.port.protocol.upper() not in ("HTTPS", "TLS"):
        at.error(f"tls on a port of {listener.port.protocol or 'no protocol'}", "", "protocol HTTPS or TLS")
    gateway.certificates(tls, at)


def _egress(listener: IstioEgressListener, to: Report) -> None:
    if not listener.hosts:
        to.at("hosts").error("no hosts", "", "namespace/host, such as ./* or */*")
    for index, name in enumerate(listener.hosts):
        at = to.at("hosts", index)
        space, slash, plain = name.partition("/")
        space_ok = space in ("*", ".", "~") or hosts.namespace(space.removeprefix("~"))
        if not slash or not space_ok or not hosts.is_full(plain):
            at.error(
                "not namespace/host", repr(name), f"such as ./* or istio-system/*; the host {hosts.FULL}"
            )
        elif name in listener.hosts[:index]:
            at.warn("stands twice", repr(name), "each once")
    seen = [name for name in listener.hosts if not name.startswith("~")]
    if "*/*" in seen and len(seen) > 1:
        to.at("hosts").warn("*/* takes in all others", ", ".join(seen), "*/* alone")
    if (port := listener.port) is None:
        return
    _port(port, to.at("port"))
    if port.number:
        hosts.port(port.number, to.at("port", "number"))
        hosts.bind(listener.bind, to.at("bind"))
    else:
        if listener.bind.startswith("unix://"):
            hosts.socket(listener.bind, to.at("bind"))
        else:
            to.at("port", "number").error("not a port", 0, "1 to 65535; 0 with a Unix socket as bind")
        if listener.capture_mode is CaptureMode.IPTABLES:
            to.at("capture_mode").error("not of a Unix socket", "IPTABLES", "DEFAULT, NONE")


def _outbound(policy: OutboundTrafficPolicy, to: Report) -> None:
    if policy.mode is OutboundTrafficMode.ALLOW_ANY_DYNAMIC_DNS:
        to.at("mode").error("for the whole mesh only", policy.mode.value, "REGISTRY_ONLY, ALLOW_ANY")
    elif policy.egress_proxy and policy.mode is not OutboundTrafficMode.ALLOW_ANY:
        to.at("egress_proxy").error(f"stands with {policy.mode.value}", "", "mode ALLOW_ANY")
    elif policy.egress_proxy:
        if policy.egress_proxy.port is None:
            to.at("egress_proxy").error("no port", "", "port with a number")
        rules.destination(policy.egress_proxy, to.at("egress_proxy"))
