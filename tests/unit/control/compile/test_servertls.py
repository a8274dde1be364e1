"""The TLS of a Gateway's server, field by field."""

from typing import Any

import pytest

from meshlib.control.compile.servertls import asked, server_tls
from meshlib.control.istio.gateway import ServerTLSSettings
from meshlib.xds import pb


def made(**said: Any) -> dict[str, Any]:
    context = server_tls(ServerTLSSettings.model_validate({"mode": "MUTUAL"} | said), requests=False)
    return pb.to_dict(context)


def names(**said: Any) -> list[str]:
    common = made(**said)["common_tls_context"]
    shown = [each["name"] for each in common["tls_certificate_sds_secret_configs"]]
    return [*shown, common["combined_validation_context"]["validation_context_sds_secret_config"]["name"]]


@pytest.mark.parametrize(
    ("said", "secrets"),
    [
        ({"credentialName": "c"}, ["kubernetes://c", "kubernetes://c-cacert"]),
        ({"credentialNames": ["a", "b"]}, ["kubernetes://a", "kubernetes://b", "kubernetes://a-cacert"]),
        (
            {"credentialName": "c", "caCertCredentialName": "ca"},
            ["kubernetes://c", "kubernetes://ca-cacert"],
        ),
        (
            {"serverCertificate": "/c", "privateKey": "/k", "caCertificates": "/ca"},
            ["file-cert:/c~/k", "file-root:/ca"],
        ),
        (
            {"serverCertificate": "/c", "privateKey": "/k", "caCertificates": "/ca", "caCrl": "/crl"},
            ["file-cert:/c~/k", "file-crl:/ca~/crl"],
        ),
        (
            {
                "tlsCertificates": [
                    {"serverCertificate": "/1", "privateKey": "/2"},
                    {"serverCertificate": "/3", "privateKey": "/4"},
                ],
                "caCertificates": "/ca",
            },
            ["file-cert:/1~/2", "file-cert:/3~/4", "file-root:/ca"],
        ),
    ],
)
def test_where_certificates_come_from(said: dict[str, Any], secrets: list[str]) -> None:
    assert names(**said) == secrets
    served = [name for name in secrets if name.startswith("kubernetes://")]
    assert list(asked(ServerTLSSettings.model_validate({"mode": "MUTUAL"} | said))) == served


@pytest.mark.parametrize(
    ("said", "context"),
    [
        ({"subjectAltNames": ["a"]}, {"match_subject_alt_names": [{"exact": "a"}]}),
        ({"verifyCertificateSpki": ["s"]}, {"verify_certificate_spki": ["s"]}),
        ({"verifyCertificateHash": ["h"]}, {"verify_certificate_hash": ["h"]}),
        ({"insecureSkipVerify": True}, {"trust_chain_verification": "ACCEPT_UNTRUSTED"}),
        ({}, {}),
    ],
)
def test_what_is_asked_of_callers(said: dict[str, Any], context: dict[str, Any]) -> None:
    found = made(credentialName="c", **said)
    assert found["require_client_certificate"] is True
    assert found["common_tls_context"]["combined_validation_context"]["default_validation_context"] == context


def test_who_asks_for_none() -> None:
    found = made(mode="SIMPLE", credentialName="c", subjectAltNames=["a"])
    assert "combined_validation_context" not in found["common_tls_context"]
    assert "require_client_certificate" not in found
    assert made(mode="OPTIONAL_MUTUAL", credentialName="c")["require_client_certificate"] is False


def test_versions() -> None:
    params = made(mode="SIMPLE", credentialName="c")["common_tls_context"]["tls_params"]
    assert params == {
        "tls_minimum_protocol_version": "TLSv1_2",
        "tls_maximum_protocol_version": "TLSv1_3",
    }
    said = {
        "minProtocolVersion": "TLSV1_0",
        "maxProtocolVersion": "TLSV1_1",
        "cipherSuites": ["AES128-SHA", "x", "AES128-SHA", "AES256-SHA"],
    }
    params = made(mode="SIMPLE", credentialName="c", ecdhCurves=["P-256", "P-256", "x"], **said)[
        "common_tls_context"
    ]["tls_params"]
    assert params == {
        "tls_minimum_protocol_version": "TLSv1_0",
        "tls_maximum_protocol_version": "TLSv1_1",
        "cipher_suites": ["AES128-SHA", "AES256-SHA"],
        "ecdh_curves": ["P-256"],
    }
