"""Gateway: which ports and hosts the mesh serves at its edge."""

from enum import StrEnum

from pydantic import Field

from meshlib.control.istio.fields import Bool, Labels, Spec, Text, UInt32


class ServerTLSMode(StrEnum):
    """What TLS a server speaks."""

    PASSTHROUGH = "PASSTHROUGH"
    SIMPLE = "SIMPLE"
    MUTUAL = "MUTUAL"
    AUTO_PASSTHROUGH = "AUTO_PASSTHROUGH"
    ISTIO_MUTUAL = "ISTIO_MUTUAL"
    OPTIONAL_MUTUAL = "OPTIONAL_MUTUAL"


class TLSProtocol(StrEnum):
    """TLS versions."""

    TLS_AUTO = "TLS_AUTO"
    TLSV1_0 = "TLSV1_0"
    TLSV1_1 = "TLSV1_1"
    TLSV1_2 = "TLSV1_2"
    TLSV1_3 = "TLSV1_3"


class TLSCertificate(Spec):
    """A certificate by its files."""

    server_certificate: Text = ""
    private_key: Text = ""
    ca_certificates: Text = ""


class ServerTLSSettings(Spec):
    """The server's side of TLS."""

    https_redirect: Bool = False
    mode: ServerTLSMode = ServerTLSMode.PASSTHROUGH
    server_certificate: Text = ""
    private_key: Text = ""
    ca_certificates: Text = ""
    ca_crl: Text = ""
    credential_name: Text = ""
    credential_names: tuple[Text, ...] = ()
    ca_cert_credential_name: Text = ""
    tls_certificates: tuple[TLSCertificate, ...] = ()
    subject_alt_names: tuple[Text, ...] = ()
    verify_certificate_spki: tuple[Text, ...] = ()
    verify_certificate_hash: tuple[Text, ...] = ()
    min_protocol_version: TLSProtocol = TLSProtocol.TLS_AUTO
    max_protocol_version: TLSProtocol = TLSProtocol.TLS_AUTO
    cipher_suites: tuple[Text, ...] = ()
    ecdh_curves: tuple[Text, ...] = ()
    insecure_skip_verify: Bool | None = None


class Port(Spec):
    """A port with its protocol."""

    number: UInt32 = 0
    protocol: Text = ""
    name: Text = ""
    target_port: UInt32 = 0


class Server(Spec):
    """A port that is served, for which hosts."""

    port: Port | None = None
    bind: Text = ""
    hosts: tuple[Text, ...] = ()
    tls: ServerTLSSettings | None = None
    default_endpoint: Text = ""
    name: Text = ""


class Gateway(Spec):
    """The spec of a Gateway."""

    servers: tuple[Server, ...] = ()
    selector: Labels = Field(default_factory=dict)


def gateway_key(name: str, namespace: str) -> tuple[str, str]:
    """(namespace, name) of a gateway as a VirtualService names it."""
    space, slash, plain = name.rpartition("/")
    if slash:
        return (namespace if space == "." else space), plain
    parts = name.split(".")
    return (parts[1], parts[0]) if len(parts) > 1 else (namespace, name)
