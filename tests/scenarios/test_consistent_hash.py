"""Istio's consistentHash as an application sees it: httpx, five servers, a folder of YAML."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import meshlib

RULES = """
apiVersion: v1
kind: Service
metadata: {name: carts}
spec: {selector: {app: carts}, ports: [{name: http, port: 9080}]}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: carts}
spec: {host: carts, trafficPolicy: {loadBalancer: {consistentHash: {HASH}}}}
"""
WORKLOAD = """---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: carts-PORT}
spec: {address: 127.0.0.1, ports: {http: PORT}, labels: {app: carts}}
"""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = str(self.connection.getsockname()[1]).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def ports() -> Iterator[list[int]]:
    with ExitStack() as stack:
        found = []
        for _ in range(5):
            server = stack.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
            threading.Thread(target=server.serve_forever, daemon=True).start()
            stack.callback(server.shutdown)
            found.append(server.server_port)
        yield found


@pytest.fixture
def mesh(request: pytest.FixtureRequest, ports: list[int], tmp_path: Path) -> Iterator[meshlib.Mesh]:
    entries = (WORKLOAD.replace("PORT", str(port)) for port in ports)
    (tmp_path / "mesh.yaml").write_text(RULES.replace("HASH", request.param) + "".join(entries))
    with meshlib.connect(str(tmp_path)) as made:
        yield made


def by(user: int) -> tuple[str, dict[str, str]]:
    return f"http://carts:9080/?user={user}", {"x-user": str(user), "x-forwarded-for": f"10.0.0.{user}"}


@pytest.mark.parametrize(
    "mesh",
    [
        "httpHeaderName: x-user",
        "httpQueryParameterName: user",
        "useSourceIp: true",
        "httpHeaderName: x-user, maglev: {tableSize: 1021}",
        "httpHeaderName: x-user, ringHash: {minimumRingSize: 100}",
    ],
    indirect=True,
)
def test_a_user_stays_and_users_spread(mesh: meshlib.Mesh) -> None:
    with meshlib.Client(mesh=mesh) as client:

        def ask(user: int) -> str:
            url, headers = by(user)
            return client.get(url, headers=headers).text

        served = {user: ask(user) for user in range(20)}
        assert len(set(served.values())) >= 3
        assert all(ask(user) == port for user, port in served.items() for _ in range(2))


@pytest.mark.parametrize("mesh", ["useSourceIp: true"], indirect=True)
def test_without_a_caller_this_process_is_the_source(mesh: meshlib.Mesh) -> None:
    with meshlib.Client(mesh=mesh) as client:
        assert len({client.get("http://carts:9080/").text for _ in range(20)}) == 1


@pytest.mark.parametrize("mesh", ["httpCookie: {name: cart, ttl: 60s, path: /}"], indirect=True)
def test_a_client_gets_a_cookie_and_stays(mesh: meshlib.Mesh) -> None:
    served = set()
    for _ in range(20):
        with meshlib.Client(mesh=mesh) as client:
            first = client.get("http://carts:9080/")
            assert first.headers["set-cookie"].endswith("; Max-Age=60; Path=/; HttpOnly")
            again = [client.get("http://carts:9080/") for _ in range(3)]
            assert [each.text for each in again] == [first.text] * 3
            assert not any("set-cookie" in each.headers for each in again)
            served.add(first.text)
    assert len(served) >= 3
