"""gRPC's own servers take what policies are compiled to for them, and refuse what they can't check."""

import json
import os
import subprocess
import sys
from pathlib import Path

from support.mesh_cases import mesh_cases
from support.ports import free_port
from support.security_envoy import LABELS, NAMESPACE, graph_of
from support.served import Served

from meshlib.control.compile.compiler import GraphCompiler
from meshlib.control.graph import Graph
from meshlib.xds.names import INBOUND_LISTENER
from meshlib.xds.node import Client, Flavour
from meshlib.xds.snapshot import Resource

PROGRAM = Path(__file__).parents[1] / "support/grpcio_guarded.py"
OK, DENIED = "OK", "PERMISSION_DENIED"
HELLO = ["Hello", []]
ADMIN = ["Admin", []]
TOKEN = ["Hello", [["authorization", "Bearer x"]]]
BASIC = ["Hello", [["authorization", "Basic x"]]]
TOKENS = """---
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: jwt, namespace: foo}
spec: {jwtRules: [{issuer: https://issuer.example}]}
"""
VERDICTS: dict[str, tuple[str, list[tuple[list[object], str]]]] = {
    "no policy": ("", [(HELLO, OK)]),
    "nothing": ("allow(nothing):\n", [(HELLO, DENIED)]),
    "everything": ("allow(all):\n  rules: [{}]\n", [(HELLO, OK)]),
    "a path": (
        "allow(p):\n  rules: [{to: [{operation: {paths: ['/greeter.Greeter/H*']}}]}]\n",
        [(HELLO, OK), (ADMIN, DENIED)],
    ),
    "a path template": (
        "deny(p):\n  rules: [{to: [{operation: {paths: ['/{*}/Admin']}}]}]\n",
        [(HELLO, OK), (ADMIN, DENIED)],
    ),
    "a header": (
        "deny(h):\n  rules: [{when: [{key: 'request.headers[x-a]', values: ['b*']}]}]\n",
        [(HELLO, OK), (["Hello", [["x-a", "bc"]]], DENIED)],
    ),
    "no principal": (
        "deny(p):\n  rules: [{from: [{source: {notPrincipals: ['*']}}]}]\n",
        [(HELLO, DENIED)],
    ),
    "tokens": (TOKENS, [(HELLO, OK), (TOKEN, DENIED), (BASIC, OK)]),
    "claims": (
        TOKENS + "allow(t):\n  rules: [{from: [{source: {requestPrincipals: ['*']}}]}]\n",
        [(HELLO, DENIED), (TOKEN, DENIED)],
    ),
    "no claims": (
        TOKENS + "allow(t):\n  rules: [{from: [{source: {notRequestPrincipals: ['*']}}]}]\n",
        [(HELLO, OK), (TOKEN, DENIED)],
    ),
    "allowed by what gRPC does not know": (
        "allow(s):\n  rules: [{when: [{key: connection.sni, notValues: [a]}]}]\n",
        [(HELLO, DENIED)],
    ),
    "denied by what gRPC does not know": (
        """deny(s):
  rules: [{to: [{operation: {paths: ['*/Admin']}}], when: [{key: connection.sni, values: [a]}]}]
""",
        [(HELLO, OK), (ADMIN, DENIED)],
    ),
    "others are asked": (
        "custom(c):\n  provider: {name: none}\n  rules: [{to: [{operation: {paths: ['*/Admin']}}]}]\n",
        [(HELLO, OK), (ADMIN, DENIED)],
    ),
    "several others are asked": (
        """custom(c):
  provider: {name: none}
  rules: [{to: [{operation: {paths: ['*/Admin']}}]}]
custom(d):
  provider: {name: other}
  rules: [{to: [{operation: {paths: ['*/Hello']}}]}]
""",
        [(HELLO, DENIED), (ADMIN, DENIED)],
    ),
    "audit": ("audit(all):\n  rules: [{}]\n", [(HELLO, OK)]),
}


def listener(graph: Graph, address: str, namespace: str, labels: dict[str, str]) -> Resource:
    client = Client(Flavour.GRPC, namespace=namespace, labels=tuple(sorted(labels.items())))
    compiler = GraphCompiler(graph, "1")
    name = f"{INBOUND_LISTENER}{address}"
    return next(r for r in compiler.resources(client, [name]) if r.name == name)


def asked(resources: list[Resource], wanted: list[tuple[str, list[list[object]]]]) -> list[list[str]]:
    with Served("1.1", resources) as served:
        bootstrap = {
            "xds_servers": [{"server_uri": served.address, "channel_creds": [{"type": "insecure"}]}],
            "node": {"id": "grpc", "metadata": {"GENERATOR": "grpc"}},
            "server_listener_resource_name_template": f"{INBOUND_LISTENER}%s",
        }
        done = subprocess.run(
            [sys.executable, str(PROGRAM), json.dumps(wanted)],
            env={**os.environ, "GRPC_XDS_BOOTSTRAP_CONFIG": json.dumps(bootstrap)},
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
    assert done.returncode == 0, done.stderr[-3000:]
    found: list[list[str]] = json.loads(done.stdout)
    return found


def test_verdicts() -> None:
    resources, wanted, expected = [], [], []
    for text, calls in VERDICTS.values():
        address = f"127.0.0.1:{free_port()}"
        resources.append(listener(graph_of(text), address, NAMESPACE, LABELS))
        wanted.append((address, [call for call, _ in calls]))
        expected.append([status for _, status in calls])
    found = asked(resources, wanted)
    assert dict(zip(VERDICTS, found, strict=True)) == dict(zip(VERDICTS, expected, strict=True))


def test_the_filters_of_every_golden_case_are_taken() -> None:
    resources, wanted, names = [], [], []
    for case in mesh_cases():
        if case.name.startswith(("authz", "ext-authz", "request-authentication")):
            address = f"127.0.0.1:{free_port()}"
            labels = dict(case.who.labels)
            resources.append(listener(case.graph(), address, case.who.namespace, labels))
            wanted.append((address, [HELLO]))
            names.append(case.name)
    assert len(names) >= 12
    found = dict(zip(names, asked(resources, wanted), strict=True))
    assert {name: status for name, status in found.items() if status not in ([OK], [DENIED])} == {}
