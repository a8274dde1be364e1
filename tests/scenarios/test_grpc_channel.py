"""gRPC's channels from YAML to the wire: a folder of Istio's documents decides where calls go."""

from collections import Counter
from pathlib import Path

import grpc
import pytest
from support.grpc_callers import CALLERS, calling
from support.grpc_server import grpc_server

import meshlib

RULES = """
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: reviews, namespace: default}}
spec:
  hosts: [reviews.default.svc.cluster.local]
  ports: [{{number: 9080, name: grpc, protocol: GRPC}}]
  resolution: STATIC
  location: MESH_INTERNAL
  endpoints:
  - {{address: 127.0.0.1, ports: {{grpc: {v1}}}, labels: {{version: v1}}}}
  - {{address: 127.0.0.1, ports: {{grpc: {v2}}}, labels: {{version: v2}}}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: reviews, namespace: default}}
spec:
  host: reviews
  subsets: [{{name: v1, labels: {{version: v1}}}}, {{name: v2, labels: {{version: v2}}}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: reviews, namespace: default}}
spec:
  hosts: [reviews]
  http:
  - match: [{{uri: {{exact: /test.Service/status}}}}]
    fault: {{abort: {{grpcStatus: RESOURCE_EXHAUSTED, percentage: {{value: 100}}}}}}
    route: [{{destination: {{host: reviews, subset: v1}}}}]
  - match: [{{headers: {{end-user: {{exact: jason}}}}}}]
    route: [{{destination: {{host: reviews, subset: v2}}}}]
  - match: [{{uri: {{prefix: /test.Service/count}}}}]
    retries: {{attempts: 2, retryOn: unavailable}}
    route: [{{destination: {{host: reviews, subset: v2}}}}]
  - route:
    - {{destination: {{host: reviews, subset: v1}}, weight: 75}}
    - {{destination: {{host: reviews, subset: v2}}, weight: 25}}
"""


@pytest.mark.parametrize("kind", CALLERS)
def test_a_folder_of_rules_decides(kind: str, tmp_path: Path) -> None:
    with grpc_server("v1") as v1, grpc_server("v2") as v2:
        (tmp_path / "rules.yaml").write_text(RULES.format(v1=v1.port, v2=v2.port))
        with meshlib.connect(str(tmp_path)) as mesh, calling(kind, mesh) as caller:
            for _ in range(5):
                answer = caller.unary("who", b"", metadata=(("end-user", "jason"),))
                assert answer.messages == [b"v2"]
            assert answer.facts.source.startswith("rules.yaml:")
            found = Counter(caller.unary("who", b"").messages[0] for _ in range(200))
            assert 20 < found[b"v2"] < 85
            with pytest.raises(grpc.RpcError) as raised:
                caller.unary("status", b"0")
            assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            v2.failing["count"] = 2
            again = caller.streamed("count", b"2")
            assert (again.messages, again.facts.attempts) == ([b"0", b"1"], 3)
