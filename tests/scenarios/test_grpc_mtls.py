"""gRPC's own client and server do mutual TLS by what is compiled for them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.ports import free_port
from support.served import Served
from support.small_ca import SmallCa

from meshlib.control.compile.compiler import GraphCompiler
from meshlib.control.graph import build_graph
from meshlib.control.sources.text import documents_in
from meshlib.xds.names import INBOUND_LISTENER
from meshlib.xds.node import Client, Flavour

BOTH = "spiffe://cluster.local/ns/default/sa/reviews"
PROGRAM = Path(__file__).parents[1] / "support/grpcio_mutual.py"
MESH = """
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: reviews}}
spec:
  hosts: [reviews.example]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{{number: 80, name: grpc, protocol: GRPC}}]
  endpoints: [{{address: 127.0.0.1, ports: {{grpc: {port}}}, serviceAccount: {account}}}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: reviews}}
spec: {{host: reviews.example, trafficPolicy: {{tls: {{mode: {client}}}}}}}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {{name: default}}
spec: {{mtls: {{mode: {server}}}}}
"""


@pytest.mark.parametrize(
    ("client", "server", "account", "said"),
    [
        ("ISTIO_MUTUAL", "STRICT", "reviews", f"serving {BOTH}"),
        ("DISABLE", "PERMISSIVE", "reviews", "serving nobody"),
        ("ISTIO_MUTUAL", "STRICT", "other", "DEADLINE_EXCEEDED"),
    ],
    ids=["mutual", "plain", "another-account"],
)
def test_mutual_tls_between_grpcs_own(
    tmp_path: Path, client: str, server: str, account: str, said: str
) -> None:
    ca, port = SmallCa(), free_port()
    held = ca.issue(BOTH)
    for name, text in (("c.pem", held.pem), ("c.key", held.key_pem.decode()), ("ca.pem", ca.pem)):
        (tmp_path / name).write_text(text)
    listened = f"127.0.0.1:{port}"
    asked = ["reviews.example:80", f"{INBOUND_LISTENER}{listened}"]
    documents = documents_in(
        MESH.format(port=port, client=client, server=server, account=account), "in.yaml"
    ).documents
    compiler = GraphCompiler(build_graph(documents), "1.1", roots_pem=ca.pem.encode())
    resources = compiler.resources(Client(Flavour.GRPC), asked)
    with Served("1.1", resources) as served:
        files = {
            "certificate_file": str(tmp_path / "c.pem"),
            "private_key_file": str(tmp_path / "c.key"),
            "ca_certificate_file": str(tmp_path / "ca.pem"),
            "refresh_interval": "60s",
        }
        bootstrap = {
            "xds_servers": [{"server_uri": served.address, "channel_creds": [{"type": "insecure"}]}],
            "node": {"id": "grpc", "metadata": {"GENERATOR": "grpc"}},
            "certificate_providers": {"default": {"plugin_name": "file_watcher", "config": files}},
            "server_listener_resource_name_template": f"{INBOUND_LISTENER}%s",
        }
        seconds = "4" if account == "other" else "45"
        found = subprocess.run(
            [sys.executable, str(PROGRAM), listened, "xds:///reviews.example:80", seconds],
            env={**os.environ, "GRPC_XDS_BOOTSTRAP_CONFIG": json.dumps(bootstrap)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert found.stdout.startswith(said), (found.stdout, found.stderr[-3000:])
