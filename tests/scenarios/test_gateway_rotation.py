"""A gateway while certificates end and the mesh's root is replaced: nobody notices."""

import ssl
import threading
import time
from pathlib import Path

from support.commands import wait_until
from support.edge import Edge, edge
from support.secure_mesh import secure_mesh

from meshlib.identity.pem import split_pem

LIFE = 8
OVER_AN_HOUR = 2 * 3600
DOCUMENTS = """
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default}
spec: {mtls: {mode: STRICT}}
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: edge}
spec:
  selector: {istio: ingressgateway}
  servers:
  - port: {number: 80, name: http, protocol: HTTP}
    hosts: ["*"]
  - port: {number: 15443, name: mesh, protocol: HTTPS}
    hosts: ["*"]
    tls: {mode: ISTIO_MUTUAL}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web}
spec:
  hosts: [any.example]
  gateways: [edge]
  http: [{route: [{destination: {host: reviews}}]}]
"""


class Asking:
    """Asks all the time."""

    def __init__(self, gate: Edge) -> None:
        self.failed: list[str] = []
        self.answers = 0
        self._gate, self._end = gate, threading.Event()
        self._thread = threading.Thread(target=self._ask)

    def _ask(self) -> None:
        while not self._end.wait(0.05):
            try:
                status = self._gate.get("/", "any.example").status_code
            except OSError as error:
                self.failed.append(repr(error))
                continue
            self.answers += status == 200
            if status != 200:
                self.failed.append(f"{time.time()} {status}")

    def __enter__(self) -> "Asking":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join(20)

    def more(self) -> None:
        until = self.answers + 20
        wait_until(lambda: self.answers >= until or bool(self.failed), 60, "answers")


def shown(gate: Edge) -> bytes | None:
    """What the gateway shows to workloads of the mesh, whoever signed it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with gate.secure("any.example", 15443, context) as made:
        return made.getpeercert(binary_form=True)


def renewed(gate: Edge, asking: Asking) -> None:
    """Waits for another certificate than that of now."""
    before = shown(gate)
    wait_until(lambda: shown(gate) != before, 60, "another certificate")
    asking.more()


def test_the_root_is_replaced(tmp_path: Path) -> None:
    """Each phase lasts until the gateway did what it is for; certificates last for seconds."""
    with (
        secure_mesh(tmp_path, DOCUMENTS, max_ttl_s=LIFE) as mesh,
        mesh.served("serve-renewing"),
        edge(mesh, 80, 15443) as gate,
    ):
        wait_until(lambda: gate.get("/", "any.example").status_code == 200, 30, "the first answer")
        with Asking(gate) as asking:
            mesh.rotate_root(overlap_s=OVER_AN_HOUR, keep_s=OVER_AN_HOUR)
            wait_until(lambda: len(split_pem(mesh.authority.roots_pem)) == 2, 20, "the new root")
            renewed(gate, asking)  # with which the agent hears of the new root
            mesh.turn()
            renewed(gate, asking)
            renewed(gate, asking)  # of the new root; what was of the old one has ended
            mesh.turn(settled=True)
            wait_until(lambda: len(split_pem(mesh.authority.roots_pem)) == 1, 20, "one root")
            renewed(gate, asking)
        assert asking.failed == []
        assert gate.process.poll() is None
