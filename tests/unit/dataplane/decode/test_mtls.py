"""TLS of clusters, endpoints and roots as values, and what is refused because it would be less safe."""

from collections.abc import Callable
from typing import Any

import pytest

from meshlib.core.mtls import ClientTls, SanMatch, Transport, Trust
from meshlib.dataplane.decode.clusters import decode_cluster
from meshlib.dataplane.decode.endpoints import decode_endpoints
from meshlib.dataplane.decode.errors import Refused
from meshlib.dataplane.decode.mtls import decode_roots
from meshlib.xds import pb

HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
ROOTS = b"-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n"
MESH = {
    "tls_certificate_sds_secret_configs": [{"name": "default", "sds_config": {"ads": {}}}],
    "combined_validation_context": {
        "default_validation_context": {"match_subject_alt_names": [{"exact": "spiffe://td/ns/a/sa/b"}]},
        "validation_context_sds_secret_config": {"name": "ROOTCA", "sds_config": {"ads": {}}},
    },
}


def context(common: dict[str, Any], **more: Any) -> Any:
    return pb.from_dict(pb.UpstreamTlsContext, {"common_tls_context": common, **more})


def cluster(tls: Any = None, **options: bool) -> Any:
    made = pb.Cluster(name="c", type="EDS")
    if tls is not None:
        made.transport_socket.name = "envoy.transport_sockets.tls"
        made.transport_socket.typed_config.CopyFrom(pb.pack(tls))
    if options:
        said = pb.HttpProtocolOptions()
        said.explicit_http_config.http_protocol_options.SetInParent()
        for name, value in options.items():
            setattr(said.upstream_http_protocol_options, name, value)
        made.typed_extension_protocol_options[HTTP_OPTIONS].CopyFrom(pb.pack(said))
    return made


def test_the_meshs_own() -> None:
    common = {
        **MESH,
        "alpn_protocols": ["istio-h2", "istio", "h2"],
        "tls_params": {"tls_minimum_protocol_version": 4},
    }
    assert decode_cluster(cluster(context(common, sni="out"))).tls == ClientTls(
        sni="out",
        sans=((SanMatch.EXACT, "spiffe://td/ns/a/sa/b"),),
        alpn=("istio",),
        min_version="TLSv1_3",
    )


def test_files() -> None:
    common = {
        "tls_certificates": [{"certificate_chain": {"filename": "/c"}, "private_key": {"filename": "/k"}}],
        "validation_context": {
            "trusted_ca": {"filename": "/ca"},
            "match_subject_alt_names": [{"suffix": ".bank"}, {"prefix": "spiffe://x/"}, {"contains": "y"}],
        },
    }
    assert decode_cluster(cluster(context(common))).tls == ClientTls(
        trust=Trust.FILE,
        ca_file="/ca",
        mesh_identity=False,
        certificate_file="/c",
        key_file="/k",
        sans=(
            (SanMatch.SUFFIX, ".bank"),
            (SanMatch.PREFIX, "spiffe://x/"),
            (SanMatch.CONTAINS, "y"),
        ),
    )


def test_the_systems_roots_and_the_requests_host() -> None:
    tls = context({"validation_context": {"system_root_certs": {}}})
    plain = ClientTls(trust=Trust.SYSTEM, mesh_identity=False)
    assert decode_cluster(cluster(tls)).tls == plain
    found = decode_cluster(cluster(tls, auto_sni=True, auto_san_validation=True)).tls
    assert found == ClientTls(trust=Trust.SYSTEM, mesh_identity=False, verify_host=True)
    assert decode_cluster(cluster(tls, auto_sni=True)).tls == plain


def test_without_a_validation_context_nobody_is_verified() -> None:
    nobody = ClientTls(trust=Trust.NOBODY, mesh_identity=False)
    assert decode_cluster(cluster(context({}), auto_sni=True, auto_san_validation=True)).tls == nobody
    assert decode_cluster(cluster(context({"validation_context": {}}))).tls == nobody


def test_transports_by_what_an_endpoint_says() -> None:
    made = cluster()
    first = made.transport_socket_matches.add(name="tlsMode-istio")
    first.match.update({"tlsMode": "istio"})
    first.transport_socket.typed_config.CopyFrom(pb.pack(context(MESH)))
    raw = pb.message("envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer")()
    made.transport_socket_matches.add(name="tlsMode-disabled").transport_socket.typed_config.CopyFrom(
        pb.pack(raw)
    )
    found = decode_cluster(made)
    istio = frozenset({("tlsMode", "istio")})
    assert found.transports == (
        Transport("tlsMode-istio", istio, ClientTls(sans=((SanMatch.EXACT, "spiffe://td/ns/a/sa/b"),))),
        Transport("tlsMode-disabled"),
    )
    assert found.tls is None
    listed = pb.ClusterLoadAssignment(cluster_name="c")
    for said in ({"tlsMode": "istio"}, {}):
        endpoint = listed.endpoints.add().lb_endpoints.add()
        endpoint.endpoint.address.socket_address.address = "10.0.0.1"
        endpoint.endpoint.address.socket_address.port_value = 1
        endpoint.metadata.filter_metadata["envoy.transport_socket_match"].update(said)
    decoded = [one.transport for group in decode_endpoints(listed).localities for one in group.endpoints]
    assert decoded == [istio, frozenset()]


def test_plain_text() -> None:
    assert decode_cluster(cluster()).tls is None
    assert decode_cluster(cluster()).transports == ()


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({**MESH, "tls_params": {"tls_maximum_protocol_version": "TLSv1_2"}}, "tls_maximum_protocol_version"),
    ({"tls_certificate_sds_secret_configs": [{"name": "other"}]}, "tls_certificate_sds_secret_configs"),
    ({"tls_certificate_provider_instance": {"instance_name": "x"}}, "tls_certificate_provider_instance"),
    ({"tls_certificates": [{"certificate_chain": {"filename": "/c"}}]}, r"tls_certificates\[0\]"),
    ({"tls_certificates": [{}, {}]}, "more than one"),
    ({"validation_context_sds_secret_config": {"name": "x"}}, "validation_context_sds_secret_config"),
    ({"combined_validation_context": {}}, "sds_secret_config.name: is not 'ROOTCA'"),
    ({"validation_context": {"trusted_ca": {"inline_string": "x"}}}, "only files"),
    ({"validation_context": {"match_subject_alt_names": [{"exact": "x"}]}}, "trusted_ca: is not set"),
    ({"validation_context": {"trusted_ca": {"filename": "/x"}, "crl": {"inline_string": "y"}}}, "crl"),
    (
        {"validation_context": {"system_root_certs": {}, "verify_certificate_hash": ["aa"]}},
        "verify_certificate_hash",
    ),
    (
        {
            "validation_context": {
                "system_root_certs": {},
                "match_subject_alt_names": [{"safe_regex": {"regex": "x"}}],
            }
        },
        r"match_subject_alt_names\[0\]",
    ),
    (
        {"validation_context": {"system_root_certs": {}, "match_subject_alt_names": [{"exact": ""}]}},
        r"match_subject_alt_names\[0\]",
    ),
]


@pytest.mark.parametrize(("common", "why"), REFUSED, ids=[why for _, why in REFUSED])
def test_refused(common: dict[str, Any], why: str) -> None:
    with pytest.raises(Refused, match=why) as caught:
        decode_cluster(cluster(context(common)))
    assert caught.value.path.startswith("transport_socket.typed_config.common_tls_context")


def broken(made: Any) -> None:
    made.transport_socket.typed_config.value = b"\xff"


def unknown(made: Any) -> None:
    made.transport_socket.typed_config.type_url = "type.googleapis.com/what.is.this"


def other(made: Any) -> None:
    made.transport_socket.typed_config.CopyFrom(pb.pack(pb.Router()))


def number(made: Any) -> None:
    made.transport_socket_matches.add(name="x").match.update({"tlsMode": 1})


@pytest.mark.parametrize("change", [broken, unknown, other, number])
def test_a_socket_of_no_known_kind_is_refused(change: Callable[[Any], None]) -> None:
    made = cluster(context(MESH))
    change(made)
    with pytest.raises(Refused, match="transport_socket"):
        decode_cluster(made)


def test_roots() -> None:
    secret = pb.Secret(name="ROOTCA")
    secret.validation_context.trusted_ca.inline_bytes = ROOTS
    assert decode_roots(secret) == ROOTS
    secret.validation_context.trusted_ca.inline_string = ROOTS.decode()
    assert decode_roots(secret) == ROOTS


@pytest.mark.parametrize(
    "secret",
    [
        {},
        {"tls_certificate": {}},
        {"validation_context": {}},
        {"validation_context": {"trusted_ca": {"filename": "/etc/passwd"}}},
        {"validation_context": {"trusted_ca": {"inline_string": "no certificate"}}},
        {"validation_context": {"trusted_ca": {"inline_string": ROOTS.decode() + "x" * 1024 * 1024}}},
    ],
)
def test_roots_that_are_none(secret: dict[str, Any]) -> None:
    with pytest.raises(Refused):
        decode_roots(pb.from_dict(pb.Secret, secret))
