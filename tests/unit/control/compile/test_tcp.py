"""Whose rules of connections hold, beside those of requests, and what is left out of them."""

from typing import Any

from meshlib.control.compile.compiler import GraphCompiler
from meshlib.control.compile.tcp import clusters_in
from meshlib.control.graph import build_graph
from meshlib.control.sources.text import documents_in
from meshlib.xds import pb
from meshlib.xds.kinds import Kind
from meshlib.xds.node import Client, Flavour

SERVICE = """
apiVersion: v1
kind: Service
metadata: {name: db}
spec: {ports: [{name: p, port: 7000}]}
"""
ENTRY = """
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: any}
spec: {hosts: ['*.example'], resolution: NONE, ports: [{number: 7000, name: p, protocol: TLS}]}
"""


def virtual(name: str, rules: str, host: str = "db", created: str = "", more: str = "") -> str:
    age = f", creationTimestamp: {created}" if created else ""
    return f"""
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: {name}{age}}}
spec: {{hosts: ['{host}'], {more} {rules}}}
"""


def rule(kind: str, to: str, match: str = "") -> str:
    return f"{kind}: [{{{match} route: [{{destination: {{host: {to}.example}}}}]}}]"


def compiled(*documents: str, ask: str = "db:7000", namespace: str = "default") -> tuple[Any, list[str]]:
    """The listener, and the clusters to which requests go."""
    read = documents_in("---".join(documents), "in.yaml")
    compiler = GraphCompiler(build_graph(read.documents), "1")
    found = compiler.resources(Client(Flavour.MESHLIB, namespace=namespace), frozenset([ask]))
    (listener,) = [one.message() for one in found if one.kind is Kind.LISTENER]
    (routes,) = [one.message() for one in found if one.kind is Kind.ROUTES]
    return listener, [route.route.cluster for host in routes.virtual_hosts for route in host.routes]


def led(listener: Any) -> list[str]:
    return [name.split("|")[-1] for name in clusters_in(listener)]


def test_rules_of_the_two_kinds_are_looked_for_apart() -> None:
    tcp = virtual("tcp", rule("tcp", "t"), created="2025-01-01T00:00:00Z")
    http = virtual("http", rule("http", "h"), created="2026-01-01T00:00:00Z")
    for documents in ((SERVICE, tcp, http), (SERVICE, tcp.replace("2025", "2027"), http)):
        listener, requests = compiled(*documents)
        assert led(listener) == ["t.example"]
        assert requests == ["outbound|7000||h.example"]


def test_the_oldest_visible_one_of_the_closest_host_holds() -> None:
    wide = virtual(
        "wide", rule("tcp", "w"), host="*.default.svc.cluster.local", created="2020-01-01T00:00:00Z"
    )
    old = virtual("old", rule("tcp", "o"), created="2025-01-01T00:00:00Z")
    new = virtual("new", rule("tcp", "n"), created="2026-01-01T00:00:00Z")
    assert led(compiled(SERVICE, wide, new, old)[0]) == ["o.example"]
    assert led(compiled(SERVICE, wide)[0]) == ["w.example"]
    hidden = old.replace("spec: {", "spec: {exportTo: ['elsewhere'], ")
    assert led(compiled(SERVICE, wide, new, hidden)[0]) == ["n.example"]


def test_rules_for_gateways_alone_hold_for_nobody_here() -> None:
    edge = virtual("edge", rule("tcp", "t"), more="gateways: [edge],")
    assert led(compiled(SERVICE, edge)[0]) == ["db.default.svc.cluster.local"]
    narrow = rule("tcp", "t", "match: [{gateways: [mesh]}],")
    only = virtual("both", narrow, more="gateways: [edge],")
    assert led(compiled(SERVICE, only)[0]) == ["db.default.svc.cluster.local"]
    both = virtual("both", narrow, more="gateways: [edge, mesh],")
    assert led(compiled(SERVICE, both)[0]) == ["t.example"]


def test_what_a_rule_before_has_taken_is_left_out_and_told() -> None:
    asked = ("[a.example, b.example]", "[b.example]", "[b.example, c.example]")
    match = ", ".join(f"{{sniHosts: {names}}}" for names in asked)
    rules = virtual("v", rule("tls", "t", f"match: [{match}],"), host="*.example")
    listener, _ = compiled(ENTRY, rules, ask="x.example:7000")
    names = [list(chain.filter_chain_match.server_names) for chain in listener.filter_chains[1:]]
    assert names == [["a.example", "b.example"], ["c.example"]]
    told = pb.to_dict(listener)["metadata"]["filter_metadata"]["meshlib"]["skipped"]
    assert [one["reason"] for one in told] == ["rules before it take all that it asks for"]


def test_a_star_is_any_name_and_leaves_no_default() -> None:
    star = virtual("v", rule("tls", "t", "match: [{sniHosts: ['*.example']}],"), host="*.example")
    assert led(compiled(ENTRY, star, ask="x.example:7000")[0]) == ["t.example", "PassthroughCluster"]
