"""Endpoints and EndpointSlices: what Kubernetes takes and what it refuses, by line and field."""

import pytest

from meshlib.control.istio.problem import Problem, Severity
from meshlib.control.sources.text import documents_in


def problems(kind: str, body: str) -> tuple[Problem, ...]:
    version = "v1" if kind == "Endpoints" else "discovery.k8s.io/v1"
    text = f"apiVersion: {version}\nkind: {kind}\nmetadata: {{name: a}}\n{body}"
    read = documents_in(text, "mesh/a.yaml")
    refused = any(problem.severity is Severity.ERROR for problem in read.problems)
    assert [d.kind for d in read.documents] == ([] if refused else [kind])
    return read.problems


def subset(address: str, port: str = "{port: 80}") -> str:
    return f"subsets:\n- addresses:\n  - ip: {address}\n  ports: [{port}]\n"


def piece(address: str, kind: str = "IPv4", port: str = "{port: 80}") -> str:
    return f"addressType: {kind}\nports: [{port}]\nendpoints:\n- addresses:\n  - {address}\n"


@pytest.mark.parametrize("address", ["10.1.2.3", "127.0.0.1", "169.254.1.1", '"::1"', "fd00::1"])
def test_an_address_of_endpoints(address: str) -> None:
    assert problems("Endpoints", subset(address)) == ()


@pytest.mark.parametrize(
    ("address", "found"),
    [
        ("notip", "'notip'"),
        ("999.1.1.1", "'999.1.1.1'"),
        ("10.0.0.01", "'10.0.0.01'"),
        ("10.0.0.0/8", "'10.0.0.0/8'"),
        ('""', "''"),
        ('" 10.0.0.1"', "' 10.0.0.1'"),
        ("reviews.example", "'reviews.example'"),
        ("fe80::1%eth0", "'fe80::1%eth0'"),
        ("0.0.0.0", "'0.0.0.0'"),
        ('"::"', "'::'"),
        ("224.0.0.5", "'224.0.0.5'"),
        ("ff12::1", "'ff12::1'"),
    ],
)
def test_no_address_of_endpoints(address: str, found: str) -> None:
    (problem,) = problems("Endpoints", subset(address))
    assert problem.source == "mesh/a.yaml:6"
    assert problem.field == "subsets[0].addresses[0].ip"
    assert (problem.found, problem.allowed) == (found, "an IP address")


def test_an_address_that_says_nothing_and_one_that_is_not_ready() -> None:
    body = "subsets:\n- notReadyAddresses:\n  - hostname: Up\n  ports: [{port: 1}]\n- ports: [{port: 1}]\n"
    assert [(p.line, p.field, p.message, p.found) for p in problems("Endpoints", body)] == [
        (6, "subsets[0].notReadyAddresses[0].ip", "not an IP address", "''"),
        (6, "subsets[0].notReadyAddresses[0].hostname", "not a host name", "'Up'"),
        (8, "subsets[1]", "no addresses", ""),
    ]


@pytest.mark.parametrize("port", ["{port: 1}", "{port: 65535, name: http}", "{port: 1, protocol: SCTP}"])
def test_a_port(port: str) -> None:
    assert problems("Endpoints", subset("10.0.0.1", port)) == ()
    assert problems("EndpointSlice", piece("10.0.0.1", port=port)) == ()


@pytest.mark.parametrize(
    ("port", "field", "found"),
    [
        ("{port: 0}", "port", "0"),
        ("{port: 65536}", "port", "65536"),
        ("{port: -1}", "port", "-1"),
        ("{port: 1, name: HTTP}", "name", "'HTTP'"),
        ("{port: 1, name: a_b}", "name", "'a_b'"),
        (f"{{port: 1, name: {'a' * 64}}}", "name", repr("a" * 64)),
        ("{port: 1, protocol: HTTP}", "protocol", "'HTTP'"),
        ('{port: "80"}', "port", "'80'"),
    ],
)
def test_no_port(port: str, field: str, found: str) -> None:
    for kind, body, place, line in (
        ("Endpoints", subset("10.0.0.1", port), f"subsets[0].ports[0].{field}", 7),
        ("EndpointSlice", piece("10.0.0.1", port=port), f"ports[0].{field}", 5),
    ):
        (problem,) = problems(kind, body)
        assert (problem.line, problem.field, problem.found) == (line, place, found)


def test_names_of_several_ports() -> None:
    (problem,) = problems("Endpoints", subset("10.0.0.1", "{port: 1, name: a}, {port: 2}"))
    assert (problem.field, problem.message) == ("subsets[0].ports[1].name", "no name")
    (problem,) = problems("EndpointSlice", piece("10.0.0.1", port="{port: 1, name: a}, {port: 2, name: a}"))
    assert (problem.field, problem.found) == ("ports[1].name", "'a'")
    assert problems("EndpointSlice", piece("10.0.0.1", port="{port: 1, name: a}, {port: 2}")) == ()


def test_a_port_of_endpoints_has_a_number_and_one_of_a_slice_need_not() -> None:
    (problem,) = problems("Endpoints", subset("10.0.0.1", "{name: a}"))
    assert (problem.field, problem.found, problem.allowed) == ("subsets[0].ports[0].port", "0", "1 to 65535")
    (problem,) = problems("EndpointSlice", piece("10.0.0.1", port="{name: a}"))
    assert (problem.severity, problem.field) == (Severity.WARNING, "ports[0]")


@pytest.mark.parametrize(
    ("kind", "address"),
    [("IPv4", "127.0.0.1"), ("IPv6", "fd00::1"), ("FQDN", "a.example"), ("FQDN", "a.example.")],
)
def test_an_address_of_a_slice(kind: str, address: str) -> None:
    assert problems("EndpointSlice", piece(address, kind)) == ()


@pytest.mark.parametrize(
    ("kind", "address", "message", "allowed"),
    [
        ("IPv4", "notip", "not an IP address", "an IPv4 address"),
        ("IPv4", '""', "not an IP address", "an IPv4 address"),
        ("IPv4", "999.1.1.1", "not an IP address", "an IPv4 address"),
        ("IPv4", "fd00::1", "not an IPv4 address", "an IPv4 address, as addressType says"),
        ("IPv6", "10.0.0.1", "not an IPv6 address", "an IPv6 address, as addressType says"),
        ("IPv6", "fe80::1%1", "an IP address with a zone", "an IPv6 address"),
        ("IPv6", '"::"', "not the address of a server", "an IPv6 address"),
        ("FQDN", "reviews", "not a full DNS name", "a lower case name with a dot in it, such as a.example"),
        ("FQDN", "A.example", "not a full DNS name", "a lower case name with a dot in it, such as a.example"),
        ("FQDN", "a..b", "not a full DNS name", "a lower case name with a dot in it, such as a.example"),
    ],
)
def test_no_address_of_a_slice(kind: str, address: str, message: str, allowed: str) -> None:
    (problem,) = problems("EndpointSlice", piece(address, kind))
    assert (problem.source, problem.field) == ("mesh/a.yaml:8", "endpoints[0].addresses[0]")
    assert (problem.message, problem.allowed) == (message, allowed)


def test_the_type_of_a_slices_addresses() -> None:
    (problem,) = problems("EndpointSlice", piece("10.0.0.1", "ipv4"))
    assert (problem.line, problem.field, problem.found) == (4, "addressType", "'ipv4'")
    assert problem.allowed == "IPv4, IPv6, FQDN"
    (problem,) = problems("EndpointSlice", "endpoints: []\n")
    assert (problem.field, problem.found) == ("addressType", "''")


def test_how_much_is_in_a_slice() -> None:
    one = "{addresses: [10.0.0.1]}"
    head = "addressType: IPv4\nendpoints: "
    assert problems("EndpointSlice", f"{head}[{', '.join([one] * 1000)}]\n") == ()
    (problem,) = problems("EndpointSlice", f"{head}[{', '.join([one] * 1001)}]\n")
    assert (problem.field, problem.found, problem.allowed) == ("endpoints", "1001", "at most 1000")
    for count in (0, 101):
        (problem,) = problems(
            "EndpointSlice", f"{head}[{{addresses: [{', '.join(['10.0.0.1'] * count)}]}}]\n"
        )
        assert (problem.field, problem.found) == ("endpoints[0].addresses", str(count))
    assert problems("EndpointSlice", f"{head}[{{addresses: [{', '.join(['10.0.0.1'] * 100)}]}}]\n") == ()
