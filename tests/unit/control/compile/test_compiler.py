"""What compilers share, and what makes them compile anew."""

from meshlib.control.build import Builder
from meshlib.control.registration import Registration
from meshlib.control.sources.source import MemorySource
from meshlib.dataplane.decode.routes import decode_routes
from meshlib.xds.kinds import Kind
from meshlib.xds.node import Client, Flavour
from meshlib.xds.snapshot import Resource, Snapshot

SERVICE = """
apiVersion: v1
kind: Service
metadata: {name: %s}
spec: {selector: {app: %s}, ports: [{name: http, port: 80}]}
---"""
RULES = """
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews}
spec:
  hosts: [reviews]
  http: [{timeout: %s, route: [{destination: {host: %s}}]}]
"""
CLIENT = Client(Flavour.MESHLIB)
ASKED = frozenset(("reviews:80", "ratings:80"))
SERVICES = SERVICE % ("reviews", "reviews") + SERVICE % ("ratings", "ratings")


def server(app: str, address: str) -> Registration:
    return Registration(address, "default", "default", (("app", app),), address, (("http", 8080),))


def changed(before: tuple[Resource, ...], after: tuple[Resource, ...]) -> list[tuple[str, str]]:
    kept = {id(resource) for resource in before}
    return sorted((r.kind.short, r.name) for r in after if id(r) not in kept)


def test_an_edit_compiles_only_what_it_touches() -> None:
    source, builder = MemorySource(SERVICES + RULES % ("1s", "reviews")), Builder()
    first = builder(source.load(), (), "1").compiler.resources(CLIENT, ASKED)
    source.put(SERVICES + RULES % ("2s", "reviews"))
    second = builder(source.load(), (), "2").compiler.resources(CLIENT, ASKED)
    routes = "outbound|80||reviews.default.svc.cluster.local"
    assert changed(tuple(first), tuple(second)) == [("RDS", routes)]


def test_a_server_that_joins_changes_its_endpoints_alone() -> None:
    source, builder = MemorySource(SERVICES), Builder()
    first = builder(source.load(), (server("reviews", "10.0.0.1"),), "1").compiler.resources(CLIENT, ASKED)
    servers = (server("reviews", "10.0.0.1"), server("ratings", "10.0.0.2"))
    second = builder(source.load(), servers, "2").compiler.resources(CLIENT, ASKED)
    assert changed(tuple(first), tuple(second)) == [("EDS", "outbound|80||ratings.default.svc.cluster.local")]


def test_routes_follow_a_destination_that_appears() -> None:
    text = SERVICES + RULES % ("1s", "late")
    source, builder = MemorySource(text), Builder()
    asked = frozenset(("reviews:80",))
    builder(source.load(), (), "1").compiler.resources(CLIENT, asked)
    source.put(text + "---" + (SERVICE % ("late", "late")).replace("port: 80", "port: 8123"))
    compiled = builder(source.load(), (), "2").compiler.resources(CLIENT, asked)
    found = Snapshot.of("2", compiled).names(Kind.CLUSTER)
    assert found == {"outbound|8123||late.default.svc.cluster.local"}


def test_publishing_without_a_client_in_between_forgets_nothing() -> None:
    source, builder = MemorySource(SERVICES), Builder()
    first = builder(source.load(), (), "1").compiler.resources(CLIENT, ASKED)
    builder(source.load(), (), "2")
    third = builder(source.load(), (), "3").compiler.resources(CLIENT, ASKED)
    assert changed(tuple(first), tuple(third)) == []


def test_clients_of_other_namespaces_share_nothing_that_differs() -> None:
    compiler = Builder()(MemorySource(SERVICES).load(), (), "1").compiler
    own = Snapshot.of("1", compiler.resources(CLIENT, frozenset(("reviews:80",))))
    other = Client(Flavour.MESHLIB, namespace="other")
    theirs = Snapshot.of("1", compiler.resources(other, frozenset(("reviews.default:80",))))
    name = "outbound|80||reviews.default.svc.cluster.local"
    mine, yours = own.get(Kind.ROUTES, name), theirs.get(Kind.ROUTES, name)
    assert mine is not None
    assert yours is not None
    assert "reviews" in mine.message().virtual_hosts[0].domains
    assert "reviews" not in yours.message().virtual_hosts[0].domains


def test_clients_that_end_calls_early_share_no_time_out_with_others() -> None:
    compiler = Builder()(MemorySource(SERVICES + RULES % ("1s", "reviews")).load(), (), "1").compiler
    found = []
    for client in (Client(Flavour.GRPC, hasty=True), Client(Flavour.GRPC)):
        resources = compiler.resources(client, frozenset(("reviews:80",)))
        (routes,) = (each.message() for each in resources if each.kind is Kind.ROUTES)
        found.append(routes.virtual_hosts[0].routes[0].route.max_stream_duration.max_stream_duration.seconds)
    assert found == [3, 1]


def test_odd_names_are_answered_and_never_fail() -> None:
    compiler = Builder()(MemorySource(SERVICES).load(), (), "1").compiler
    odd = frozenset(("", ":", "a:b:c", "[::1]:80", "reviews", "reviews:99999", "*:80", "|", "reviews:80:80"))
    for flavour in (Flavour.MESHLIB, Flavour.GRPC):
        snapshot = Snapshot.of("1", compiler.resources(Client(flavour), odd))
        assert snapshot.names(Kind.LISTENER) == odd
        for resource in snapshot:
            if resource.kind is Kind.ROUTES:
                decode_routes(resource.message())


def test_a_gateway_is_sent_nothing() -> None:
    compiler = Builder()(MemorySource(SERVICES).load(), (), "1").compiler
    assert list(compiler.resources(Client(Flavour.GATEWAY), frozenset())) == []
