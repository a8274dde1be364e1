"""One key lands on one endpoint from gRPC's own client and from this library."""

import json
import os
import random
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

from support.commands import control
from support.greeter import greeter

from meshlib.bootstrap import bootstrap
from meshlib.core.balance.hashing import key_of
from meshlib.core.balance.pick import pick
from meshlib.core.ledger import ClusterState
from meshlib.core.request import RequestHead
from meshlib.core.route.rule import Forward
from meshlib.dataplane.mesh import Mesh

CLIENT = Path(__file__).parents[1] / "support/grpcio_client.py"
KEYS = [f"user-{number}" for number in range(60)]
RULES = """
apiVersion: v1
kind: Service
metadata: {name: greeter, namespace: shop}
spec:
  selector: {app: greeter}
  ports: [{name: grpc, port: 7000}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: greeter, namespace: shop}
spec:
  host: greeter
  trafficPolicy: {loadBalancer: {consistentHash: {httpHeaderName: x-user}}}
"""


def workload(number: int, port: int, weight: int) -> str:
    return f"""
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: greeter-{number}, namespace: shop}}
spec: {{address: 127.0.0.1, ports: {{grpc: {port}}}, labels: {{app: greeter}}, weight: {weight}}}
"""


def test_keys_land_on_the_same_endpoints(tmp_path: Path) -> None:
    rules = tmp_path / "mesh"
    rules.mkdir()
    with ExitStack() as stack:
        ports = {f"g{n}": stack.enter_context(greeter(f"g{n}")) for n in range(4)}
        entries = [workload(n, port, 1 + n % 2) for n, port in enumerate(ports.values())]
        (rules / "rules.yaml").write_text(RULES + "".join(entries))
        served = stack.enter_context(control(rules))
        theirs = by_grpc(served.address, tmp_path)
        assert theirs == ours(served.address, {port: name for name, port in ports.items()})
        assert set(theirs) == set(ports)


def by_grpc(address: str, folder: Path) -> list[str]:
    """Who answers each key's call."""
    server = {
        "server_uri": address,
        "channel_creds": [{"type": "insecure"}],
        "server_features": ["xds_v3"],
    }
    node = {"id": "caller", "metadata": {"NAMESPACE": "shop"}}
    config = json.dumps({"xds_servers": [server], "node": node})
    asked = "".join(json.dumps({"metadata": {"x-user": key}}) + "\n" for key in KEYS)
    done = subprocess.run(
        [sys.executable, str(CLIENT), "xds:///greeter:7000"],
        env=os.environ | {"GRPC_XDS_BOOTSTRAP_CONFIG": config},
        input=asked,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert all(len(each["answers"]) == 1 and not each["errors"] for each in told), done.stderr[-2000:]
    return [next(iter(each["answers"])) for each in told]


def ours(address: str, names: dict[int, str]) -> list[str]:
    """Whom this library sends each key's request to."""
    settings = bootstrap({}, control=address, allow_plaintext=True, namespace="shop")
    with Mesh(settings) as mesh:
        view = mesh.prepare("greeter:7000")
    (name,) = view.clusters
    state, dice, found = ClusterState(), random.Random(1), []
    for each in KEYS:
        head = RequestHead("POST", "http", "greeter:7000", "/", [(b"x-user", each.encode())])
        route = view.tables["greeter:7000"].match(head, dice)
        assert route is not None
        assert isinstance(route.action, Forward)
        key, _ = key_of(route.action.hashing, head, "", dice)
        picked = pick(view.clusters[name], view.endpoints[name], state, 0.0, dice, key=key)
        assert picked is not None
        found.append(names[picked.port])
    return found
