"""Which endpoints stand behind a service's port."""

from dataclasses import replace

import pytest

from meshlib.control.registration import Registration
from meshlib.control.registry import Endpoint, Protocol, Registry, build_registry, protocol_of
from meshlib.control.sources.text import documents_in
from meshlib.xds.names import TLS_MODE_LABEL

REVIEWS = """
apiVersion: v1
kind: Service
metadata: {name: reviews}
spec:
  selector: {app: reviews}
  ports: [{name: http, port: 80, targetPort: %s}]
"""


def registry(text: str, *servers: Registration) -> Registry:
    read = documents_in(text, "mesh.yaml")
    assert read.problems == ()
    return build_registry(read.documents, servers)


def server(address: str, ports: dict[str, int], namespace: str = "default", **labels: str) -> Registration:
    said = tuple(sorted((labels or {"app": "reviews"}).items()))
    return Registration(address, namespace, "default", said, address, tuple(sorted(ports.items())))


def found(known: Registry, host: str = "reviews.default.svc.cluster.local") -> list[tuple[str, int]]:
    service = known.services[host][0]
    return [(e.address, e.port) for e in known.endpoints(service, service.ports[0])]


@pytest.mark.parametrize(
    ("target", "ports", "number"),
    [
        ("8080", {"http": 9001}, 9001),
        ("web", {"web": 9001, "http": 9002}, 9001),
        ("web", {"anything": 9001}, 9001),
        ("8080", {"anything": 9001}, 9001),
        ("8080", {}, 8080),
    ],
)
def test_a_server_is_reached_at_the_port_that_it_reported(
    target: str, ports: dict[str, int], number: int
) -> None:
    assert found(registry(REVIEWS % target, server("10.0.0.1", ports))) == [("10.0.0.1", number)]


def test_a_server_without_the_named_port_is_no_endpoint() -> None:
    assert found(registry(REVIEWS % "web", server("10.0.0.1", {"a": 1, "b": 2}))) == []
    assert found(registry(REVIEWS % "8080", server("10.0.0.1", {"a": 1, "b": 2}))) == []


def test_labels_and_namespace_must_fit() -> None:
    servers = (
        server("10.0.0.1", {"http": 1}, app="ratings"),
        server("10.0.0.2", {"http": 1}, "other"),
        server("10.0.0.3", {"http": 1}, app="reviews", version="v1"),
    )
    assert found(registry(REVIEWS % "80", *servers)) == [("10.0.0.3", 1)]


def test_a_service_without_a_selector_selects_nothing_but_has_endpoints() -> None:
    text = """
apiVersion: v1
kind: Service
metadata: {name: reviews}
spec: {ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Endpoints
metadata: {name: reviews}
subsets:
- addresses: [{ip: 10.0.0.9}]
  notReadyAddresses: [{ip: 10.0.0.8}]
  ports: [{name: http, port: 8080}]
"""
    assert found(registry(text, server("10.0.0.1", {"http": 1}))) == [("10.0.0.9", 8080)]


def test_an_endpoint_slice_belongs_to_the_service_of_its_label() -> None:
    text = """
apiVersion: v1
kind: Service
metadata: {name: reviews}
spec: {ports: [{name: http, port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: reviews-x1, labels: {kubernetes.io/service-name: reviews}}
addressType: IPv4
endpoints:
- {addresses: [10.0.0.2], conditions: {ready: true}, zone: z1}
- {addresses: [10.0.0.3], conditions: {ready: false}}
ports: [{name: http, port: 8080}]
"""
    assert found(registry(text)) == [("10.0.0.2", 8080)]
    any_port = documents_in(text.replace("{name: http, port: 8080}", "{name: http}"), "mesh.yaml")
    assert found(build_registry(any_port.documents)) == []


@pytest.mark.parametrize("draining", [(True, False), (False, True), (True, True), (False, False)])
def test_an_address_that_two_processes_serve_drains_with_the_last_of_them(
    draining: tuple[bool, bool],
) -> None:
    one = server("10.0.0.1", {"http": 1})
    servers = [replace(one, id=f"1~{number}", draining=says) for number, says in enumerate(draining)]
    known = registry(REVIEWS % "80", *servers)
    service = known.services["reviews.default.svc.cluster.local"][0]
    endpoints = known.endpoints(service, service.ports[0])
    assert [(e.address, e.draining) for e in endpoints] == [("10.0.0.1", all(draining))]


def test_other_registrations_leave_the_first_registry_alone() -> None:
    before = registry(REVIEWS % "80", server("10.0.0.1", {"http": 1}))
    assert found(before) == [("10.0.0.1", 1)]
    after = before.with_registrations((server("10.0.0.2", {"http": 2}),))
    assert found(after) == [("10.0.0.2", 2)]
    assert found(before) == [("10.0.0.1", 1)]


def test_a_service_goes_before_a_service_entry_of_the_same_host() -> None:
    text = (
        """
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: aaa}
spec:
  hosts: [reviews.default.svc.cluster.local]
  ports: [{number: 80, name: http, protocol: HTTP}]
  resolution: STATIC
  endpoints: [{address: 10.1.1.1}]
---"""
        + REVIEWS % "80"
    )
    known = registry(text, server("10.0.0.1", {"http": 1}))
    services = known.services["reviews.default.svc.cluster.local"]
    assert [service.document.kind for service in services] == ["Service", "ServiceEntry"]


def test_an_endpoint_has_all_labels_of_a_subset_or_is_not_of_it() -> None:
    endpoint = Endpoint("10.0.0.1", 80, (("app", "a"), ("version", "v1")))
    assert endpoint.has({"version": "v1"})
    assert endpoint.has({})
    assert not endpoint.has({"version": "v1", "env": "x"})


@pytest.mark.parametrize(
    ("name", "number", "declared", "protocol"),
    [
        ("http", 80, "", Protocol.HTTP),
        ("http-web", 80, "", Protocol.HTTP),
        ("grpc-web-x", 80, "", Protocol.HTTP2),
        ("GRPC", 80, "", Protocol.HTTP2),
        ("web", 80, "kubernetes.io/h2c", Protocol.HTTP2),
        ("https-x", 443, "", Protocol.TLS),
        ("web", 3306, "", Protocol.TCP),
        ("web", 80, "", Protocol.SNIFFED),
        ("httpish", 80, "", Protocol.SNIFFED),
    ],
)
def test_protocol(name: str, number: int, declared: str, protocol: Protocol) -> None:
    assert protocol_of(name, number, declared) is protocol


TWO_PORTS = """
apiVersion: v1
kind: Service
metadata: {name: reviews}
spec:
  selector: {app: reviews}
  ports: [{name: http, port: 80, targetPort: 8080}, {name: metrics, port: 9090}]
"""


@pytest.mark.parametrize(
    ("ports", "numbers"),
    [
        ({"http": 9001}, [[9001], []]),
        ({"metrics": 9001}, [[], [9001]]),
        ({"other": 9001}, [[], []]),
        ({"other": 8080}, [[8080], []]),
        ({"http": 9001, "metrics": 9002}, [[9001], [9002]]),
        ({}, [[8080], [9090]]),
    ],
)
def test_a_single_port_is_not_behind_all_ports_of_a_service(
    ports: dict[str, int], numbers: list[list[int]]
) -> None:
    known = registry(TWO_PORTS, server("10.0.0.1", ports))
    service = known.services["reviews.default.svc.cluster.local"][0]
    assert [[e.port for e in known.endpoints(service, port)] for port in service.ports] == numbers


@pytest.mark.parametrize(
    ("conditions", "draining"),
    [
        ("{}", [False]),
        ("{ready: true}", [False]),
        ("{ready: false}", []),
        ("{ready: false, serving: true}", []),
        ("{ready: false, serving: true, terminating: true}", [True]),
        ("{ready: false, terminating: true}", [True]),
        ("{ready: false, serving: false, terminating: true}", []),
    ],
)
def test_an_endpoint_that_ends_and_still_serves_is_drained(conditions: str, draining: list[bool]) -> None:
    listed = f"""---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: reviews-1, labels: {{kubernetes.io/service-name: reviews}}}}
addressType: IPv4
ports: [{{name: http, port: 8080}}]
endpoints: [{{addresses: [10.0.0.9], conditions: {conditions}}}]
"""
    known = registry(TWO_PORTS + listed)
    service = known.services["reviews.default.svc.cluster.local"][0]
    assert [e.draining for e in known.endpoints(service, service.ports[0])] == draining


WRITTEN = """---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: written}
spec: {address: 10.0.0.9, labels: {app: reviews%s}%s}
"""


@pytest.mark.parametrize(
    ("label", "account", "identity", "mutual"),
    [
        ("", "", None, False),
        ("", ", serviceAccount: old", ("default", "old"), True),
        (", security.istio.io/tlsMode: istio", "", None, True),
        (", security.istio.io/tlsMode: disabled", ", serviceAccount: old", ("default", "old"), False),
    ],
)
def test_a_written_workload_takes_mutual_tls_by_its_label_or_its_account(
    label: str, account: str, identity: tuple[str, str] | None, mutual: bool
) -> None:
    known = registry(REVIEWS % 8080 + WRITTEN % (label, account))
    service = known.services["reviews.default.svc.cluster.local"][0]
    (endpoint,) = known.endpoints(service, service.ports[0])
    assert (endpoint.identity, endpoint.mutual) == (identity, mutual)


@pytest.mark.parametrize(("label", "mutual"), [("istio", True), ("disabled", False), (None, False)])
def test_a_server_takes_mutual_tls_if_it_says_so(label: str | None, mutual: bool) -> None:
    said = {"app": "reviews", **({TLS_MODE_LABEL: label} if label else {})}
    known = registry(REVIEWS % 8080, server("10.0.0.1", {"http": 1}, **said))
    service = known.services["reviews.default.svc.cluster.local"][0]
    (endpoint,) = known.endpoints(service, service.ports[0])
    assert (endpoint.identity, endpoint.mutual) == (("default", "default"), mutual)


def test_an_endpoint_without_an_address_is_behind_a_gateway_of_its_network() -> None:
    text = """
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: far}
spec:
  hosts: [far.example]
  ports: [{number: 80, name: http, protocol: HTTP}]
  resolution: STATIC
  endpoints: [{network: elsewhere}, {address: 10.0.0.1, network: elsewhere}]
"""
    read = documents_in(text, "mesh.yaml")
    assert [problem.message for problem in read.problems] == ["no address in network elsewhere"]
    known = build_registry(read.documents)
    (service,) = known.services["far.example"]
    assert [one.address for one in known.endpoints(service, service.ports[0])] == ["10.0.0.1"]


def entry(name: str, port: str, more: str = "resolution: STATIC", labels: str = "") -> str:
    return (
        "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\n"
        f"metadata: {{name: {name}, labels: {{{labels}}}}}\n"
        f"spec: {{hosts: [x.test], ports: [{{protocol: HTTP, {port}}}], {more}}}\n"
    )


def at(address: str, more: str = "resolution: STATIC") -> str:
    return f"{more}, endpoints: [{{address: {address}}}]"


def by_port(known: Registry, host: str = "x.test") -> list[dict[int, list[str]]]:
    """Of each service of the host: its ports, and the addresses behind them."""
    return [
        {port.number: [e.address for e in known.endpoints(service, port)] for port in service.ports}
        for service in known.services[host]
    ]


def test_entries_of_one_host_and_namespace_are_one_service() -> None:
    known = registry(
        entry("a", "number: 80, name: http", at("10.0.0.1"))
        + entry("b", "number: 81, name: http-b", at("10.0.0.2"))
        + entry("c", "number: 80, name: http", at("10.0.0.3"))
    )
    assert by_port(known) == [{80: ["10.0.0.1", "10.0.0.3"], 81: ["10.0.0.2"]}]
    (service,) = known.services["x.test"]
    assert [service.source(number).name for number in (80, 81, 82)] == ["a", "b", "a"]


def test_endpoints_belong_to_ports_by_name() -> None:
    known = registry(
        entry("a", "number: 80, name: http", at("10.0.0.1"))
        + entry("b", "number: 81, name: http", at("10.0.0.2"))
    )
    assert by_port(known) == [{80: ["10.0.0.1", "10.0.0.2"], 81: ["10.0.0.1", "10.0.0.2"]}]


@pytest.mark.parametrize(
    ("more", "labels"),
    [
        ("resolution: DNS", ""),
        ("resolution: STATIC", "team: b"),
        ("resolution: STATIC, exportTo: ['.']", ""),
    ],
)
def test_entries_that_are_not_alike_stay_apart_but_for_their_endpoints(more: str, labels: str) -> None:
    first, second = "number: 80, name: http", "number: 81, name: http"
    known = registry(entry("a", first, at("10.0.0.1")) + entry("b", second, at("10.0.0.2", more), labels))
    both = ["10.0.0.1", "10.0.0.2"]
    assert by_port(known) == [{80: both}, {81: both}]


def test_names_are_no_endpoints_of_a_service_with_addresses() -> None:
    first, second = "number: 80, name: http", "number: 80, name: http"
    known = registry(entry("a", first, at("10.0.0.1")) + entry("b", second, at("b.test", "resolution: DNS")))
    assert by_port(known) == [{80: ["10.0.0.1"]}, {80: ["10.0.0.1", "b.test"]}]


def test_entries_of_other_namespaces_are_other_services() -> None:
    other = entry("b", "number: 81, name: http", at("10.0.0.2")).replace("name: b,", "name: b, namespace: b,")
    known = registry(entry("a", "number: 80, name: http", at("10.0.0.1")) + other)
    assert by_port(known) == [{80: ["10.0.0.1"]}, {81: ["10.0.0.2"]}]


def test_an_entry_adds_endpoints_to_a_service_of_kubernetes() -> None:
    host = "reviews.default.svc.cluster.local"
    more = entry("a", "number: 81, name: http", at("10.0.0.2")).replace("x.test", host)
    known = registry(REVIEWS % "8080" + more, server("10.0.0.1", {}))
    assert by_port(known, host)[0] == {80: ["10.0.0.1", "10.0.0.2"]}
    assert [e.port for e in known.endpoints(known.services[host][0], known.services[host][0].ports[0])] == [
        8080,
        81,
    ]
