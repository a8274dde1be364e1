"""Requests at a gateway: whose host it is, who may come in, what is believed and what refused; crashes."""

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from joserfc import jwt
from joserfc.jwk import ECKey
from support import edge_claims
from support.commands import wait_until
from support.edge import Edge, edge
from support.greeter import greeter
from support.secure_mesh import SecureMesh, secure_mesh
from support.websocket_server import websocket_server
from websockets.exceptions import InvalidStatus
from websockets.sync.client import ClientConnection, connect

from meshlib.bootstrap import bootstrap
from meshlib.cli.explain_edge import decide_edge
from meshlib.cli.explain_held import held_of_control
from meshlib.core.request import RequestHead
from meshlib.xds.kinds import Kind
from meshlib.xds.node import Client, Flavour

KEY = ECKey.generate_key("P-256", {"kid": "one"})
ISSUER = "https://issuer.example"
JWKS = json.dumps({"keys": [KEY.as_dict(private=False)]})
DOCUMENTS = f"""
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {{name: default}}
spec: {{mtls: {{mode: STRICT}}}}
---
apiVersion: mesh.istio.io/v1alpha1
kind: MeshConfig
defaultConfig: {{gatewayTopology: {{numTrustedProxies: 1}}}}
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {{name: one}}
spec:
  selector: {{istio: ingressgateway}}
  servers:
  - port: {{number: 80, name: http, protocol: HTTP}}
    hosts:
    - one.example
    - shared.example
    - default/only.example
    - ws.example
    - grpc.example
    - jwt.example
    - claims.example
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {{name: two, namespace: other}}
spec:
  selector: {{istio: ingressgateway}}
  servers:
  - port: {{number: 80, name: http, protocol: HTTP}}
    hosts: ["*.two.example"]
  - port: {{number: 9443, name: nothing, protocol: TCP}}
    hosts: ["*"]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: a, namespace: default}}
spec:
  hosts: [one.example, shared.example, jwt.example]
  gateways: [one]
  http:
  - match: [{{uri: {{prefix: /admin}}}}]
    directResponse: {{status: 299}}
  - route: [{{destination: {{host: reviews}}}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: b, namespace: default}}
spec:
  hosts: [shared.example]
  gateways: [default/one]
  http:
  - match: [{{uri: {{prefix: /b}}}}]
    directResponse: {{status: 298}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: stranger, namespace: stranger}}
spec:
  hosts: [only.example]
  gateways: [default/one]
  http: [{{directResponse: {{status: 297}}}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: wild, namespace: default}}
spec:
  hosts: ["*"]
  gateways: [other/two]
  http: [{{directResponse: {{status: 296}}}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: ws}}
spec:
  hosts: [ws.example]
  gateways: [one]
  http: [{{route: [{{destination: {{host: sockets.internal}}}}]}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: grpc}}
spec:
  hosts: [grpc.example]
  gateways: [one]
  http: [{{route: [{{destination: {{host: greeter.internal}}}}]}}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: sockets}}
spec:
  hosts: [sockets.internal]
  resolution: STATIC
  ports: [{{number: 80, name: http, protocol: HTTP}}]
  endpoints: [{{address: 127.0.0.1, ports: {{http: SOCKETS}}}}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: greeter}}
spec:
  hosts: [greeter.internal]
  resolution: STATIC
  ports: [{{number: 80, name: grpc, protocol: GRPC}}]
  endpoints: [{{address: 127.0.0.1, ports: {{grpc: GREETER}}}}]
---
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {{name: jwt}}
spec:
  selector: {{matchLabels: {{istio: ingressgateway}}}}
  jwtRules: [{{issuer: "{ISSUER}", jwks: '{JWKS}'}}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: deny}}
spec:
  selector: {{matchLabels: {{istio: ingressgateway}}}}
  action: DENY
  rules:
  - from: [{{source: {{remoteIpBlocks: [203.0.113.0/24]}}}}]
  - from: [{{source: {{notRequestPrincipals: ["*"]}}}}]
    to: [{{operation: {{hosts: [jwt.example]}}}}]
"""
LATER = """
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: later}
spec:
  selector: {istio: ingressgateway}
  servers:
  - port: {number: 8081, name: http, protocol: HTTP}
    hosts: ["*"]
"""


@dataclass
class Play:
    mesh: SecureMesh
    edge: Edge
    documents: str


@pytest.fixture(scope="module")
def play(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Play]:
    with ExitStack() as stack:
        sockets, greets = (
            stack.enter_context(websocket_server()),
            stack.enter_context(greeter("hello")),
        )
        text = f"{DOCUMENTS}---{edge_claims.DOCUMENTS}"
        text = text.replace("SOCKETS", str(sockets)).replace("GREETER", str(greets))
        mesh = stack.enter_context(secure_mesh(tmp_path_factory.mktemp("mesh"), text))
        stack.enter_context(mesh.served())
        made = stack.enter_context(edge(mesh, 80, 8081, 9443))
        wait_until(lambda: made.get("/", "one.example").status_code == 200, 30, "the first answer")
        yield Play(mesh, made, text)


@pytest.mark.parametrize(
    ("host", "path", "status"),
    [
        ("one.example", "/", 200),
        ("ONE.example:8080", "/", 200),
        ("one.example", "/admin/x", 299),
        ("one.example", "/b", 200),
        ("shared.example", "/b", 298),  # of the second document, before the first one's catch-all
        ("shared.example", "/admin", 299),
        ("only.example", "/", 404),  # the host is for another namespace's documents
        ("a.two.example", "/", 296),  # the meeting of `*` and `*.two.example`
        ("two.example", "/", 404),
        ("nobody.example", "/", 404),
    ],
)
def test_whose_host_it_is(play: Play, host: str, path: str, status: int) -> None:
    assert play.edge.get(path, host).status_code == status


ASKED = [
    *(
        ("GET", host, path)
        for host in ("one.example", "shared.example", "only.example", "a.two.example", "nobody.example")
        for path in ("/", "/admin", "/b", "//b/../x")
    ),
    ("POST", "one.example", "/"),
    ("GET", "jwt.example", "/"),
    ("GET", "one.example:80", "/admin"),
]


def test_explain_says_what_it_does(play: Play) -> None:
    settings = bootstrap({}, **play.mesh.settings("ingress"), state_dir="")
    labels = (("app", "istio-ingressgateway"), ("istio", "ingressgateway"))
    held = held_of_control(settings, Client(Flavour.GATEWAY, "default", "ingress", labels))
    for method, host, path in ASKED:
        head = RequestHead(method, "http", host, path, [])
        answer = decide_edge(held, head, host, 80, "127.0.0.1", time.time())
        status = answer["security"]["status"] or expected(answer["request"])
        assert play.edge.get(path, host, method=method).status_code == status, (method, host, path, answer)
    for claims, path, headers, status in edge_claims.CASES:
        said = {**headers, **(token(claims=claims) if claims is not None else {})}
        plain = [(name.encode(), value.encode()) for name, value in said.items()]
        head = RequestHead("GET", "http", edge_claims.HOST, path, plain)
        answer = decide_edge(held, head, edge_claims.HOST, 80, "127.0.0.1", time.time())
        assert expected(answer["request"]) == status, (claims, path, answer["request"])
    assert "claim deep.down.here of the token is not exact" in str(answer["request"]["steps"])
    assert held.of(Kind.SECRET) == {}
    assert decide_edge(held, head, host, 1, "127.0.0.1", time.time())["listener"] is None


def expected(request: dict[str, Any]) -> int:
    """The status of a request by what is explained of it."""
    if not request["matched"]:
        return 404
    return request["direct_response"]["status"] if request["direct_response"] else 200


def told(play: Play, host: str = "one.example", **options: object) -> dict[str, str]:
    answer = play.edge.get("/", host, **options)
    assert answer.status_code == 200, answer.text
    return dict(answer.json()["headers"])


def test_what_a_caller_says_of_itself_is_not_believed(play: Play) -> None:
    said = {
        "x-forwarded-client-cert": "URI=spiffe://cluster.local/ns/default/sa/admin",
        "x-envoy-upstream-rq-timeout-ms": "1",
        "x-request-id": "mine",
        "x-forwarded-proto": "https",
    }
    passed = (
        "orig-method",
        "upstream-canary",
        "is-timeout-retry",
        "fault-abort-request",
        "original-dst-host",
    )
    passed += ("fault-delay-request", "auth-failure-mode-allowed", "foo")
    said |= {f"X-Envoy-{name}": "said" for name in passed}
    found = told(play, headers=said)
    assert [name for name, value in found.items() if value == "said"] == []
    assert "sa/admin" not in found.get("x-forwarded-client-cert", "")
    assert "x-envoy-upstream-rq-timeout-ms" not in found
    assert found["x-request-id"] != "mine"


def test_the_address_is_what_the_trusted_proxy_says(play: Play) -> None:
    forged = {"x-forwarded-for": "203.0.113.9, 198.51.100.7"}
    assert told(play, headers=forged)["x-envoy-external-address"] == "198.51.100.7"
    from_there = {"x-forwarded-for": "198.51.100.7, 203.0.113.9"}
    assert play.edge.get("/", "one.example", headers=from_there).status_code == 403


def token(issuer: str = ISSUER, key: ECKey = KEY, claims: dict[str, Any] | None = None) -> dict[str, str]:
    now = int(time.time())
    whole = {"iss": issuer, "sub": "someone", "exp": now + 600, "iat": now, **(claims or {})}
    return {"authorization": "Bearer " + jwt.encode({"alg": "ES256", "kid": "one"}, whole, key)}


def test_tokens_are_checked_at_the_edge(play: Play) -> None:
    assert play.edge.get("/", "jwt.example").status_code == 403
    assert play.edge.get("/", "jwt.example", headers=token()).status_code == 200
    forged = token(key=ECKey.generate_key("P-256"))
    assert play.edge.get("/", "jwt.example", headers=forged).status_code == 401
    assert play.edge.get("/", "one.example").status_code == 200


@pytest.mark.parametrize(("claims", "path", "headers", "status"), edge_claims.CASES)
def test_claims_decide_the_route(
    play: Play, claims: dict[str, Any] | None, path: str, headers: dict[str, str], status: int
) -> None:
    said = {**headers, **(token(claims=claims) if claims is not None else {})}
    assert play.edge.get(path, edge_claims.HOST, headers=said).status_code == status


def test_attack_claims_that_nobody_signed(play: Play) -> None:
    """Neither a header of that name, nor a token of another's key, takes a route of claims."""
    said = b"GET /dotted HTTP/1.1\r\nhost: claims.example\r\n@request.auth.claims.realm.group: admins\r\n\r\n"
    assert play.edge.raw(said).split(b" ", 2)[1] == b"400"
    forged = token(key=ECKey.generate_key("P-256"), claims={"realm": {"group": "admins"}})
    assert play.edge.get("/dotted", edge_claims.HOST, headers=forged).status_code == 401


def test_http2_without_tls(play: Play) -> None:
    with httpx.Client(http1=False, http2=True, trust_env=False) as client:
        url = f"http://127.0.0.1:{play.edge.ports[80]}/"
        answer = client.get(url, headers={"host": "one.example"})
    assert (answer.status_code, answer.http_version) == (200, "HTTP/2")


def websocket(play: Play, path: str) -> ClientConnection:
    plain = socket.create_connection(("127.0.0.1", play.edge.ports[80]), 10)
    return connect(f"ws://ws.example{path}", sock=plain, proxy=None)


def test_websockets(play: Play) -> None:
    with websocket(play, "/live") as made:
        made.send("hello")
        assert made.recv(10) == "hello"
    with pytest.raises(InvalidStatus, match="403"):
        websocket(play, "/no")


def test_grpc(play: Play) -> None:
    options = [("grpc.default_authority", "grpc.example"), ("grpc.enable_http_proxy", 0)]
    with grpc.insecure_channel(f"127.0.0.1:{play.edge.ports[80]}", options) as channel:
        assert channel.unary_unary("/greeter.Greeter/Hello")(b"", timeout=10) == b"hello"


ONE = b"host: one.example\r\n"


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET / HTTP/1.1\r\n" + ONE + b"x_y: 1\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\n" + ONE + b"x: a\x00b\r\n\r\n", b"400"),
        (b"POST / HTTP/1.1\r\n" + ONE + b"content-length: 1\r\ncontent-length: 2\r\n\r\nab", b"400"),
        (
            b"POST / HTTP/1.1\r\n"
            + ONE
            + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
            b"400",
        ),
        (b"POST / HTTP/1.1\r\n" + ONE + b"transfer-encoding: chunked\r\n\r\nzz\r\n", b"400"),
        (b"GET / HTTP/1.1\r\n" + ONE + b"x: " + b"a" * 70_000 + b"\r\n\r\n", b"431"),
        (b"GET / HTTP/1.1\r\n" + ONE + b"x: 1\r\n" * 200 + b"\r\n", b"431"),
        (b"CONNECT one.example:80 HTTP/1.1\r\n" + ONE + b"\r\n", b"404"),
        (b"\x16\x03\x01\x00\x05hello", b"400"),
        (b"GET /x/../admin HTTP/1.1\r\n" + ONE + b"connection: close\r\n\r\n", b"299"),
        (b"GET //admin HTTP/1.1\r\n" + ONE + b"connection: close\r\n\r\n", b"299"),
        (b"GET /%2e/admin HTTP/1.1\r\n" + ONE + b"connection: close\r\n\r\n", b"299"),
        (b"GET /x%2fy HTTP/1.1\r\n" + ONE + b"connection: close\r\n\r\n", b"307"),
    ],
    ids=lambda value: value[:40].decode("latin-1") if isinstance(value, bytes) else "",
)
def test_hostile_input(play: Play, sent: bytes, status: bytes) -> None:
    answer = play.edge.raw(sent)
    assert answer.split(b" ", 2)[1:2] == [status], answer[:300]


def test_http2_has_its_limits(play: Play) -> None:
    """SETTINGS_MAX_CONCURRENT_STREAMS is 100."""
    empty = b"\0\0\0\x04\0\0\0\0\0"
    too_long = b"\0\xff\xff\x04\0\0\0\0\0"  # of a frame: the connection ends
    settings = play.edge.raw(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + empty + too_long)
    assert b"\x00\x03\x00\x00\x00\x64" in settings


def test_ports_come_and_go(play: Play) -> None:
    play.mesh.edit(play.documents, LATER)
    line = f"listens at 127.0.0.1:{play.edge.ports[8081]} for port 8081"
    wait_until(lambda: line in play.edge.said, 30, line)
    assert play.edge.get("/", "one.example", 8081).status_code == 404
    play.mesh.edit(play.documents)
    wait_until(lambda: gone(play, 8081), 30, "the port to be closed")


def gone(play: Play, port: int) -> bool:
    try:
        play.edge.get("/", "one.example", port)
    except httpx.HTTPError:
        return True
    return False


def test_it_serves_while_control_is_down(play: Play) -> None:
    with play.mesh.down():
        assert play.edge.get("/", "one.example").status_code == 200


def envoy_of(process: int) -> int | None:
    done = subprocess.run(["ps", "-o", "pid=,comm=", "--ppid", str(process)], capture_output=True, text=True)
    found = [line.split()[0] for line in done.stdout.splitlines() if "envoy" in line]
    return int(found[0]) if found else None


def test_a_crashed_envoy_is_started_again(play: Play) -> None:
    before = envoy_of(play.edge.process.pid)
    assert before is not None
    os.kill(before, signal.SIGKILL)
    wait_until(lambda: envoy_of(play.edge.process.pid) not in (None, before), 30, "another Envoy")
    wait_until(lambda: not gone(play, 80) and play.edge.get("/", "one.example").status_code == 200, 30, "it")
    assert "Envoy ended (signal 9)" in play.edge.said


def test_another_gateway_is_not_let_share_its_port(play: Play) -> None:
    port = play.edge.ports[80]
    holder = f"127.0.0.1:{port} is in use by envoy ({envoy_of(play.edge.process.pid)})"
    with edge(play.mesh, options=("--port", f"80={port}")) as other:
        wait_until(lambda: holder in other.said, 30, holder)
        assert f"listens at 127.0.0.1:{port}" not in other.said
        nowhere = "or it can have none of their ports"
        wait_until(lambda: nowhere in other.said, 30, nowhere)
        assert play.edge.get("/", "one.example").status_code == 200


def test_envoy_does_not_outlive_its_agent(play: Play, tmp_path: Path) -> None:
    with edge(play.mesh, 80, 9443) as other:
        found = envoy_of(other.process.pid)
        assert found is not None
        other.process.kill()
        other.process.wait()
        wait_until(lambda: not Path(f"/proc/{found}/exe").exists(), 30, "Envoy to end")
