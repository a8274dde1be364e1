"""Secrets with certificates: what is taken, what is refused, and that nothing of them is shown."""

import base64
from collections.abc import Callable
from typing import Any

import pytest
import yaml
from support.small_ca import Issued, SmallCa

from meshlib.control.istio.problem import Severity
from meshlib.control.istio.secret import credential
from meshlib.control.sources.text import documents_in

CA = SmallCa()
ONE, OTHER = CA.issue(dns=["a.example"]), CA.issue(dns=["b.example"])


def read(data: dict[str, bytes], type_: str = "kubernetes.io/tls", group: str = "data") -> Any:
    texts = {
        key: base64.b64encode(value).decode() if group == "data" else value.decode()
        for key, value in data.items()
    }
    document = {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": type_,
        "immutable": True,
        "metadata": {"name": "s"},
        group: texts,
    }
    return documents_in(yaml.safe_dump(document), "s.yaml")


def pair(certificate: bytes = ONE.pem.encode(), key: bytes = ONE.key_pem) -> dict[str, bytes]:
    return {"tls.crt": certificate, "tls.key": key}


@pytest.mark.parametrize(
    ("data", "type_"),
    [
        (pair(), "kubernetes.io/tls"),
        (pair() | {"ca.crt": CA.pem.encode(), "ca.crl": CA.revoked()}, "kubernetes.io/tls"),
        ({"cert": ONE.pem.encode(), "key": ONE.key_pem, "cacert": CA.pem.encode()}, "Opaque"),
    ],
)
@pytest.mark.parametrize("group", ["data", "stringData"])
def test_both_spellings_are_read(data: dict[str, bytes], type_: str, group: str) -> None:
    found = read(data, type_, group)
    assert found.problems == ()
    held = credential(found.documents[0].spec)
    assert (held.chain, held.key) == (ONE.pem.encode(), ONE.key_pem)
    assert held.roots == (CA.pem.encode() if len(data) > 2 else b"")


def test_a_ca_alone() -> None:
    held = credential(read({"cacert": CA.pem.encode()}, "Opaque").documents[0].spec)
    assert (held.chain, held.roots) == (b"", CA.pem.encode())


@pytest.mark.parametrize(
    ("data", "why"),
    [
        ({}, "the certificate can't be read"),
        (pair(key=OTHER.key_pem), "the key is not that of the certificate"),
        (pair(certificate=b"no pem"), "the certificate can't be read"),
        (pair(key=b"-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n"), "the key can't be used"),
        (pair() | {"ca.crt": b"none"}, "the CA can't be read"),
        (pair() | {"ca.crl": b"none"}, "the revocation list can't be read"),
    ],
)
def test_what_would_be_of_no_use_is_refused(data: dict[str, bytes], why: str) -> None:
    found = read(data)
    assert found.documents == ()
    assert any(why in str(problem) for problem in found.problems)
    assert "c2VjcmV0" not in str(found.problems)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (
            lambda old: {"tls.crt": old.pem.encode(), "tls.key": old.key_pem},
            "the certificate has ended, on",
        ),
        (lambda old: pair() | {"ca.crt": old.pem.encode()}, "the CA has ended, on"),
        (lambda old: pair(certificate=(ONE.pem + old.pem).encode()), "the certificate has ended, on"),
    ],
)
def test_what_has_ended_is_taken_and_told(data: Callable[[Issued], dict[str, bytes]], why: str) -> None:
    found = read(data(CA.issue(dns=["a.example"], ends=-60)))
    assert len(found.documents) == 1
    (problem,) = found.problems
    assert (problem.severity, why in str(problem)) == (Severity.WARNING, True)


def test_what_begins_later_is_taken_and_told() -> None:
    later = CA.issue(dns=["a.example"], begins=600)
    (problem,) = read({"tls.crt": later.pem.encode(), "tls.key": later.key_pem}).problems
    assert "the certificate begins later, on 20" in str(problem)


@pytest.mark.parametrize("value", ["c2VjcmV0!", 5, ["c2VjcmV0"], None])
def test_what_is_no_base64_is_refused_without_showing_it(value: object) -> None:
    document = {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "kubernetes.io/tls",
        "metadata": {"name": "s"},
        "data": {"tls.crt": value, "tls.key": value},
    }
    found = documents_in(yaml.safe_dump(document), "s.yaml")
    assert found.documents == ()
    assert "c2VjcmV0" not in repr(found)


def test_secrets_of_others_are_forgotten() -> None:
    found = read({"password": b"hunter2", "key": b"api-key", "cert": b"x"}, "Opaque")
    assert found.problems == ()
    assert "password" not in found.documents[0].spec.data
    assert "data" not in repr(found.documents[0].spec)
