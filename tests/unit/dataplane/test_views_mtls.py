"""Views with TLS: who trusts the mesh's roots waits for them; a served port's policy is whole."""

import pytest

from meshlib.bootstrap import bootstrap
from meshlib.control.compile.compiler import GraphCompiler
from meshlib.control.graph import build_graph
from meshlib.control.registration import Registration
from meshlib.control.sources.text import documents_in
from meshlib.core.mtls import InboundMode
from meshlib.dataplane.ads import decoders
from meshlib.dataplane.mesh import Mesh
from meshlib.dataplane.targets import Targets
from meshlib.dataplane.views import Views
from meshlib.errors import ControlUnavailable
from meshlib.xds.kinds import Kind
from meshlib.xds.names import ROOTS_SECRET, TLS_MODE_LABEL, inbound_listener
from meshlib.xds.node import Client, Flavour
from meshlib.xds.snapshot import Resource

ROOTS = b"-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n"
OTHER = ROOTS.replace(b"MAA", b"MBB")
SERVED = inbound_listener(9080)
CALLED = "reviews:80"
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
SERVER = Registration(
    "r", "default", "reviews", (("app", "reviews"), (TLS_MODE_LABEL, "istio")), "10.0.0.1", (("http", 80),)
)


def compiled(mode: str = "STRICT", roots: bytes = ROOTS) -> dict[Kind, dict[str, Resource]]:
    graph = build_graph(documents_in(MESH % mode, "in.yaml").documents, [SERVER])
    compiler = GraphCompiler(graph, "1.1", roots_pem=roots)
    found: dict[Kind, dict[str, Resource]] = {kind: {} for kind in Kind}
    for one in compiler.resources(Client(Flavour.MESHLIB), [CALLED, SERVED]):
        found[one.kind][one.name] = one
    return found


def views_of(*wanted: str) -> Views:
    views = Views(decoders())
    views.want(wanted)
    return views


def give(views: Views, found: dict[Kind, dict[str, Resource]], *kinds: Kind, version: str = "1.1") -> None:
    for kind in kinds:
        assert views.apply(kind, version, found[kind]) == {}


ALL = (Kind.CLUSTER, Kind.ENDPOINTS, Kind.LISTENER, Kind.ROUTES)


def test_a_target_over_mutual_tls_waits_for_the_roots() -> None:
    views = views_of(CALLED)
    found = compiled()
    found[Kind.LISTENER].pop(SERVED)
    assert views.needs()[Kind.SECRET] == set()
    give(views, found, Kind.LISTENER, Kind.ROUTES, Kind.CLUSTER, Kind.ENDPOINTS)
    assert views.needs()[Kind.SECRET] == {ROOTS_SECRET}
    assert views.targets == {}
    give(views, found, Kind.SECRET)
    assert views.targets[CALLED].table is not None
    assert views.view.roots_pem == ROOTS
    (cluster,) = views.view.clusters.values()
    assert [transport.name for transport in cluster.transports] == ["tlsMode-istio", "tlsMode-disabled"]
    assert kinds_kept(views, CALLED) == {*ALL, Kind.SECRET}


def kinds_kept(views: Views, target: str) -> set[Kind]:
    kept = views.kept(target)
    return set() if kept is None else {one.kind for one in kept.resources}


def test_roots_that_are_known_to_be_missing_hold_nothing_back() -> None:
    views = views_of(CALLED)
    found = compiled()
    found[Kind.LISTENER].pop(SERVED)
    give(views, found, Kind.LISTENER, Kind.ROUTES, Kind.CLUSTER, Kind.ENDPOINTS)
    views.apply(Kind.SECRET, "1.1", {}, [ROOTS_SECRET])
    assert views.targets[CALLED].table is not None
    assert views.view.roots_pem == b""


def test_other_roots_are_in_the_next_view() -> None:
    views = views_of(CALLED)
    found = compiled()
    found[Kind.LISTENER].pop(SERVED)
    give(views, found, Kind.LISTENER, Kind.ROUTES, Kind.CLUSTER, Kind.ENDPOINTS, Kind.SECRET)
    give(views, compiled(roots=OTHER), Kind.SECRET, version="1.2")
    assert (views.view.version, views.view.roots_pem) == ("1.2", OTHER)


def test_a_mesh_without_certificates_asks_for_no_roots() -> None:
    views = views_of(CALLED)
    found = compiled("PERMISSIVE", roots=b"")
    found[Kind.LISTENER].pop(SERVED)
    give(views, found, Kind.LISTENER, Kind.ROUTES, Kind.CLUSTER, Kind.ENDPOINTS)
    assert views.needs()[Kind.SECRET] == set()
    assert views.targets[CALLED].table is not None


def only(found: dict[Kind, dict[str, Resource]]) -> dict[Kind, dict[str, Resource]]:
    return {**found, Kind.LISTENER: {SERVED: found[Kind.LISTENER][SERVED]}}


def test_a_served_ports_policy_follows_its_document() -> None:
    views = views_of(SERVED)
    give(views, only(compiled("STRICT")), Kind.LISTENER)
    assert views.targets == {}
    assert views.missing(SERVED) == {"the mesh's roots"}
    assert views.needs()[Kind.SECRET] == {ROOTS_SECRET}
    give(views, compiled(), Kind.SECRET)
    assert views.view.inbound[SERVED].tls.mode is InboundMode.STRICT
    assert views.targets[SERVED].inbound is views.view.inbound[SERVED]
    assert kinds_kept(views, SERVED) == {Kind.LISTENER, Kind.SECRET}
    give(views, only(compiled("DISABLE")), Kind.LISTENER)
    assert views.view.inbound[SERVED].tls.mode is InboundMode.DISABLE
    assert views.needs()[Kind.SECRET] == set()


def test_a_policy_that_is_refused_leaves_the_one_before() -> None:
    views = views_of(SERVED)
    give(views, only(compiled("DISABLE")), Kind.LISTENER)
    before = views.view.inbound[SERVED]
    broken = Resource(Kind.LISTENER, SERVED, "x", b"\xff")
    assert views.apply(Kind.LISTENER, "1.2", {SERVED: broken}).keys() == {SERVED}
    assert views.view.inbound[SERVED] is before


def test_a_first_policy_that_is_refused_fails_its_target() -> None:
    views = views_of(SERVED)
    views.apply(Kind.LISTENER, "1.2", {SERVED: Resource(Kind.LISTENER, SERVED, "x", b"\xff")})
    assert views.targets[SERVED].failed is not None
    assert views.view.inbound == {}


def test_a_served_port_is_never_idle_nor_too_many() -> None:
    targets = Targets(bootstrap({}, idle_targets=10, max_targets=1), 0.0)
    assert targets.wait("a:80", 0.0) == ([], ["a:80"])
    assert targets.wait(SERVED, 0.0) == ([], [SERVED])
    assert targets.leave(SERVED, 0.0) == ([], [])
    assert targets.leave("a:80", 0.0) == ([], [])
    assert targets.wait("b:80", 1.0) == (["a:80"], ["b:80"])
    assert targets.leave("b:80", 1.0) == ([], [])
    assert targets.idle(1000.0) == ["b:80"]
    assert targets.idle(5000.0) == []


class Source:
    """Answers at once with what is compiled."""

    connected, since, failure = True, 0.0, ""

    def __init__(self, _settings: object, _client: object, views: Views, _changed: object) -> None:
        self.views = views
        self.from_disk: set[str] = set()
        self.found = only(compiled())

    def want(self, name: str) -> None:
        self.views.want((name,))
        known = self.found[Kind.LISTENER].get(name)
        listeners = {name: known} if known is not None else {}
        missing = [] if listeners else [name]
        self.views.apply(Kind.LISTENER, "1.1", listeners, missing)
        self.views.apply(Kind.SECRET, "1.1", self.found[Kind.SECRET])

    def done(self, _name: str) -> None:
        pass

    def touch(self, _name: str) -> None:
        pass

    def load(self, name: str) -> bool:
        return name in self.views.targets

    def lacking(self, name: str) -> str:
        return f"the disk lacks {name}"

    close = before_fork = after_fork_in_parent = lambda self: None

    def after_fork_in_child(self, _node: object) -> None:
        pass


async def test_a_mesh_is_asked_for_a_ports_policy() -> None:
    with Mesh(bootstrap({}), Source) as mesh:
        assert SERVED not in mesh.view.inbound
        assert mesh.prepare_inbound(9080) is mesh.view.inbound[SERVED]
        assert mesh.view.inbound[SERVED].tls.mode is InboundMode.STRICT
        assert await mesh.aprepare_inbound(9080) is mesh.view.inbound[SERVED]
        with pytest.raises(ControlUnavailable, match="has no policy for port 9081"):
            mesh.prepare_inbound(9081)
