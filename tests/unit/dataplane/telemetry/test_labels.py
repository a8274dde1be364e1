"""What each label holds; the whole sets are asked of a real SDK in tests/integrations."""

import pytest

from meshlib.dataplane.telemetry import labels
from meshlib.dataplane.telemetry.labels import Service, end_of, is_grpc, service_of
from meshlib.dataplane.telemetry.wiring import exporters
from meshlib.dataplane.telemetry.workload import of_peer
from meshlib.errors import ConfigError
from meshlib.xds.workload import NOBODY, Workload, from_metadata, to_metadata, workload_of

FQDN = "reviews.default.svc.cluster.local"


@pytest.mark.parametrize(
    ("cluster", "said", "found"),
    [
        (f"outbound|80||{FQDN}", None, (FQDN, "reviews", "default")),
        (f"outbound|80||{FQDN}", ("a", "b", "c"), ("a", "b", "c")),
        ("outbound|80||example.org", None, ("example.org", "example.org", "")),
        ("PassthroughCluster", None, ("asked:80", "PassthroughCluster", "")),
        ("BlackHoleCluster", None, ("asked:80", "BlackHoleCluster", "")),
        ("", None, ("asked:80", "", "")),
    ],
)
def test_the_service_behind_a_cluster(cluster: str, said: Service | None, found: Service) -> None:
    assert service_of(cluster, said, "asked:80") == found


def test_what_is_not_known_is_unknown() -> None:
    found = labels.outbound(NOBODY, NOBODY, ("", "", ""), ("", ""))
    assert len(found) + 4 == len(labels.NAMES) == len(set(labels.NAMES)) == 25
    assert found == ("source", *["unknown"] * 20)


@pytest.mark.parametrize(
    ("kind", "grpc"),
    [
        (b"application/grpc", True),
        (b"application/grpc+proto", True),
        (b"application/grpc; a=b", True),
        (b"application/grpc-web", False),
        (b"application/json", False),
        (None, False),
    ],
)
def test_what_is_grpc(kind: bytes | None, grpc: bool) -> None:
    assert is_grpc(kind) is grpc


def test_how_a_request_ended() -> None:
    assert end_of(0, "", grpc=False) == ("http", "0", "", "-")
    assert end_of(200, "UC,URX", grpc=True, grpc_status="14") == ("grpc", "200", "14", "UC,URX")


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ({}, Workload("acc", "ns", "acc", "latest", "", "", "Kubernetes")),
        ({"app": "a"}, Workload("a", "ns", "a", "latest", "a", "", "Kubernetes")),
        (
            {
                "app": "a",
                "version": "v1",
                "service.istio.io/canonical-name": "c",
                "app.kubernetes.io/version": "2",
            },
            Workload("a", "ns", "c", "2", "a", "v1", "Kubernetes"),
        ),
        (
            {"service.istio.io/workload-name": "w", "app.kubernetes.io/name": "k"},
            Workload("w", "ns", "k", "latest", "", "", "Kubernetes"),
        ),
    ],
)
def test_a_workload_is_named_by_its_labels(said: dict[str, str], found: Workload) -> None:
    made = workload_of("ns", "acc", said)
    assert made == found
    assert from_metadata(to_metadata(made)) == made


@pytest.mark.parametrize("text", ["", "a", "a;b;c;d", ";"])
def test_metadata_of_another_form_says_nothing(text: str) -> None:
    assert from_metadata({"workload": text}) == NOBODY


@pytest.mark.parametrize("header", [b"", b"*", b"AAAA", b"x" * 20_000])
def test_a_peer_that_says_nothing_understandable_is_nobody(header: bytes) -> None:
    assert of_peer(header, "ns") == NOBODY


@pytest.mark.parametrize(
    ("environ", "traces", "metrics"),
    [
        ({}, (), ()),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a"}, ("otlp_proto_http",), ("otlp_proto_http",)),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://a"}, ("otlp_proto_http",), ()),
        ({"OTEL_TRACES_EXPORTER": "otlp,console"}, ("otlp_proto_http", "console"), ()),
        (
            {"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://a"},
            (),
            ("otlp_proto_http",),
        ),
        (
            {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
            ("otlp_proto_grpc",),
            (),
        ),
    ],
)
def test_which_exporters_the_environment_asks_for(
    environ: dict[str, str], traces: tuple[str, ...], metrics: tuple[str, ...]
) -> None:
    assert exporters(environ, "traces") == traces
    assert exporters(environ, "metrics") == metrics


def test_a_protocol_that_is_not_spoken_is_refused() -> None:
    with pytest.raises(ConfigError, match="allowed is http/protobuf or grpc"):
        exporters({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"}, "traces")
