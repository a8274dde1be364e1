"""What a node is sent as a whole: names, and what is made anew when."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from support.mesh_cases import SERVER, MeshCase, mesh_cases, server

from meshlib.control.compile.bounds import HELD_BYTES
from meshlib.control.compile.compiler import GraphCompiler
from meshlib.control.graph import build_graph
from meshlib.control.registration import Place, Registration
from meshlib.control.sources.text import documents_in
from meshlib.xds import pb
from meshlib.xds.kinds import Kind
from meshlib.xds.names import MUTUAL, SDS_CLUSTER, TLS_MODE_LABEL, TUNNEL_HTTP, TUNNEL_LABEL
from meshlib.xds.node import Client, Flavour
from meshlib.xds.snapshot import Resource

VM1 = Client(Flavour.NODE, namespace="meshlib-node", service_account="vm1", node="vm1")
ROOTS = b"-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n"
CASES = list({case.text: case for case in mesh_cases()}.values())
NAMING = frozenset(("cluster", "cluster_name", "service_name", "route_config_name", "server_listener_name"))
"""Fields whose text is the name of a resource."""
LABELS = ((TLS_MODE_LABEL, MUTUAL), (TUNNEL_LABEL, TUNNEL_HTTP), ("app", "web"))
WEB = Registration(
    "a", "default", "web", LABELS, "10.0.0.5", (("http", 80),), node="vm1", place=Place("web", "/run/netns/w")
)
SERVICES = """
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: other}
spec: {selector: {app: other}, ports: [{name: http, port: 80}]}
"""


DOCUMENTS = build_graph(documents_in(SERVICES, "a.yaml").documents)
"""As in a control service: servers come and go, documents stay."""


def compiled(*registrations: Registration, before: GraphCompiler | None = None) -> GraphCompiler:
    """A compiler that was asked by vm1."""
    made = GraphCompiler(DOCUMENTS.with_registrations(registrations), "1", before, ROOTS)
    made.resources(VM1)
    return made


def names(compiler: GraphCompiler, kind: Kind) -> set[str]:
    return {one.name for one in compiler.resources(VM1) if one.kind is kind}


def named(message: Any) -> Iterator[str]:
    """The names of resources in a message, whatever is packed in it."""
    for field, value in message.ListFields():
        several = value if field.is_repeated else [value]
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            several = value.values() if hasattr(next(iter(value.values())), "ListFields") else []
        for one in several:
            if isinstance(one, str):
                if field.name in NAMING:
                    yield one
            elif hasattr(one, "ListFields"):
                packed = one.DESCRIPTOR.full_name == "google.protobuf.Any"
                yield from named(pb.unpack(one) if packed else one)


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_all_that_is_named_is_the_workloads_own(case: MeshCase) -> None:
    places = (Place("a", "/run/netns/a"), Place("b", proxy_port=15080))
    words = [*SERVER.findall(case.text), "labels=app=x address=10.9.0.1", "labels=app=y address=10.9.0.2"]
    found = [server(number, each) for number, each in enumerate(words)]
    servers = [replace(one, node="vm1", place=each) for one, each in zip(found, places, strict=False)]
    documents = documents_in(case.text, "a.yaml").documents
    made = GraphCompiler(build_graph(documents, [*servers, *found[2:]]), "1", roots_pem=ROOTS)
    resources = made.resources(VM1)
    for one in resources:
        if one.kind in (Kind.SECRET, Kind.RUNTIME):
            continue
        uid, slash, _ = one.name.partition("/")
        assert (uid in ("a", "b"), slash) == (True, "/"), one.name
        foreign = [name for name in named(one.message()) if not name.startswith(f"{uid}/")]
        assert set(foreign) <= {SDS_CLUSTER}, one.name


def test_it_is_sent_its_own_workloads_and_no_others() -> None:
    elsewhere = replace(WEB, id="b", node="vm2", place=Place("else", "/run/netns/e"))
    made = compiled(WEB, elsewhere)
    assert {name.partition("/")[0] for name in names(made, Kind.LISTENER)} == {"web"}
    assert made.resources(replace(VM1, node="vm3")) == made.resources(replace(VM1, node=""))
    nobody = made.resources(replace(VM1, node="vm3"))
    assert [one.kind for one in nobody] == [Kind.RUNTIME, Kind.SECRET]


def test_who_joins_costs_endpoints() -> None:
    first = compiled(WEB)
    again = compiled(WEB, before=first)
    assert again.memo.made == 0
    other = Registration("o", "default", "other", (("app", "other"),), "10.0.0.7", (("http", 80),))
    joined = compiled(WEB, other, before=again)
    assert differing(first, joined) == {
        (Kind.CLUSTER, "web/outbound|80||other.default.svc.cluster.local"),  # its accounts
        (Kind.ENDPOINTS, "web/outbound|80||other.default.svc.cluster.local"),
    }


def differing(one: GraphCompiler, other: GraphCompiler) -> set[tuple[Kind, str]]:
    def versions(compiler: GraphCompiler) -> set[Resource]:
        return set(compiler.resources(VM1))

    return {(each.kind, each.name) for each in versions(one) ^ versions(other)}


RULES = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: p}
spec: {action: DENY, selector: {matchLabels: {app: web}}, rules: [{to: [{operation: {methods: [PUT]}}]}]}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: p}
spec: {mtls: {mode: STRICT}}
"""


def test_rules_change_chains_and_nothing_else_of_a_listener() -> None:
    """An Envoy ends the connections of a listener in time of which anything else changes."""
    ruled = build_graph(documents_in(f"{SERVICES}---{RULES}", "a.yaml").documents, [WEB])
    after = {(one.kind, one.name): one for one in GraphCompiler(ruled, "2", None, ROOTS).resources(VM1)}
    changed = [one for one in compiled(WEB).resources(VM1) if after[one.kind, one.name] != one]
    assert {one.name for one in changed} == {
        "web/hbone",
        "web/inbound",
        "web/inbound|80||",
        "web/tunnelled",
        "web/tunnelled|80||",
    }
    for one in changed:
        if one.kind is Kind.LISTENER:
            then, now = one.message(), after[one.kind, one.name].message()
            del then.filter_chains[:], now.filter_chains[:]
            assert then == now, one.name


PORTS = (
    ("tls", 8443),
    ("https", 443),
    ("any", 7000),
    ("tcp", 3307),
    ("http", 8080),
    ("x", 80),
    ("tls-x", 80),
)
ADDED = """
apiVersion: v1
kind: Service
metadata: {name: added}
spec: {selector: {app: added}, clusterIP: 10.0.9.9, ports: [{PORT}]}
"""
MODES = """
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: p}
spec: {selector: {matchLabels: {app: web}}, mtls: {mode: PERMISSIVE}, portLevelMtls: {PORTS}}
"""


@pytest.mark.parametrize(
    "added",
    [
        *(ADDED.replace("{PORT}", f"{{name: {name}, port: {port}}}") for name, port in PORTS),
        ADDED.replace("{PORT}", "{name: tls, port: 8443}, {name: x, port: 80}"),
        MODES.replace("{PORTS}", "{8080: {mode: STRICT}}"),
        MODES.replace("{PORTS}", "{80: {mode: DISABLE}}"),
    ],
)
def test_who_joins_the_mesh_changes_no_more_than_chains(added: str) -> None:
    """An Envoy ends all connections of a listener of which anything else changes."""

    def listeners(text: str) -> dict[str, Any]:
        graph = build_graph(documents_in(text, "a.yaml").documents, [WEB])
        found = {}
        for one in GraphCompiler(graph, "1", None, ROOTS).resources(VM1):
            if one.kind is Kind.LISTENER and one.name != "web/dns":
                found[one.name] = one.message()
                del found[one.name].filter_chains[:]
        return found

    before, after = listeners(SERVICES), listeners(f"{SERVICES}---{added}")
    assert {name: after[name] for name in before} == before


def test_connections_that_are_looked_into_are_so_inside() -> None:
    text = ADDED.replace("{PORT}", "{name: tls, port: 8443}, {name: tcp, port: 3307}, {name: x, port: 7000}")
    graph = build_graph(documents_in(text, "a.yaml").documents, [WEB])
    found = {one.name: one for one in GraphCompiler(graph, "1", None, ROOTS).resources(VM1)}
    outbound = found["web/outbound"].message()
    # Nobody waits there: servers of other ports may speak first.
    assert [one.name for one in outbound.listener_filters] == ["envoy.filters.listener.original_dst"]
    for port, filters in ((8443, ["tls"]), (7000, ["tls", "http"])):
        name = f"web/inspected|{port}"
        inside = next(
            one.message()
            for one in GraphCompiler(graph, "1", None, ROOTS).resources(VM1)
            if one.name == name and one.kind is Kind.LISTENER
        )
        assert [one.name.rpartition(".")[2] for one in inside.listener_filters] == [
            "original_dst",
            *(f"{one}_inspector" for one in filters),
        ]
        assert {one.filter_chain_match.destination_port.value for one in inside.filter_chains} == {port}
        assert inside.default_filter_chain.name == outbound.default_filter_chain.name
    assert "web/inspected|3307" not in found


def test_secrets_have_the_names_of_identities() -> None:
    clusters = {one.name: one.message() for one in compiled(WEB).resources(VM1) if one.kind is Kind.CLUSTER}
    context = pb.unpack(clusters["web/hbone"].transport_socket.typed_config)
    (shown,) = context.common_tls_context.tls_certificate_sds_secret_configs
    assert shown.name == "spiffe://cluster.local/ns/default/sa/web"


def test_the_runtime_says_how_many_connections_there_may_be() -> None:
    explicit = replace(WEB, id="b", place=Place("other", proxy_port=15080))
    made = compiled(WEB, explicit)

    def layer(most: int) -> dict[str, float]:
        (found,) = (
            one for one in made.resources(replace(VM1, max_connections=most)) if one.kind is Kind.RUNTIME
        )
        assert found.name == "bounds"
        return dict(found.message().layer)

    assert layer(7) == {
        **{f"envoy.resource_limits.listener.web/{one}.connection_limit": 7 for one in LISTENERS},
        "circuit_breakers.web/tunnelled.default.max_connections": 7,
        "circuit_breakers.web/tunnelled.default.max_pending_requests": 7,
        "envoy.resource_limits.listener.other/inbound.connection_limit": 7,
        "envoy.resource_limits.listener.other/proxy.connection_limit": 7,
    }
    assert {f"web/{one}" for one in LISTENERS} <= names(made, Kind.LISTENER)
    assert layer(0) == {}


LISTENERS = ("outbound", "inbound", "hbone")


def test_what_is_held_of_a_connection_is_bounded() -> None:
    kinds = (Kind.LISTENER, Kind.CLUSTER)
    made = [one.message() for one in compiled(WEB).resources(VM1) if one.kind in kinds]
    unbounded = [one.name for one in made if one.per_connection_buffer_limit_bytes.value != HELD_BYTES]
    assert unbounded == ["web/dns"]
    for one in made:
        for manager in managers(one):
            assert manager.http2_protocol_options.initial_stream_window_size.value == HELD_BYTES, one.name


def managers(message: Any) -> Iterator[Any]:
    for chain in getattr(message, "filter_chains", ()):
        for each in chain.filters:
            found = pb.unpack(each.typed_config)
            if isinstance(found, pb.HttpConnectionManager):
                yield found
