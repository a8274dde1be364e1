"""What a client loads until its first response, in a process of its own: what is not needed is not there.

An import that is not at its place costs every application, and nobody sees it: so it is said here what is not
to be loaded. What the first request comes to need is taken off the list in the change that needs it.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from support.named_server import named_server
from support.secure_mesh import SecureMesh, secure_mesh

DOCUMENTS = """
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: hello}
spec:
  hosts: [hello.example]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{name: http, number: 80, protocol: HTTP}]
  endpoints: [{address: 127.0.0.1, ports: {http: PORT}}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: hello}
spec:
  host: hello.example
  trafficPolicy:
    tls: {mode: DISABLE}
    connectionPool: {tcp: {maxConnections: 10}}
    outlierDetection: {consecutive5xxErrors: 5}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: hello}
spec:
  hosts: [hello.example]
  http:
  - match: [{headers: {end-user: {exact: jason}}}]
    redirect: {uri: /}
  - timeout: 60s
    retries: {attempts: 2}
    route: [{destination: {host: hello.example}}]
"""
ASK = """
import json, sys
import meshlib
settings = json.loads(sys.argv[1])
with meshlib.Client(**settings, first_call_timeout=60) as client:
    assert client.get("http://hello.example/", timeout=60).status_code == 200
    print(json.dumps(sorted(sys.modules)))
"""
NEVER = {
    # Of the control service and the command line.
    *("grpc", "pydantic", "yaml", "typer", "watchfiles", "meshlib.control", "meshlib.cli", "meshlib.local"),
    # Of the httpx that goes to https:// hosts.
    *("httpcore", "anyio", "certifi"),
    # Of applications with tasks, of servers, and of what no rule asks for.
    *("asyncio", "tenacity", "joserfc", "re2", "opentelemetry", "importlib.resources"),
    *("google.protobuf.json_format", "google.protobuf.descriptor_pb2"),
    *(
        "meshlib.core.inbound",
        "meshlib.core.authz",
        "meshlib.core.authn",
        "meshlib.core.cors",
        "meshlib.xds.cel",
    ),
    *("meshlib.dataplane.accept", "meshlib.dataplane.http.asynchronous", "meshlib.dataplane.http.h2pool"),
    *("meshlib.dataplane.telemetry.logs", "meshlib.dataplane.telemetry.tcp", "meshlib.dataplane.tcp"),
}
"""A package stands for all that is in it."""


def loaded(control: SecureMesh) -> set[str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("MESHLIB_")}
    settings = json.dumps(control.settings("productpage") | {"state_dir": ""})
    done = subprocess.run(
        [sys.executable, "-c", ASK, settings], env=own, capture_output=True, text=True, timeout=110
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout))


def test_a_first_request_loads_what_it_needs(tmp_path: Path) -> None:
    with (
        named_server("hello") as port,
        secure_mesh(tmp_path, DOCUMENTS.replace("PORT", str(port))) as control,
    ):
        found = loaded(control)
    assert {"meshlib.core.outbound", "meshlib.dataplane.certs", "cryptography.x509"} <= found
    assert sorted(found & NEVER) == []
