"""Service: one line per rule of the Kubernetes API server, with the field and what is said."""

import pytest

from meshlib.control.istio.problem import Problem, Severity
from meshlib.control.sources.text import documents_in

PORTS = "ports: [{port: 80}]"


def problems(spec: str, name: str = "a") -> list[Problem]:
    head = f"apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec:\n"
    body = "".join(f"  {line}\n" for line in spec.splitlines())
    return list(documents_in(head + body, "f.yaml").problems)


@pytest.mark.parametrize(
    "spec",
    [
        PORTS,
        "ports: [{port: 80, name: http, appProtocol: kubernetes.io/h2c, targetPort: http-8}]",
        "ports: [{port: 80, targetPort: 0}]",
        "ports: [{port: 80, targetPort: ''}]",
        "ports: [{port: 53, name: a}, {port: 53, name: b, protocol: UDP}]",
        "type: ExternalName\nexternalName: db.example.com.",
        "clusterIP: None",
        "type: NodePort\nports: [{port: 80, nodePort: 30080}]\nclusterIP: 10.0.0.1",
        f"{PORTS}\nselector: {{app.kubernetes.io/name: x, version: ''}}",
        f"{PORTS}\nclusterIP: 10.0.0.1\nclusterIPs: [10.0.0.1, 'fd00::1']",
        f"{PORTS}\nexternalIPs: [127.0.0.1]\ntrafficDistribution: PreferClose",
    ],
)
def test_what_kubernetes_takes_has_no_problem(spec: str) -> None:
    assert problems(spec) == []


BAD = [
    ("selector: {app: x}", "spec", "ports: no ports"),
    ("ports: [{port: 70000}]", "spec.ports[0].port", "not a port, found 70000; allowed: 1 to 65535"),
    ("ports: [{port: 0}]", "spec.ports[0].port", "not a port, found 0"),
    ("ports: [{name: http}]", "spec.ports[0]", "port: not a port, found 0"),
    ("ports: [{port: '80'}]", "spec.ports[0].port", "not a number"),
    ("ports: [{port: 1}, {port: 2, name: b}]", "spec.ports[0]", "name: no name"),
    ("ports: [{port: 1, name: a}, {port: 2, name: a}]", "spec.ports[1].name", "stands twice, found 'a'"),
    ("ports: [{port: 1, name: a}, {port: 1, name: b}]", "spec.ports[1].port", "twice, found 1 of TCP"),
    ("ports: [{port: 1, name: HTTP}]", "spec.ports[0].name", "not the name of a port, found 'HTTP'"),
    ("ports: [{port: 1, protocol: HTTP}]", "spec.ports[0].protocol", "unknown protocol, found 'HTTP'"),
    ("ports: [{port: 1, targetPort: 70000}]", "spec.ports[0].targetPort", "not a port, found 70000"),
    ("ports: [{port: 1, targetPort: '80'}]", "spec.ports[0].targetPort", "not a target port, found '80'"),
    ("ports: [{port: 1, targetPort: a--b}]", "spec.ports[0].targetPort", "not a target port"),
    ("ports: [{port: 1, targetPort: a123456789012345}]", "spec.ports[0].targetPort", "not a target port"),
    ("ports: [{port: 1, appProtocol: 'a b'}]", "spec.ports[0].appProtocol", "not a protocol's name"),
    ("ports: [{port: 1, nodePort: 30000}]", "spec.ports[0].nodePort", "not with type ClusterIP"),
    (f"type: Foo\n{PORTS}", "spec.type", "not a type of service, found 'Foo'; allowed: ClusterIP, NodePort"),
    (f"{PORTS}\nselector: {{'a b': c}}", "spec.selector.a b", "not the name of a label"),
    (f"{PORTS}\nselector: {{a: 'b c'}}", "spec.selector.a", "not the value of a label, found 'b c'"),
    (f"{PORTS}\nselector: {{A.b/c/d: x}}", "spec.selector.A.b/c/d", "not the name of a label"),
    (f"{PORTS}\nclusterIP: none", "spec.clusterIP", "not an IP address, found 'none'"),
    (f"{PORTS}\nclusterIP: 10.0.0.1\nclusterIPs: [10.0.0.2]", "spec.clusterIPs[0]", "not clusterIP"),
    (f"{PORTS}\nclusterIP: 1.1.1.1\nclusterIPs: [1.1.1.1, x]", "spec.clusterIPs[1]", "not an IP address"),
    (f"{PORTS}\ntype: NodePort\nclusterIP: None", "spec.clusterIP", "no cluster IP with type NodePort"),
    (f"{PORTS}\nexternalIPs: [0.0.0.0]", "spec.externalIPs[0]", "not the address of a server"),
    (f"{PORTS}\ntrafficDistribution: Near", "spec.trafficDistribution", "unknown distribution"),
    ("type: ExternalName", "spec", "externalName: not a DNS name, found ''"),
    ("type: ExternalName\nexternalName: A_b", "spec.externalName", "not a DNS name, found 'A_b'"),
    ("type: ExternalName\nexternalName: a.b\nclusterIP: 1.2.3.4", "spec.clusterIP", "not with type Ext"),
]


@pytest.mark.parametrize(("spec", "field", "says"), BAD, ids=[says for _, _, says in BAD])
def test_what_kubernetes_refuses_is_an_error_at_its_field(spec: str, field: str, says: str) -> None:
    found = problems(spec)
    assert [problem.severity for problem in found] == [Severity.ERROR]
    assert found[0].text.startswith(field)
    assert says in found[0].text
