"""Which of a cluster's transports is an endpoint's."""

from dataclasses import replace

from meshlib.core.balance.cluster import Cluster
from meshlib.core.balance.endpoints import Endpoint
from meshlib.core.mtls import ClientTls, Transport, secure

ISTIO = frozenset({("tlsMode", "istio")})
MUTUAL = ClientTls(sni="outbound_.80_._a.b.svc.cluster.local")
SIMPLE = ClientTls(mesh_identity=False)


def cluster(*transports: Transport, tls: ClientTls | None = None) -> Cluster:
    return Cluster("c", "c", transports=transports, tls=tls)


def test_the_first_transport_that_fits_is_the_endpoints() -> None:
    auto = cluster(Transport("tlsMode-istio", ISTIO, MUTUAL), Transport("tlsMode-disabled"), tls=SIMPLE)
    assert secure(auto, Endpoint("1.1.1.1", 80, transport=ISTIO)) is MUTUAL
    more = ISTIO | {("other", "x")}
    assert secure(auto, Endpoint("1.1.1.1", 80, transport=more)) is MUTUAL
    assert secure(auto, Endpoint("1.1.1.2", 80)) is None
    assert secure(auto, Endpoint("1.1.1.2", 80, transport=frozenset({("tlsMode", "disabled")}))) is None


def test_all_criteria_must_be_met() -> None:
    both = cluster(Transport("x", ISTIO | {("other", "x")}, MUTUAL), tls=SIMPLE)
    assert secure(both, Endpoint("1.1.1.1", 80, transport=ISTIO)) is SIMPLE


def test_without_transports_the_clusters_own_is_everybodys() -> None:
    assert secure(cluster(tls=SIMPLE), Endpoint("1.1.1.1", 80, transport=ISTIO)) is SIMPLE
    assert secure(cluster(), Endpoint("1.1.1.1", 80, transport=ISTIO)) is None


def test_policies_that_ask_the_same_are_one_key() -> None:
    same = replace(ClientTls(sni="x"), sni=MUTUAL.sni)
    assert (same, hash(same)) == (MUTUAL, hash(MUTUAL))
    assert len({MUTUAL, same, SIMPLE, replace(MUTUAL, alpn=("istio",))}) == 3
