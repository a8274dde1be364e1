"""Which servers of which Gateways a workload serves, and which hosts VirtualServices have of them."""

import pytest

from meshlib.control.graph import build_graph
from meshlib.control.graph.gateways import Opened, Served
from meshlib.control.istio.problem import Severity
from meshlib.control.sources.text import documents_in

COUNT = iter(range(10_000))


def gateway(name: str, servers: str, selector: str = "istio: edge", namespace: str = "default") -> str:
    minute, second = divmod(next(COUNT), 60)
    created = f"2024-01-01T00:{minute:02}:{second:02}Z"
    return f"""---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {{name: {name}, namespace: {namespace}, creationTimestamp: "{created}"}}
spec: {{selector: {{{selector}}}, servers: [{servers}]}}
"""


def server(port: int, protocol: str, hosts: str, rest: str = "") -> str:
    return f"{{port: {{number: {port}, name: p{next(COUNT)}, protocol: {protocol}}}, hosts: [{hosts}]{rest}}}"


TLS = ", tls: {mode: SIMPLE, credentialName: c}"


def opened(*documents: str, **labels: str) -> list[Opened]:
    read = documents_in("".join(documents), "a.yaml")
    assert [str(p) for p in read.problems if p.severity is Severity.ERROR] == []
    return list(build_graph(read.documents).gateways.opened(labels or {"istio": "edge"}))


def shown(found: list[Opened]) -> list[tuple[str, int, list[str], list[str]]]:
    return [
        (one.bind, one.port, [s.document.name for s in one.served], [why for _, why in one.skipped])
        for one in found
    ]


def test_selectors() -> None:
    text = (
        gateway("all", server(1, "HTTP", "'*'"), selector=""),
        gateway("edge", server(2, "HTTP", "'*'"), namespace="elsewhere"),
        gateway("both", server(3, "HTTP", "'*'"), selector="istio: edge, app: x"),
    )
    assert [one.port for one in opened(*text)] == [1, 2]
    assert [one.port for one in opened(*text, istio="edge", app="x", more="y")] == [1, 2, 3]
    assert [one.port for one in opened(*text, istio="other")] == [1]


def test_servers_of_http_and_of_tls_add_up() -> None:
    found = opened(
        gateway("a", server(80, "HTTP", "a.b") + "," + server(443, "HTTPS", "a.example", TLS)),
        gateway("b", server(80, "GRPC", "a.b") + "," + server(443, "TLS", "b.example", TLS)),
        gateway("c", server(80, "HTTP", "'*'", ", bind: 127.0.0.1")),
    )
    assert shown(found) == [
        ("", 80, ["a", "b"], []),
        ("", 443, ["a", "b"], []),
        ("127.0.0.1", 80, ["c"], []),
    ]


@pytest.mark.parametrize(
    ("first", "second", "why"),
    [
        (server(80, "HTTP", "a.b"), server(80, "TCP", "'*'"), "port 80 speaks HTTP already, by"),
        (server(80, "TCP", "'*'"), server(80, "HTTP", "a.b"), "port 80 speaks TCP already, by"),
        (server(80, "TCP", "'*'"), server(80, "MONGO", "'*'"), "nothing tells connections of TCP apart"),
        (
            server(80, "HTTP", "a.b"),
            server(80, "TCP", "'*'", ", bind: 0.0.0.0"),
            "port 80 speaks HTTP already",
        ),
        (server(80, "TLS", "a.b", TLS), server(80, "HTTPS", "c.b, x/a.b", TLS), "the host a.b is served"),
    ],
)
def test_the_older_server_stays(first: str, second: str, why: str) -> None:
    (found,) = opened(gateway("old", first), gateway("young", second))
    assert [one.document.name for one in found.served] == ["old"]
    ((left, reason),) = found.skipped
    assert left.document.name == "young"
    assert why in reason


def test_one_place_has_many_spellings() -> None:
    found = build_graph(
        documents_in(
            gateway("a", server(80, "HTTP", "a.b"))
            + gateway("b", server(80, "HTTP", "b.b", ", bind: 127.0.0.1"))
            + gateway("c", server(8080, "HTTP", "c.b", ", bind: '127.0.0.1'"))
            + gateway("d", server(8080, "TCP", "'*'"))
            + gateway("e", server(80, "HTTP", "'*'", ", bind: '0:0:0:0:0:0:0:1'"))
            + gateway("f", server(80, "HTTP", "f.b", ", bind: '::1'")),
            "a.yaml",
        ).documents
    ).gateways.opened({"istio": "edge"}, "127.0.0.1", lambda port: 8080)
    assert [(one.address, one.own_port, one.port, one.bind) for one in found] == [
        ("127.0.0.1", 8080, 80, ""),
        ("::1", 8080, 80, "0:0:0:0:0:0:0:1"),
    ]
    assert [[s.document.name for s in one.served] for one in found] == [["a", "b", "c"], ["e", "f"]]
    ((left, reason),) = found[0].skipped
    assert left.document.name == "d"
    assert reason == "port 8080, which listens where port 80 does, speaks HTTP already, by Gateway default/a"


def served(hosts: str) -> Served:
    return opened(gateway("a", server(80, "HTTP", hosts), namespace="home"))[0].served[0]


@pytest.mark.parametrize(
    ("own", "wanted", "namespace", "shared"),
    [
        ("'*'", ["a.b"], "x", ["a.b"]),
        ("a.b", ["*"], "x", ["a.b"]),
        ("A.b, c.b", ["*.b", "a.b"], "x", ["a.b", "c.b"]),
        ("'*.b'", ["*.a.b", "b"], "x", ["*.a.b"]),
        ("./a.b", ["a.b"], "home", ["a.b"]),
        ("./a.b", ["a.b"], "x", []),
        ("x/a.b, '*/c.b'", ["a.b", "c.b"], "y", ["c.b"]),
    ],
)
def test_hosts_in_common(own: str, wanted: list[str], namespace: str, shared: list[str]) -> None:
    assert list(served(own).shared(wanted, namespace)) == shared
