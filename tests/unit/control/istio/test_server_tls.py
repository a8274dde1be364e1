"""The TLS of a Gateway's server: what Envoy would refuse is left out with a warning, or an error."""

import pytest

from meshlib.control.istio import tlsparameters
from meshlib.control.istio.problem import Severity
from meshlib.control.sources.text import documents_in

GATEWAY = """
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: a}
spec:
  servers:
  - port: {number: 443, name: s, protocol: HTTPS}
    hosts: [a.b]
    tls: {TLS}
"""
SIMPLE = "mode: SIMPLE, credentialName: c"
MUTUAL = "mode: MUTUAL, credentialName: c"
FILES = "mode: MUTUAL, serverCertificate: /c, privateKey: /k"
HASH, SPKI = "ab" * 32, "YWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWE="


def found(tls: str) -> list[tuple[bool, str, str]]:
    """Whether it is an error, where and what."""
    read = documents_in(GATEWAY.replace("{TLS}", "{" + tls + "}"), "f.yaml")
    at = "spec.servers[0].tls."
    return [
        (one.severity is Severity.ERROR, one.field.removeprefix(at), one.message) for one in read.problems
    ]


@pytest.mark.parametrize(
    "tls",
    [
        f"{SIMPLE}, cipherSuites: [ALL]",
        f"{SIMPLE}, cipherSuites: ['[AES128-SHA|AES256-SHA]', ECDHE-RSA-AES128-SHA]",
        f"{SIMPLE}, ecdhCurves: [X25519MLKEM768, P-256]",
        f"{MUTUAL}, verifyCertificateHash: ['{HASH}', '{HASH.upper()}', '{':'.join(['ab'] * 32)}']",
        f"{MUTUAL}, verifyCertificateSpki: ['{SPKI}']",
        f"{FILES}, caCertificates: /ca, caCrl: /crl",
        f"{SIMPLE}, maxProtocolVersion: TLSV1_2",
    ],
)
def test_what_is_taken(tls: str) -> None:
    assert found(tls) == []


@pytest.mark.parametrize(
    "name", ["TLS_AES_128_GCM_SHA256", "NOT-A-CIPHER", "AES256-SHA256", "-AES128-SHA", "''"]
)
def test_a_cipher_suite_that_is_not_known_is_left_out(name: str) -> None:
    assert found(f"{SIMPLE}, cipherSuites: [AES128-SHA, {name}]") == [
        (False, "cipherSuites[1]", "left out: not known")
    ]


@pytest.mark.parametrize("name", ["nonsense", "P-224", "X25519Kyber768Draft00", "p-256"])
def test_a_curve_that_is_not_known_is_left_out(name: str) -> None:
    assert found(f"{SIMPLE}, ecdhCurves: [P-256, {name}]") == [
        (False, "ecdhCurves[1]", "left out: not known")
    ]


def test_what_stands_twice_is_told() -> None:
    twice = "left out: it stands twice"
    assert found(f"{SIMPLE}, cipherSuites: [ALL, ALL], ecdhCurves: [P-256, P-256]") == [
        (False, "cipherSuites[1]", twice),
        (False, "ecdhCurves[1]", twice),
    ]


@pytest.mark.parametrize("text", ["zzz", HASH[:-2], "g" * 64, HASH + " ", "ab:" * 32, "", "\u0661" * 64])
def test_a_pin_that_is_none_is_an_error(text: str) -> None:
    ((broken, field, _),) = found(f"{MUTUAL}, verifyCertificateHash: ['{text}']")
    assert (broken, field) == (True, "verifyCertificateHash[0]")


@pytest.mark.parametrize(
    "text", ["zzz", SPKI[:-1], "YWFhYQ==", "_" * 43 + "=", SPKI + " ", "", "\u0661" * 44]
)
def test_so_is_one_of_a_key(text: str) -> None:
    ((broken, field, _),) = found(f"{MUTUAL}, verifyCertificateSpki: ['{text}']")
    assert (broken, field) == (True, "verifyCertificateSpki[0]")


@pytest.mark.parametrize("version", ["TLSV1_0", "TLSV1_1"])
def test_a_server_that_nobody_can_reach(version: str) -> None:
    told = [(False, "maxProtocolVersion", "nobody can connect: the least is TLSV1_2")]
    assert found(f"{SIMPLE}, maxProtocolVersion: {version}") == told
    assert (
        found(f"{SIMPLE}, minProtocolVersion: TLSV1_0, maxProtocolVersion: {version}, cipherSuites: [ALL]")
        == []
    )


def test_revoked_certificates_stand_where_the_ca_stands() -> None:
    two = "mode: MUTUAL, credentialNames: [a, b], caCrl: /crl"
    assert found(two) == [(True, "caCrl", "stands without caCertificates")]


def test_what_is_left_is_all_known() -> None:
    assert tlsparameters.suites(["x", "ALL", "[AES128-SHA|x]", "ALL", "[]"]) == ("ALL",)
    assert tlsparameters.curves(["x", "P-256", "P-256"]) == ("P-256",)
