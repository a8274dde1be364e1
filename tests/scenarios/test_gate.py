"""A gate with policies from YAML: what is asked of callers, and which line said no."""

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import meshlib
from meshlib.core.actions import Reply
from meshlib.core.request import Peer, RequestHead
from meshlib.dataplane.gate import Admitted, Gate

PORT = 9080
POLICIES = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-admin, namespace: default}
spec:
  action: DENY
  rules:
  - to: [{operation: {paths: ["/admin*"]}}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: web-only, namespace: default}
spec:
  rules:
  - from: [{source: {principals: [cluster.local/ns/default/sa/web]}}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: ask, namespace: default}
spec:
  action: CUSTOM
  provider: {name: door}
  rules:
  - to: [{operation: {paths: ["/asked"]}}]
"""
DOOR = """
apiVersion: v1
kind: Service
metadata: {name: door, namespace: default}
spec:
  selector: {app: door}
  ports: [{name: http, port: 9000, targetPort: ENDPOINT}]
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: door, namespace: default}
spec: {address: 127.0.0.1, labels: {app: door}}
"""
PROVIDERS = """
extensionProviders:
- name: door
  envoyExtAuthzHttp:
    service: door.default.svc.cluster.local
    port: 9000
    timeout: 5s
    includeRequestHeadersInCheck: [x-let-me]
    headersToUpstreamOnAllow: [x-door]
"""
WEB = Peer(("10.0.0.1", 40000), ("10.0.0.2", PORT), "spiffe://cluster.local/ns/default/sa/web", "", True)
STRANGER = Peer(("10.0.0.1", 40000), ("10.0.0.2", PORT))


class Door(http.server.BaseHTTPRequestHandler):
    """Lets in who says please."""

    def do_GET(self) -> None:
        self.send_response(200 if self.headers.get("x-let-me") == "please" else 418)
        self.send_header("x-door", "open")
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.fixture
def door() -> Iterator[int]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Door) as server:
        server.daemon_threads = False
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def head(path: str, *headers: tuple[bytes, bytes]) -> RequestHead:
    return RequestHead("GET", "http", "reviews:9080", path, list(headers))


async def test_policies_of_a_folder_hold_at_a_port(tmp_path: Path, door: int) -> None:
    (tmp_path / "policies.yaml").write_text(POLICIES)
    (tmp_path / "mesh.yaml").write_text(PROVIDERS)
    (tmp_path / "door.yaml").write_text(DOOR.replace("ENDPOINT", str(door)))
    with meshlib.connect(str(tmp_path)) as mesh:
        gate = Gate(mesh, PORT)
        await gate.aprepare()
        let_in = await gate.aadmit(head("/reviews/1"), WEB)
        assert isinstance(let_in, Admitted)
        assert (let_in.caller.principal, let_in.caller.service_account) == (WEB.principal, "web")
        assert let_in.head.header(b"x-forwarded-client-cert") is not None

        stranger = await gate.aadmit(head("/reviews/1"), STRANGER)
        assert isinstance(stranger, Reply)
        assert (stranger.status, stranger.body) == (403, b"RBAC: access denied")
        assert stranger.facts.detail == "rbac_access_denied_matched_policy[none]"

        for path in ("/admin", "/reviews/../admin", "/x/%2e%2e/admin/", "/%61dmin", "/a/..;/admin"):
            admin = gate.admit(head(path), WEB)
            assert isinstance(admin, Reply), path
            assert admin.facts.route == "ns[default]-policy[no-admin]-rule[0]"
            assert admin.facts.document == "AuthorizationPolicy default/no-admin"
            assert admin.facts.source.endswith("policies.yaml:8")

        asked = await gate.aadmit(head("/asked", (b"x-let-me", b"please")), WEB)
        assert isinstance(asked, Admitted)
        assert asked.head.header(b"x-door") == b"open"
        refused = await gate.aadmit(head("/asked"), WEB)
        assert isinstance(refused, Reply)
        assert (refused.status, refused.facts.flag) == (418, "UAEX")
        assert refused.facts.document == "AuthorizationPolicy default/ask"
