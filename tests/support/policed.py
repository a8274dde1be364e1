"""A workload whose policies are YAML in a folder, in this process, and peers that say who they are."""

from pathlib import Path

import meshlib
from meshlib.core.request import Peer
from meshlib.dataplane.gate import Gate

PAGE = "spiffe://cluster.local/ns/default/sa/productpage"
STRANGER = "spiffe://cluster.local/ns/default/sa/stranger"
PORT = 9080
POLICY = """
apiVersion: v1
kind: Service
metadata: {name: reviews}
spec:
  ports: [{port: 9080, name: http}]
  selector: {app: reviews}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: only-the-page}
spec:
  selector: {matchLabels: {app: reviews}}
  rules:
  - from: [{source: {principals: [cluster.local/ns/default/sa/productpage]}}]
    to: [{operation: {notPaths: ["/admin*"]}}]
"""


def gate(folder: Path, documents: str = POLICY) -> Gate:
    """The gate of `reviews`, which lets in the product page, but not to /admin. Close its mesh."""
    (folder / "mesh.yaml").write_text(documents)
    who = {"labels": "app=reviews", "service_account": "reviews", "forward_headers": ("end-user",)}
    return Gate(meshlib.connect(str(folder), **who), PORT)


def peer(principal: str) -> Peer:
    """A connection with a certificate of `principal`; empty: in plain text."""
    return Peer(("10.0.0.7", 40001), ("10.0.0.1", PORT), principal, "", bool(principal))
