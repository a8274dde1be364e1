"""What a change of policy, of servers or of the roots makes anew."""

from meshlib.control.compile.compiler import GraphCompiler
from meshlib.control.graph import build_graph
from meshlib.control.registration import Registration
from meshlib.control.sources.text import documents_in
from meshlib.xds import pb
from meshlib.xds.kinds import Kind
from meshlib.xds.names import TLS_MODE_LABEL, TRANSPORT_SOCKET_MATCH, cluster_name
from meshlib.xds.node import Client, Flavour
from meshlib.xds.snapshot import Resource

ROOTS = b"-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n"
NAME = cluster_name(80, "", "reviews.default.svc.cluster.local")
MESH = """
apiVersion: v1
kind: Service
metadata: {name: reviews}
spec:
  selector: {app: reviews}
  ports: [{name: http, port: 80}]
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: peers}
spec: {mtls: {mode: %s}}
"""


def server(account: str) -> Registration:
    labels = (("app", "reviews"), (TLS_MODE_LABEL, "istio"))
    return Registration(account, "default", account, labels, f"10.0.0.{len(account)}", (("http", 80),))


def compiler(
    mode: str, *accounts: str, roots: bytes = ROOTS, before: GraphCompiler | None = None
) -> GraphCompiler:
    graph = build_graph(documents_in(MESH % mode, "in.yaml").documents, [server(name) for name in accounts])
    return GraphCompiler(graph, "1", before=before, roots_pem=roots)


def found(of: GraphCompiler, kind: Kind = Kind.CLUSTER) -> Resource:
    return {(r.kind, r.name): r for r in of.resources(Client(Flavour.MESHLIB), ["reviews:80"])}[kind, NAME]


def names(resource: Resource) -> list[str]:
    context = pb.unpack(resource.message().transport_socket_matches[0].transport_socket.typed_config)
    trusted = context.common_tls_context.combined_validation_context.default_validation_context
    return [matcher.exact.rpartition("/")[2] for matcher in trusted.match_subject_alt_names]


def test_another_account_is_another_name_and_the_rest_is_kept() -> None:
    first = compiler("STRICT", "a")
    assert names(found(first)) == ["a"]
    second = compiler("STRICT", "a", "bb", before=first)
    assert names(found(second)) == ["a", "bb"]
    third = compiler("STRICT", "a", "bb", before=second)
    assert found(third) is found(second)


def test_a_mode_changes_clusters_and_endpoints() -> None:
    first = compiler("STRICT", "a")
    second = compiler("PERMISSIVE", "a", before=first)
    assert [found(first, kind).body for kind in (Kind.CLUSTER, Kind.ENDPOINTS)] == [
        found(second, kind).body for kind in (Kind.CLUSTER, Kind.ENDPOINTS)
    ]
    third = compiler("DISABLE", "a", before=second)
    assert len(found(third).message().transport_socket_matches) == 0
    said = found(third, Kind.ENDPOINTS).message().endpoints[0].lb_endpoints[0].metadata.filter_metadata
    assert TRANSPORT_SOCKET_MATCH not in said


def test_with_the_first_roots_there_is_mutual_tls() -> None:
    first = compiler("STRICT", "a", roots=b"")
    assert len(found(first).message().transport_socket_matches) == 0
    second = compiler("STRICT", "a", before=first)
    assert len(found(second).message().transport_socket_matches) == 2


RULES = """---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: rule}
spec:
  host: reviews
  trafficPolicy:
    portLevelSettings:
    - port: {number: 80}
      tls: {mode: %s}
  subsets:
  - name: v1
    labels: {version: v1}
    trafficPolicy:
      tls: {mode: MUTUAL, clientCertificate: /c.pem, privateKey: /k.pem}
  - {name: v2, labels: {version: v2}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews}
spec:
  hosts: [reviews]
  http:
  - match: [{uri: {prefix: /1}}]
    route: [{destination: {host: reviews, subset: v1}}]
  - match: [{uri: {prefix: /2}}]
    route: [{destination: {host: reviews, subset: v2}}]
  - route: [{destination: {host: reviews}}]
"""


def test_where_grpc_is_asked_for_foreign_tls_it_finds_nobody_and_it_is_told() -> None:
    graph = build_graph(documents_in(MESH % "STRICT" + RULES % "SIMPLE", "in.yaml").documents, [server("a")])
    made, client, asked = GraphCompiler(graph, "1", roots_pem=ROOTS), Client(Flavour.GRPC), {"reviews:80"}
    endpoints = {
        r.name: r.message().endpoints for r in made.resources(client, asked) if r.kind is Kind.ENDPOINTS
    }
    assert {name.split("|")[2]: len(each) for name, each in endpoints.items()} == {"": 0, "v1": 0, "v2": 0}
    assert [(note.split("|")[2], note[note.index("(") :]) for note in made.notes(client, asked)] == [
        (subset, f"({where}) asks for TLS of mode {mode}, which gRPC's own clients can't speak")
        for subset, where, mode in (
            ("v1", "in.yaml:27", "MUTUAL"),
            ("v2", "in.yaml:19", "SIMPLE"),
            ("", "in.yaml:19", "SIMPLE"),
        )
    ]
    assert made.notes(client) == made.notes(Client(Flavour.MESHLIB), asked) == ()


def test_grpc_speaks_plain_text_where_it_is_asked_for() -> None:
    graph = build_graph(documents_in(MESH % "STRICT" + RULES % "DISABLE", "in.yaml").documents, [server("a")])
    made, client = GraphCompiler(graph, "1", roots_pem=ROOTS), Client(Flavour.GRPC)
    assert ["|v1|" in note for note in made.notes(client, {"reviews:80"})] == [True]
