"""A real Envoy as outbound proxy, fed over ADS by `meshlib control`, routes as the rules say."""

from collections import Counter
from contextlib import ExitStack
from http.client import HTTPConnection
from pathlib import Path

import pytest
from support.commands import Control, control, wait_until
from support.envoy_client import envoy
from support.named_server import named_server
from support.ports import free_port

SERVICE = """
apiVersion: v1
kind: Service
metadata: {{name: reviews}}
spec:
  selector: {{app: reviews}}
  ports: [{{name: http, port: {port}}}]
"""

RULES = """
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews}
spec:
  host: reviews
  subsets:
  - {name: v1, labels: {version: v1}}
  - {name: v2, labels: {version: v2}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews}
spec:
  hosts: [reviews]
  http:
  - match: [{headers: {end-user: {exact: jason}}}]
    rewrite: {uri: /jasons/}
    route: [{destination: {host: reviews, subset: v2}}]
  - match: [{uri: {exact: /old}}]
    redirect: {uri: /new}
  - match: [{uri: {prefix: /fixed}}]
    directResponse: {status: 418, body: {string: teapot}}
  - route:
    - {destination: {host: reviews, subset: v1}, weight: %d}
    - {destination: {host: reviews, subset: v2}, weight: %d}
"""


def workload(version: str, port: int) -> str:
    return f"""
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: reviews-{version}}}
spec:
  address: 127.0.0.1
  ports: {{http: {port}}}
  labels: {{app: reviews, version: {version}}}
"""


def get(port: int, path: str, host: str, **headers: str) -> tuple[int, str]:
    """Status, and the body or the Location, of one request on a connection of its own; 0: refused."""
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(
            "GET", path, headers={"Host": host} | {k.replace("_", "-"): v for k, v in headers.items()}
        )
        answer = connection.getresponse()
        return answer.status, answer.getheader("location") or answer.read().decode()
    except ConnectionError:
        return 0, ""
    finally:
        connection.close()


@pytest.mark.parametrize("delta", [False, True], ids=["sotw", "delta"])
def test_envoy_routes_by_the_rules_and_follows_an_edit(tmp_path: Path, delta: bool) -> None:
    port = free_port()
    with ExitStack() as stack:
        ports = {v: stack.enter_context(named_server(v)) for v in ("v1", "v2")}
        (tmp_path / "a.yaml").write_text(
            SERVICE.format(port=port) + "".join(workload(v, p) for v, p in ports.items())
        )
        (tmp_path / "rules.yaml").write_text(RULES % (100, 0))
        served: Control = stack.enter_context(control(tmp_path))
        stack.enter_context(envoy(served.address, delta))

        wait_until(lambda: get(port, "/", "reviews")[0] == 200, 20, "Envoy's listener")
        assert get(port, "/a?b=c", "reviews") == (200, "v1 GET /a?b=c")
        assert get(port, "/a", "reviews.default.svc.cluster.local", end_user="jason") == (
            200,
            "v2 GET /jasons/a",
        )
        assert get(port, "/old", "reviews") == (301, "http://reviews/new")
        assert get(port, "/fixed/thing", "reviews") == (418, "teapot")

        (tmp_path / "rules.yaml").write_text(RULES % (50, 50))
        wait_until(lambda: get(port, "/", "reviews")[1] == "v2 GET /", 60, "the new weights")
        seen = Counter(get(port, "/", "reviews") for _ in range(200))
        assert set(seen) == {(200, "v1 GET /"), (200, "v2 GET /")}
        assert 60 <= seen[200, "v1 GET /"] <= 140
        assert served.refusals() == []
        (proxy,) = served.status()["clients"]
        assert proxy["flavour"] == "envoy"
