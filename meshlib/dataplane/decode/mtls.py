"""Envoy's TLS contexts as core's ClientTls and ServerTls, and the secret with the mesh's roots.

Rules:

- The workload's own certificate is the secret `default`, the mesh's roots are the secret `ROOTCA`; both
  come from the stream that brought the resource. Certificates of files are named by their paths.
- A client without a validation context verifies nobody (Envoy): that is insecureSkipVerify.
- What would make a connection less safe if it were passed over is refused: pins, revocation lists that are no
  files of a client, regular expressions, a server that does not ask for its peers' certificates.
"""

from typing import Any

from google.protobuf.message import DecodeError

from meshlib.core.mtls import ClientTls, SanMatch, Transport, Trust
from meshlib.dataplane.decode.errors import Refused, decode_each
from meshlib.dataplane.decode.proxy_protocol import beneath
from meshlib.xds import pb
from meshlib.xds.names import OWN_SECRET, ROOTS_SECRET, TRANSPORT_SOCKET_MATCH

RAW_BUFFER = "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer"
MAX_SANS = 10_000
MAX_ROOTS = 1024 * 1024
"""Bytes of PEM."""

_VERSIONS = {0: "TLSv1_2", 1: "TLSv1_2", 2: "TLSv1_2", 3: "TLSv1_2", 4: "TLSv1_3"}
"""By envoy's TlsProtocol. Older than 1.2 is never spoken."""
_NEWEST = (0, 4)
_HTTP2 = frozenset(("h2", "istio-h2"))
"""Where requests go out over HTTP/1.1: a server that may choose HTTP/2 would."""
_NEVER = "istio-peer-exchange"
"""A connection does not begin with what Istio's proxies tell each other of themselves."""
_SANS = {
    "exact": SanMatch.EXACT,
    "prefix": SanMatch.PREFIX,
    "suffix": SanMatch.SUFFIX,
    "contains": SanMatch.CONTAINS,
}
_NARROWER = frozenset(
    (
        *("verify_certificate_spki", "verify_certificate_hash", "match_typed_subject_alt_names", "crl"),
        *("require_signed_certificate_timestamp", "custom_validator_config", "max_verify_depth"),
    )
)
"""Of a validation context: what would let fewer peers through."""


def decode_transports(
    cluster: Any, *, auto_sni: bool, verify_host: bool, http2: bool
) -> tuple[tuple[Transport, ...], ClientTls | None]:
    """The transports of an envoy.config.cluster.v3.Cluster, and what holds where none fits.

    `verify_host`: the certificate must be for the host, which is the SNI where `auto_sni`. `http2`:
    that is spoken.
    """

    def transport(match: Any) -> Transport:
        tls = _client(match.transport_socket, auto_sni, verify_host, http2)
        return Transport(match.name, decode_criteria(match.match, "match"), tls)

    made = decode_each(cluster.transport_socket_matches, "transport_socket_matches", transport)
    own = None
    if cluster.HasField("transport_socket"):
        own = _client(cluster.transport_socket, auto_sni, verify_host, http2)
    return tuple(made), own


def decode_criteria(fields: Any, path: str) -> frozenset[tuple[str, str]]:
    """The texts of a google.protobuf.Struct."""
    found = set()
    for key, value in fields.fields.items():
        if value.WhichOneof("kind") != "string_value":
            raise Refused(f"{path}.{key}", "is no text")
        found.add((key, value.string_value))
    return frozenset(found)


def decode_transport(metadata: Any) -> frozenset[tuple[str, str]]:
    """What an endpoint's envoy.config.core.v3.Metadata says of how it is reached."""
    if TRANSPORT_SOCKET_MATCH not in metadata.filter_metadata:
        return frozenset()
    return decode_criteria(
        metadata.filter_metadata[TRANSPORT_SOCKET_MATCH], f"metadata.{TRANSPORT_SOCKET_MATCH}"
    )


def decode_roots(message: Any) -> bytes:
    """The PEM of an envoy.extensions.transport_sockets.tls.v3.Secret with roots to trust."""
    if message.WhichOneof("type") != "validation_context":
        raise Refused(message.WhichOneof("type") or "type", "is not supported or not set")
    trusted = message.validation_context.trusted_ca
    if trusted.WhichOneof("specifier") not in ("inline_bytes", "inline_string"):
        raise Refused("validation_context.trusted_ca", "is not inline")
    found = trusted.inline_bytes or trusted.inline_string.encode()
    if b"-----BEGIN CERTIFICATE-----" not in found or len(found) > MAX_ROOTS:
        raise Refused(
            "validation_context.trusted_ca", f"{len(found)} bytes without a certificate, or too many"
        )
    return bytes(found)


def unpack_socket(socket: Any, path: str) -> Any:
    """The configuration of an envoy.config.core.v3.TransportSocket; None: plain text."""
    try:
        found = pb.unpack(socket.typed_config)
    except (DecodeError, KeyError) as error:
        raise Refused(f"{path}.typed_config", f"can't be decoded: {error}") from None
    return None if found.DESCRIPTOR.full_name == RAW_BUFFER else found


def _client(socket: Any, auto_sni: bool, verify_host: bool, http2: bool) -> ClientTls | None:
    context = unpack_socket(beneath(socket, "transport_socket"), "transport_socket")
    if context is None:
        return None
    path = "transport_socket.typed_config"
    if context.DESCRIPTOR.full_name != pb.UpstreamTlsContext.DESCRIPTOR.full_name:
        raise Refused(path, f"{context.DESCRIPTOR.full_name} is not supported")
    if not context.sni and not auto_sni:
        verify_host = False
    try:
        common = context.common_tls_context
        shown = _shown(common)
        trust, file, sans, crl = _trusted(common)
        return ClientTls(
            trust=trust,
            ca_file=file,
            crl_file=crl,
            mesh_identity=shown is None,
            certificate_file=shown[0] if shown else "",
            key_file=shown[1] if shown else "",
            sni=context.sni,
            verify_host=verify_host and trust is not Trust.NOBODY,
            sans=sans,
            alpn=tuple(
                name for name in common.alpn_protocols if name != _NEVER and (http2 or name not in _HTTP2)
            ),
            min_version=decode_version(common),
        )
    except Refused as refused:
        raise refused.within(path) from None


def decode_version(common: Any) -> str:
    """The lowest version that a CommonTlsContext allows."""
    if common.tls_params.tls_maximum_protocol_version not in _NEWEST:
        raise Refused("common_tls_context.tls_params.tls_maximum_protocol_version", "is not TLSv1_3")
    found = common.tls_params.tls_minimum_protocol_version
    if found not in _VERSIONS:
        raise Refused("common_tls_context.tls_params.tls_minimum_protocol_version", f"{found} is unknown")
    return _VERSIONS[found]


def is_own_certificate(common: Any) -> bool:
    """Whether a CommonTlsContext shows the workload's own certificate."""
    listed = common.tls_certificate_sds_secret_configs
    return [each.name for each in listed] == [OWN_SECRET] and not common.tls_certificates


def _shown(common: Any) -> tuple[str, str] | None:
    """The files of the certificate that is shown and of its key, possibly empty; None: the workload's own."""
    if is_own_certificate(common):
        return None
    path = "common_tls_context"
    if common.tls_certificate_sds_secret_configs:
        raise Refused(f"{path}.tls_certificate_sds_secret_configs", f"only {OWN_SECRET!r} is supported")
    if common.HasField("tls_certificate_provider_instance"):
        raise Refused(f"{path}.tls_certificate_provider_instance", "is not supported")
    if not common.tls_certificates:
        return "", ""
    if len(common.tls_certificates) > 1:
        raise Refused(f"{path}.tls_certificates", "more than one")
    one = common.tls_certificates[0]
    if not one.certificate_chain.filename or not one.private_key.filename:
        raise Refused(f"{path}.tls_certificates[0]", "only files are supported, chain and key")
    return one.certificate_chain.filename, one.private_key.filename


def _trusted(common: Any) -> tuple[Trust, str, tuple[tuple[SanMatch, str], ...], str]:
    """Whom a client trusts: how, by which file, under which names, and by which list of revocations."""
    path = "common_tls_context"
    which = common.WhichOneof("validation_context_type")
    if which is None:
        return Trust.NOBODY, "", (), ""
    if which == "combined_validation_context":
        context, at = decode_mesh_trust(common)
        return Trust.MESH, "", decode_sans(context, at), ""
    if which != "validation_context":
        raise Refused(f"{path}.{which}", "is not supported")
    context, at = common.validation_context, f"{path}.{which}"
    sans, crl = decode_sans(context, at, crl=True), _crl(context, at)
    if context.HasField("trusted_ca"):
        if not context.trusted_ca.filename:
            raise Refused(f"{at}.trusted_ca", "only files are supported")
        return Trust.FILE, context.trusted_ca.filename, sans, crl
    if context.HasField("system_root_certs"):
        return Trust.SYSTEM, "", sans, crl
    if context.HasField("ca_certificate_provider_instance") or sans:
        raise Refused(f"{at}.trusted_ca", "is not set")
    return Trust.NOBODY, "", (), ""


def _crl(context: Any, path: str) -> str:
    """The file with the revocations, or empty."""
    if not context.HasField("crl"):
        return ""
    if not context.crl.filename:
        raise Refused(f"{path}.crl", "only files are supported")
    if context.only_verify_leaf_cert_crl:
        raise Refused(f"{path}.only_verify_leaf_cert_crl", "is not supported")
    return str(context.crl.filename)


def decode_mesh_trust(common: Any) -> tuple[Any, str]:
    """The CertificateValidationContext beside the mesh's roots, and its path."""
    path = "common_tls_context"
    if common.WhichOneof("validation_context_type") != "combined_validation_context":
        raise Refused(f"{path}.combined_validation_context", "is not set")
    combined = common.combined_validation_context
    path += ".combined_validation_context"
    if combined.validation_context_sds_secret_config.name != ROOTS_SECRET:
        raise Refused(f"{path}.validation_context_sds_secret_config.name", f"is not {ROOTS_SECRET!r}")
    return combined.default_validation_context, f"{path}.default_validation_context"


def decode_sans(context: Any, path: str, *, crl: bool = False) -> tuple[tuple[SanMatch, str], ...]:
    """The names of which a peer must have one, of a CertificateValidationContext; empty: any. `crl`: the
    caller reads that.
    """
    for field, _ in context.ListFields():
        if field.name in _NARROWER and not (crl and field.name == "crl"):
            raise Refused(f"{path}.{field.name}", "is not supported")
    if len(context.match_subject_alt_names) > MAX_SANS:
        raise Refused(f"{path}.match_subject_alt_names", f"more than {MAX_SANS}")
    found = []
    for number, matcher in enumerate(context.match_subject_alt_names):
        which = matcher.WhichOneof("match_pattern")
        text = getattr(matcher, which) if which in _SANS else ""
        if not text or matcher.ignore_case:
            raise Refused(f"{path}.match_subject_alt_names[{number}]", f"{which} is not supported, or empty")
        found.append((_SANS[which], text))
    return tuple(found)
