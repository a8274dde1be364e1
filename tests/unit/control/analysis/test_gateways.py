"""What `meshlib check` says of Gateways."""

from meshlib.control.analysis.analyze import analyze
from meshlib.control.istio.problem import Severity
from meshlib.control.sources.text import documents_in

GATEWAY = """---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: NAME}
spec:
  selector: {istio: edge}
  servers:
"""
SECRET = "---\napiVersion: v1\nkind: Secret\nmetadata: {name: there}\ndata: {}\n"


def found(*servers: str, more: str = "") -> list[tuple[str, str, str]]:
    text = "".join(
        GATEWAY.replace("NAME", f"g{number}") + f"  - {each}\n" for number, each in enumerate(servers)
    )
    read = documents_in(text + more, "f.yaml")
    assert [str(p) for p in read.problems if p.severity is Severity.ERROR] == []
    return [(one.code, one.field, one.message) for one in analyze(read.documents)]


def server(protocol: str, host: str, rest: str = "") -> str:
    return f"{{port: {{number: 80, name: p, protocol: {protocol}}}, hosts: ['{host}']{rest}}}"


def test_nothing_is_wrong() -> None:
    tls = ", tls: {mode: SIMPLE, credentialName: there}"
    assert found(server("HTTPS", "a.b", tls), server("HTTPS", "c.b", tls), more=SECRET) == []


def test_a_server_that_is_left_out() -> None:
    ((code, field, message),) = found(server("HTTP", "a.b"), server("TCP", "c.b"))
    assert (code, field) == ("IST0145", "spec.servers[0]")
    assert message == "the server is left out: port 80 speaks HTTP already, by Gateway default/g0"


def test_a_secret_that_is_not_there() -> None:
    tls = ", tls: {mode: SIMPLE, credentialName: missing}"
    assert found(server("HTTPS", "a.b", tls), more=SECRET) == [
        ("IST0101", "spec.servers[0].tls.credentialName", "no such Secret in any namespace")
    ]


def test_what_is_not_applied() -> None:
    passing = server("TLS", "*.b", ", tls: {mode: AUTO_PASSTHROUGH}")
    assert [field for _, field, _ in found(passing)] == ["spec.servers[0].tls.mode"]
    assert [field for _, field, _ in found(server("GRPC-WEB", "a.b"))] == ["spec.servers[0].port.protocol"]
