"""PERMISSIVE to STRICT and back, while mesh clients of every kind ask: nothing fails, plain text is out."""

import contextlib
import http.client
import socket
from pathlib import Path

from support.commands import wait_until
from support.secure_mesh import asked, failures, more, secure_mesh

STRICT = """
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: istio-system}
spec: {mtls: {mode: STRICT}}
"""
PERMISSIVE = STRICT.replace("STRICT", "PERMISSIVE")
PAGE = "spiffe://cluster.local/ns/default/sa/productpage"
REQUEST = b"GET / HTTP/1.1\r\nHost: reviews\r\n\r\n"


def plain(port: int) -> bytes:
    """The status line that a plaintext caller gets; nothing: it is cut off."""
    try:
        with socket.create_connection(("127.0.0.1", port), 20) as made:
            made.sendall(REQUEST)
            return made.recv(100).partition(b"\r\n")[0]
    except ConnectionError:
        return b""


def test_to_strict_and_back(tmp_path: Path) -> None:
    with (
        secure_mesh(tmp_path) as control,
        control.served() as app,
        control.joined("productpage") as mesh,
        asked(mesh) as asking,
    ):
        more(asking)
        for _ in range(3):
            assert plain(app.port) == b"HTTP/1.1 200 OK"
            control.edit(STRICT)
            wait_until(lambda: plain(app.port) == b"", 60, "STRICT")
            more(asking)
            control.edit(PERMISSIVE)
            wait_until(lambda: plain(app.port) != b"", 60, "PERMISSIVE")
            more(asking)
    assert failures(asking) == []
    assert [one.principals for one in asking] == [{PAGE}] * 4


def test_an_older_plaintext_connection_is_not_served_under_strict(tmp_path: Path) -> None:
    with secure_mesh(tmp_path) as control, control.served() as app:
        old = http.client.HTTPConnection("127.0.0.1", app.port, timeout=20)
        with contextlib.closing(old):
            old.request("GET", "/")
            assert old.getresponse().read().startswith(b'{"principal": ""')
            control.edit(STRICT)
            wait_until(lambda: plain(app.port) == b"", 60, "STRICT")
            old.request("GET", "/")
            answer = old.getresponse()
            assert (answer.status, answer.read()) == (403, b"mutual TLS is required")
