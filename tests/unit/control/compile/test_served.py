"""Which connections the chains of a workload's ports take, and what for."""

import pytest

from meshlib.control.compile.served import Served, spoken_at
from meshlib.control.graph import Graph, build_graph
from meshlib.control.registration import Place, Registration
from meshlib.control.registry import Protocol
from meshlib.control.sources.text import documents_in
from meshlib.xds import pb
from meshlib.xds.node import Client, Flavour

PORTS = (("any", 82), ("http", 80), ("tcp", 81))
WEB = Registration("r", "default", "web", (("app", "web"),), "10.0.0.5", PORTS, node="vm1")
CAPTURED = Place("web", "/run/netns/web")
PEERS = """
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: web}
spec: {selector: {matchLabels: {app: web}}, mtls: {mode: MODE}, portLevelMtls: {9999: {mode: STRICT}}}
"""
ISTIO_HTTP = "istio-http/1.0,istio-http/1.1,istio-h2"
HTTP = "http/1.0,http/1.1,h2c"


def graph(*documents: str) -> Graph:
    return build_graph(documents_in("\n---\n".join(documents), "a.yaml").documents)


def chains(mode: str, place: Place = CAPTURED, *, tunnel: bool = False, roots: bool = True) -> list[str]:
    """`port transport protocols -> content`; `mtls` where TLS ends."""
    client = Client(Flavour.NODE, service_account="web", labels=WEB.labels)
    listener = pb.Listener()
    Served(graph(PEERS.replace("MODE", mode)), client, WEB, place, roots).chains(listener, tunnel=tunnel)
    found = []
    for chain in listener.filter_chains:
        match = chain.filter_chain_match
        words = [str(match.destination_port.value or "*"), match.transport_protocol]
        words += [",".join(match.application_protocols), "->"]
        words += ["mtls"] if chain.HasField("transport_socket") else []
        words.append("http" if chain.filters[-1].name.endswith("manager") else "tcp")
        found.append(" ".join(filter(None, words)))
    return sorted(found)


STRICT = [
    "80 tls -> mtls http",
    "81 tls -> mtls tcp",
    "82 tls -> mtls tcp",
    f"82 tls {ISTIO_HTTP},http/1.0,http/1.1,h2 -> mtls http",
]
NOT_DECLARED = "9999 tls -> mtls tcp"
PERMISSIVE = [
    "80 raw_buffer -> http",
    "80 tls -> mtls http",
    "81 raw_buffer -> tcp",
    "81 tls -> tcp",
    "81 tls istio-peer-exchange,istio -> mtls tcp",
    "82 raw_buffer -> tcp",
    f"82 raw_buffer {HTTP} -> http",
    "82 tls -> tcp",
    f"82 tls {ISTIO_HTTP} -> mtls http",
    "82 tls istio-peer-exchange,istio -> mtls tcp",
]
DISABLE = [one for one in PERMISSIVE if "mtls" not in one]


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("STRICT", [*STRICT, "* tls -> mtls tcp"]),
        (
            "PERMISSIVE",
            [
                *PERMISSIVE,
                "* raw_buffer -> tcp",
                "* tls -> tcp",
                "* tls istio-peer-exchange,istio -> mtls tcp",
            ],
        ),
        ("DISABLE", [*DISABLE, "* raw_buffer -> tcp", "* tls -> tcp"]),
    ],
)
def test_chains_by_mode(mode: str, expected: list[str]) -> None:
    assert chains(mode) == sorted([*expected, NOT_DECLARED])


def test_without_capture_there_are_the_declared_ports_only() -> None:
    assert chains("STRICT", Place("web")) == sorted(STRICT)


def test_without_roots_permissive_is_plain_text_and_strict_stays() -> None:
    assert chains("PERMISSIVE", Place("web"), roots=False) == sorted(DISABLE)
    assert chains("STRICT", Place("web"), roots=False) == sorted(STRICT)


@pytest.mark.parametrize("mode", ["STRICT", "DISABLE"])
def test_behind_a_tunnel_the_mode_is_met_already(mode: str) -> None:
    expected = ["* -> tcp", "80 -> http", "81 -> tcp", "82 -> tcp", f"82 {HTTP} -> http", "9999 -> tcp"]
    assert chains(mode, tunnel=True) == sorted(expected)


def test_what_a_port_speaks_its_services_say_and_http_before_all() -> None:
    def service(name: str, *ports: str, app: str = "web") -> str:
        head = f"apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\n"
        return f"{head}spec: {{selector: {{app: {app}}}, ports: [{', '.join(ports)}]}}"

    def port(name: str, number: int, target: int) -> str:
        return f"{{name: {name}, port: {number}, targetPort: {target}}}"

    found = graph(
        service("a", port("tcp-x", 1, 80), port("grpc", 2, 81), port("tcp-y", 3, 82)),
        service("b", port("http2", 1, 80), port("tcp-z", 2, 81), port("other", 3, 83)),
        service("c", port("http", 3, 82), app="else"),
    )
    assert spoken_at(found, WEB) == {80: Protocol.HTTP2, 81: Protocol.HTTP2, 82: Protocol.TCP}
    assert spoken_at(graph(), WEB) == {80: Protocol.HTTP, 81: Protocol.TCP, 82: Protocol.SNIFFED}
