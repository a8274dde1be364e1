"""gRPC's own xDS clients, in Python and in Node.js, take their routes from `meshlib control`."""

import json
from pathlib import Path

import pytest
from support.commands import control, wait_until
from support.greeter import greeter
from support.node_modules import install
from support.xds_clients import client, command

SERVICE = """
apiVersion: v1
kind: Service
metadata: {name: greeter, namespace: shop}
spec:
  selector: {app: greeter}
  ports: [{name: grpc, port: 7000}]
"""

RULES = """
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: greeter, namespace: shop}
spec:
  host: greeter
  trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}}
  subsets:
  - {name: v1, labels: {version: v1}}
  - {name: v2, labels: {version: v2}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: greeter, namespace: shop}
spec:
  hosts: [greeter]
  http:
  - name: canary
    match: [{headers: {canary: {exact: "yes"}}}]
    route: [{destination: {host: greeter, subset: v2}}]
  - name: forbidden
    match: [{headers: {forbidden: {exact: "yes"}}}]
    directResponse: {status: 403}
  - name: fixed
    match: [{headers: {fixed: {exact: "yes"}}}]
    directResponse: {status: 200, body: {string: hello}}
  - name: split
    timeout: 10s
    retries: {attempts: 2, retryOn: "unavailable,connect-failure"}
    route:
    - {destination: {host: greeter, subset: v1}, weight: %d}
    - {destination: {host: greeter, subset: v2}, weight: %d}
"""


def workload(version: str, port: int) -> str:
    return f"""
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: greeter-{version}, namespace: shop}}
spec:
  address: 127.0.0.1
  ports: {{grpc: {port}}}
  labels: {{app: greeter, version: {version}}}
"""


def write_bootstrap(path: Path, address: str) -> Path:
    path.write_text(
        json.dumps(
            {
                "xds_servers": [
                    {
                        "server_uri": address,
                        "channel_creds": [{"type": "insecure"}],
                        "server_features": ["xds_v3"],
                    }
                ],
                "node": {"id": "caller", "locality": {}, "metadata": {"NAMESPACE": "shop"}},
            }
        )
    )
    return path


@pytest.fixture(scope="module")
def node_modules() -> None:
    install()


@pytest.mark.parametrize("kind", ["python", "node"])
def test_grpc_client_follows_a_split_and_its_change(kind: str, tmp_path: Path, node_modules: None) -> None:
    rules = tmp_path / "mesh"
    rules.mkdir()
    (rules / "service.yaml").write_text(SERVICE)
    (rules / "rules.yaml").write_text(RULES % (0, 100))
    with (
        greeter("v1") as one,
        greeter("v2") as two,
    ):
        (rules / "workloads.yaml").write_text(workload("v1", one) + "---" + workload("v2", two))
        with (
            control(rules) as served,
            client(
                command(kind, "xds:///greeter:7000"), write_bootstrap(tmp_path / "b.json", served.address)
            ) as ask,
        ):
            assert ask(calls=20) == {"v2": 20}

            (rules / "rules.yaml").write_text(RULES % (50, 50))
            wait_until(lambda: "v1" in ask(calls=1), 30, "the new weights")
            # A fair split of 200: outside of 60..140 once in 10^8 runs.
            assert 60 <= ask(calls=200)["v1"] <= 140

            for turn in range(10):
                (rules / "rules.yaml").write_text(RULES % (100 * (turn % 2), 100 - 100 * (turn % 2)))
                assert sum(ask(calls=50).values()) == 50
            wait_until(lambda: ask(calls=4) == {"v1": 4}, 30, "the last weights")

            assert ask(calls=10, metadata={"canary": "yes"}) == {"v2": 10}

            # gRPC's clients know no direct response: the call fails with the code of that status.
            assert ask(fails="PERMISSION_DENIED", calls=3, metadata={"forbidden": "yes"}, deadline=5) == {}
            assert ask(fails="UNKNOWN", calls=3, metadata={"fixed": "yes"}, deadline=5) == {}

            (client_status,) = [c for c in served.status()["clients"] if c["flavour"] == "grpc"]
            assert served.refusals() == []
            assert client_status["namespace"] == "shop"


@pytest.mark.parametrize("kind", ["python", "node"])
def test_an_endpoint_that_comes_is_used_and_one_that_goes_is_not(
    kind: str, tmp_path: Path, node_modules: None
) -> None:
    rules = tmp_path / "mesh"
    rules.mkdir()
    (rules / "service.yaml").write_text(SERVICE)
    with greeter("v1") as one, greeter("v2") as two:
        (rules / "workloads.yaml").write_text(workload("v1", one))
        with (
            control(rules) as served,
            client(
                command(kind, "xds:///greeter.shop.svc.cluster.local:7000"),
                write_bootstrap(tmp_path / "b.json", served.address),
            ) as ask,
        ):
            assert ask(calls=10) == {"v1": 10}
            (rules / "workloads.yaml").write_text(workload("v1", one) + "---" + workload("v2", two))
            wait_until(lambda: "v2" in ask(calls=2), 30, "the second endpoint")
            (rules / "workloads.yaml").write_text(workload("v2", two))
            wait_until(lambda: ask(calls=4) == {"v2": 4}, 30, "the first endpoint to leave")
            assert ask(calls=20) == {"v2": 20}
            assert served.refusals() == []


TLS = """
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: greeter, namespace: shop}
spec:
  host: greeter
  trafficPolicy:
    tls: {mode: %s}
"""


@pytest.mark.parametrize("kind", ["python", "node"])
def test_tls_that_grpc_cant_speak_is_not_left_out(kind: str, tmp_path: Path, node_modules: None) -> None:
    rules = tmp_path / "mesh"
    rules.mkdir()
    (rules / "service.yaml").write_text(SERVICE)
    (rules / "rules.yaml").write_text(TLS % "DISABLE")
    with greeter("v1") as one:
        (rules / "workloads.yaml").write_text(workload("v1", one))
        with (
            control(rules) as served,
            client(
                command(kind, "xds:///greeter:7000"), write_bootstrap(tmp_path / "b.json", served.address)
            ) as ask,
        ):

            def notes() -> list[str]:
                return [text for each in served.status()["clients"] for text in each["notes"]]

            assert ask(calls=4) == {"v1": 4}
            assert notes() == []
            (rules / "rules.yaml").write_text(TLS % "SIMPLE")
            wait_until(notes, 30, "a word about it")
            (note,) = notes()
            assert note == (
                "outbound|7000||greeter.shop.svc.cluster.local has no endpoints: DestinationRule shop/greeter"
                " (rules.yaml:8) asks for TLS of mode SIMPLE, which gRPC's own clients can't speak"
            )
            assert ask(fails="UNAVAILABLE", calls=3, deadline=10) == {}
            (rules / "rules.yaml").write_text(TLS % "DISABLE")
            wait_until(lambda: notes() == [], 30, "the end of it")
            assert ask(calls=4) == {"v1": 4}
            assert served.refusals() == []
