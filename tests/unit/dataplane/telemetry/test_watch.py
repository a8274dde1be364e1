"""Who is told, and what is bound beforehand."""

from dataclasses import replace

import pytest
from support.telemetry import Told

from meshlib.bootstrap import bootstrap
from meshlib.core.actions import Facts
from meshlib.core.balance.cluster import Cluster
from meshlib.core.balance.endpoints import Endpoint, EndpointSet, LocalityEndpoints
from meshlib.core.mtls import ClientTls, SanMatch
from meshlib.core.request import Peer
from meshlib.core.view import View
from meshlib.dataplane.decode.telemetry import decode_service
from meshlib.dataplane.telemetry import watch
from meshlib.dataplane.telemetry.labels import NAMES
from meshlib.dataplane.telemetry.watch import Bound, Telemetry
from meshlib.errors import ConfigError
from meshlib.xds import pb

WHO = bootstrap({}, service="productpage", state_dir="")
OWN = "spiffe://cluster.local/ns/default/sa/productpage"
SERVER = "spiffe://cluster.local/ns/default/sa/reviews"
NAME = "outbound|9080||reviews.default.svc.cluster.local"
FACTS = Facts(cluster=NAME, endpoint="10.0.0.1:9080", attempts=1)
PEER = Peer(("10.0.0.7", 1), ("10.0.0.8", 9080), SERVER, "", True)


def endpoints(workload: str) -> EndpointSet:
    said = (("istio/workload", f"{workload};default;reviews;v1;Kubernetes"),)
    return EndpointSet((LocalityEndpoints("", 0, 1, (Endpoint("10.0.0.1", 9080, metadata=said),)),))


def view(workload: str = "reviews-v1", **cluster: object) -> View:
    made = replace(Cluster(NAME, NAME), **cluster)  # type: ignore[arg-type]
    return View("1", {}, {NAME: made}, {NAME: endpoints(workload)})


def labels(bound: Bound) -> dict[str, str]:
    return dict(zip(NAMES, bound.ends, strict=False))


def test_ends_are_bound_once_and_anew_when_the_endpoints_change() -> None:
    now = [view()]
    telemetry = Telemetry(WHO, lambda: now[0], lambda: OWN)
    first = telemetry.outbound_ends(FACTS, "reviews:9080")
    assert telemetry.outbound_ends(FACTS, "other:1") is not first  # the cluster does not say its service
    assert telemetry.outbound_ends(FACTS, "reviews:9080") is first
    now[0] = replace(now[0], version="2")
    assert telemetry.outbound_ends(FACTS, "reviews:9080") is first
    now[0] = view("reviews-v2")
    second = telemetry.outbound_ends(FACTS, "reviews:9080")
    assert labels(first)["destination_workload"] == "reviews-v1"
    assert labels(second)["destination_workload"] == "reviews-v2"


@pytest.mark.parametrize(
    ("tls", "source", "destination"),
    [
        (None, "unknown", "unknown"),
        (ClientTls(sans=((SanMatch.EXACT, SERVER),)), OWN, SERVER),
        (ClientTls(sans=((SanMatch.EXACT, SERVER), (SanMatch.EXACT, OWN))), OWN, "unknown"),
        (ClientTls(sans=((SanMatch.PREFIX, SERVER),)), OWN, "unknown"),
        (ClientTls(), OWN, "unknown"),
        (ClientTls(mesh_identity=False, sans=((SanMatch.EXACT, SERVER),)), "unknown", "unknown"),
    ],
)
def test_principals_are_those_of_mutual_tls(tls: ClientTls | None, source: str, destination: str) -> None:
    telemetry = Telemetry(WHO, lambda: view(tls=tls), lambda: OWN)
    found = labels(telemetry.outbound_ends(FACTS, "reviews:9080"))
    assert (found["source_principal"], found["destination_principal"]) == (source, destination)


def test_callers_do_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "_MOST_CALLERS", 10)
    telemetry = Telemetry(WHO, View, lambda: OWN)
    for number in range(100):
        telemetry.inbound_ends(PEER, b"%d" % number)
        telemetry.inbound_ends(PEER, b"x" * (5000 + number))
    assert len(telemetry._inbound) <= 10
    assert all(said is None or len(said) <= 4096 for _, said, _ in telemetry._inbound)


def test_an_sdk_is_looked_for_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    from opentelemetry import metrics, trace

    told, now = Told(), [0.0]
    telemetry = Telemetry(WHO, View, clock=lambda: now[0])
    assert not telemetry.wants("reviews:9080")
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: told.tracers)
    monkeypatch.setattr(metrics, "get_meter_provider", lambda: told.meters)
    assert not telemetry.wants("reviews:9080")
    now[0] = 1.0
    assert telemetry.wants("reviews:9080")
    assert repr(telemetry) == "<Telemetry of productpage: spans, metrics>"
    told.close()


def test_an_access_log_that_can_not_be_written_is_a_mistake_in_the_settings() -> None:
    with pytest.raises(ConfigError, match="access_log: /none/log"):
        Telemetry(replace(WHO, access_log="/none/log"), View)


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ({}, None),
        ({"services": []}, None),
        ({"services": "x"}, None),
        ({"services": [{"name": "a"}]}, None),
        ({"services": [{"host": "a.b", "name": "a", "namespace": "b"}, {"host": "c"}]}, ("a.b", "a", "b")),
        ({"services": [{"host": "a.b"}]}, ("a.b", "", "")),
    ],
)
def test_a_cluster_says_its_service(said: dict[str, object], found: tuple[str, str, str] | None) -> None:
    cluster = pb.from_dict(pb.Cluster, {"metadata": {"filter_metadata": {"istio": said}}})
    assert decode_service(cluster.metadata) == found
    assert decode_service(pb.Cluster().metadata) is None
