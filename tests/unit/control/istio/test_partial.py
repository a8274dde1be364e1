"""A field of the wrong form does not hide what else is wrong, and makes up nothing."""

import pytest

from meshlib.control.istio.problem import Severity
from meshlib.control.sources.text import documents_in

TO = "route: [{destination: {host: b}}]"


def errors(kind: str, spec: str, version: str = "networking.istio.io/v1") -> list[str]:
    head = f"apiVersion: {version}\nkind: {kind}\nmetadata: {{name: a}}\nspec:\n"
    read = documents_in(head + "".join(f"  {line}\n" for line in spec.splitlines()), "f.yaml")
    assert not read.documents
    return sorted(p.field for p in read.problems if p.severity is Severity.ERROR)


@pytest.mark.parametrize(
    ("kind", "spec", "fields"),
    [
        (
            "VirtualService",
            f"hosts: [a]\nhttp:\n- {TO}\n  timeout: 5\n  fault: {{abort: {{httpStatus: 999}}}}",
            ["http[0].fault.abort.httpStatus", "http[0].timeout"],
        ),
        (
            "VirtualService",
            f"hosts: [a]\nhttp:\n- {{rout: 1}}\n- {{{TO}, timeout: 0s}}",
            ["http[0].rout", "http[1].timeout"],
        ),
        (
            "VirtualService",
            f"hosts: [a b]\nhttp: [{{{TO}, x: 1}}]",
            ["hosts[0]", "http[0].x"],
        ),
        (
            "DestinationRule",
            "host: a\nsubsets:\n- {name: a.b, labels: {v: 1}}\n- {name: c.d}",
            ["subsets[0].labels.v", "subsets[1].name"],
        ),
        (
            "Gateway",
            "servers:\n- 3\n- {port: {number: 0, name: a, protocol: HTTP}, hosts: ['*']}",
            ["servers[0]", "servers[1].port.number"],
        ),
    ],
)
def test_both_are_told(kind: str, spec: str, fields: list[str]) -> None:
    assert errors(kind, spec) == [f"spec.{field}" for field in fields]


@pytest.mark.parametrize(
    ("kind", "spec", "field"),
    [
        # Without its host the service would be a delegate, and without its gateways one of the mesh.
        ("VirtualService", f"hosts: a\ngateways: [g]\nhttp: [{{{TO}}}]", "hosts"),
        ("VirtualService", f"hosts: ['*']\ngateway: [g]\nhttp: [{{{TO}}}]", "gateway"),
        ("VirtualService", "hosts: [a]\nhttp: 3", "http"),
        (
            "VirtualService",
            f"hosts: [a]\nhttp: [{{{TO}, retries: {{attempts: '3', retryOn: 5xx}}}}]",
            "http[0].retries.attempts",
        ),
        ("VirtualService", "hosts: [a]\nhttp: [{route: [{destination: 3}]}]", "http[0].route[0].destination"),
        (
            "VirtualService",
            "hosts: [a]\nhttp: [{match: [{uri: {prefix: 3}}], redirect: {prefixRewrite: /b}}]",
            "http[0].match[0].uri.prefix",
        ),
        (
            "ServiceEntry",
            (
                "hosts: [a.b]\nports: [{number: 80, name: 80}]\nresolution: STATIC\n"
                "endpoints: [{address: 1.2.3.4, ports: {http: 8}}]"
            ),
            "ports[0].name",
        ),
        ("ServiceEntry", "hosts: ['*.a']\nresolution: DYNAMIC\nendpoints: [{address: a.b}]", "resolution"),
        (
            "Gateway",
            (
                "servers: [{hosts: ['*'], port: {number: 1, name: a, protocol: 3}, "
                "tls: {mode: SIMPLE, credentialName: a}}]"
            ),
            "servers[0].port.protocol",
        ),
        ("Sidecar", "workloadSelector: {label: {}}", "workloadSelector.label"),
    ],
)
def test_nothing_follows_from_what_is_missing(kind: str, spec: str, field: str) -> None:
    assert errors(kind, spec) == [f"spec.{field}"]


def test_a_node_port_is_not_judged_by_a_type_that_is_none() -> None:
    assert errors("Service", "type: 5\nports: [{port: 80, nodePort: 30000}]", "v1") == ["spec.type"]
    found = errors("Service", "ports: [{port: 80, name: 1}, {port: 0, name: a}]", "v1")
    assert found == ["spec.ports[0].name", "spec.ports[1].port"]


def test_metadata_does_not_hide_the_spec() -> None:
    text = (
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: A, labels: {a: 'b c'}}\n"
        "spec: {hosts: [a b], http: []}\n"
    )
    found = [problem.field for problem in documents_in(text, "f.yaml").problems]
    assert found == ["metadata.name", "metadata.labels.a", "spec", "spec.hosts[0]"]
