"""Gateway and the TLS of servers, as Istio's webhook checks them."""

from collections.abc import Callable, Iterable

from meshlib.control.istio import tlsparameters
from meshlib.control.istio.gateway import Gateway, Server, ServerTLSMode, ServerTLSSettings, TLSCertificate
from meshlib.control.istio.validity import hosts
from meshlib.control.istio.validity.report import Report

_CERTIFICATES = (
    "server_certificate",
    "private_key",
    "ca_certificates",
    "tls_certificates",
    "credential_name",
    "credential_names",
)
_ASKING = (ServerTLSMode.MUTUAL, ServerTLSMode.OPTIONAL_MUTUAL)
_SPEAKING = (ServerTLSMode.SIMPLE, *_ASKING)
_PASSING = (ServerTLSMode.PASSTHROUGH, ServerTLSMode.AUTO_PASSTHROUGH)
_OLD = ("TLSV1_0", "TLSV1_1")
_HTTP = ("HTTP", "HTTP2", "HTTP_PROXY", "GRPC", "GRPC-WEB")


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
        if not server.bind.startswith("unix://"):
            hosts.port(server.port.number, to.at("port", "number"))
        elif server.port.number:
            to.at("port", "number").error("a port of a Unix socket", server.port.number, "0")
        hosts.protocol(server.port.protocol, to.at("port", "protocol"))
        if not server.port.name:
            to.at("port", "name").error("no name", "", "a name")
        if server.port.target_port:
            to.at("port", "target_port").error("not of a Gateway", server.port.target_port, "leave it out")
    hosts.bind(server.bind, to.at("bind"), unix=True)
    if not server.hosts:
        to.at("hosts").error("no hosts", "", "at least one, * is all")
    for index, name in enumerate(server.hosts):
        _host(name, to.at("hosts", index))
    _server_tls(server, to)


def _host(name: str, to: Report) -> None:
    space, slash, plain = name.partition("/")
    if not slash:
        plain = name
    elif space not in ("*", ".") and not hosts.namespace(space):
        to.error("not a namespace", repr(name), "*, . or a namespace, before the /")
    if not hosts.is_ip(plain) and not hosts.is_full(plain):
        to.error("not a host", repr(name), f"[namespace/]host, {hosts.FULL}")


def _server_tls(server: Server, to: Report) -> None:
    upper = server.port.protocol.upper() if server.port else ""
    if upper in ("HTTPS", "TLS") and server.tls is None:
        to.at("tls").error(f"{upper} without tls", "", "tls with a mode")
    if server.tls is None:
        return
    if upper in _HTTP:
        certified = any(
            getattr(server.tls, n) for n in ("server_certificate", "private_key", "ca_certificates")
        )
        if server.tls.mode not in _PASSING or certified:
            to.at("tls").error(
                f"tls on a port of {upper}", "", "httpsRedirect only, or protocol HTTPS or TLS"
            )
            return
    elif upper not in ("HTTPS", "TLS", ""):
        to.at("tls").error(f"tls on a port of {upper}", "", "protocol HTTPS or TLS")
        return
    if upper and upper not in _HTTP and server.tls.https_redirect:
        to.at("tls", "https_redirect").warn("a redirect without HTTP", "true", "on an HTTP server")
    certificates(server.tls, to.at("tls"))


def certificates(tls: ServerTLSSettings, to: Report) -> None:
    """Where a server's certificates come from, and what it speaks."""
    given = [name for name in _CERTIFICATES if getattr(tls, name)]
    if tls.mode is ServerTLSMode.ISTIO_MUTUAL:
        for name in given:
            to.at(name).error("ISTIO_MUTUAL uses the mesh's certificates", "", "leave it out")
    elif tls.mode in _PASSING and given:
        to.at(given[0]).warn(f"{tls.mode.value} uses no certificates", "", "leave it out")
    _sources(tls, to)
    if tls.mode in _SPEAKING and not (tls.credential_name or tls.credential_names):
        _files(tls, to)
    if tls.ca_crl and tls.mode in _SPEAKING:
        if tls.credential_name:
            to.at("ca_crl").error("stands with credentialName", "", "the list in the credential")
        elif tls.mode in _ASKING and not tls.ca_certificates:
            to.at("ca_crl").error("stands without caCertificates", "", "the list in the credential")
        if tls.mode is ServerTLSMode.SIMPLE:
            to.at("ca_crl").error("SIMPLE asks for no certificate", "", "MUTUAL or OPTIONAL_MUTUAL")
    _versions(tls, to)
    _parameters(tls, to)
    _pins(tls, to)


def _sources(tls: ServerTLSSettings, to: Report) -> None:
    sources = [
        name
        for name in ("credential_name", "credential_names", "tls_certificates")
        if getattr(tls, name) and tls.mode is not ServerTLSMode.ISTIO_MUTUAL
    ]
    if tls.server_certificate and tls.private_key and tls.mode is not ServerTLSMode.ISTIO_MUTUAL:
        sources.append("server_certificate")
    if len(sources) > 1:
        allowed = "one of credentialName, credentialNames, tlsCertificates, serverCertificate with privateKey"
        to.at(sources[1]).error("a second source of certificates", "", allowed)
    for name in ("credential_names", "tls_certificates"):
        if len(getattr(tls, name)) > 2:
            to.at(name).error("too many", len(getattr(tls, name)), "at most 2")


def _files(tls: ServerTLSSettings, to: Report) -> None:
    pairs: list[tuple[ServerTLSSettings | TLSCertificate, Report]] = [(tls, to)]
    if tls.tls_certificates:
        pairs = [(pair, to.at("tls_certificates", i)) for i, pair in enumerate(tls.tls_certificates)]
    for pair, at in pairs:
        for name in ("server_certificate", "private_key"):
            if not getattr(pair, name):
                at.at(name).error(f"{tls.mode.value} needs it", "", "a file, or credentialName")
    if tls.mode in _ASKING and not (tls.ca_certificates or tls.ca_cert_credential_name):
        to.at("ca_certificates").error(f"{tls.mode.value} needs it", "", "a file, or credentialName")


def _versions(tls: ServerTLSSettings, to: Report) -> None:
    order = ("TLS_AUTO", "TLSV1_0", "TLSV1_1", "TLSV1_2", "TLSV1_3")
    low, high = order.index(tls.min_protocol_version.value), order.index(tls.max_protocol_version.value)
    if low > high > 0:
        to.at("max_protocol_version").error(
            "below minProtocolVersion", tls.max_protocol_version.value, order[low]
        )
    if tls.min_protocol_version.value in _OLD and not tls.cipher_suites:
        found = tls.min_protocol_version.value
        to.at("min_protocol_version").warn("no cipher suite fits it", found, "cipherSuites, or TLSV1_2")
    if not low and order[1:3].count(tls.max_protocol_version.value):
        found, allowed = tls.max_protocol_version.value, "a minProtocolVersion, or TLSV1_2"
        to.at("max_protocol_version").warn("nobody can connect: the least is TLSV1_2", found, allowed)


def _parameters(tls: ServerTLSSettings, to: Report) -> None:
    of: list[tuple[str, Iterable[str], Callable[[str], bool], Iterable[str]]] = [
        ("cipher_suites", tls.cipher_suites, tlsparameters.is_suite, tlsparameters.CIPHER_SUITES),
        ("ecdh_curves", tls.ecdh_curves, tlsparameters.CURVES.__contains__, tlsparameters.CURVES),
    ]
    for field, given, known, every in of:
        seen: set[str] = set()
        for index, name in enumerate(given):
            if not known(name):
                to.at(field, index).warn("left out: not known", repr(name), ", ".join(sorted(every)))
            elif name in seen:
                to.at(field, index).warn("left out: it stands twice", repr(name), "each once")
            seen.add(name)


def _pins(tls: ServerTLSSettings, to: Report) -> None:
    for index, text in enumerate(tls.verify_certificate_hash):
        if not tlsparameters.is_hash(text):
            at = to.at("verify_certificate_hash", index)
            at.error("no SHA-256 of a certificate", repr(text), "64 hexadecimal digits")
    for index, text in enumerate(tls.verify_certificate_spki):
        if not tlsparameters.is_spki(text):
            at = to.at("verify_certificate_spki", index)
            at.error("no SHA-256 of a public key", repr(text), "32 bytes in Base64")
