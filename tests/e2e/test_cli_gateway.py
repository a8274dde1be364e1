"""`meshlib gateway`: what it says of what it can't use."""

import contextlib
import socket
from pathlib import Path

import pytest
from support.commands import meshlib, process, wait_until
from support.edge import edge
from support.secure_mesh import secure_mesh

GATEWAY = """
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: edge}
spec:
  selector: {istio: ingressgateway}
  servers:
  - port: {number: 8081, name: taken, protocol: HTTP}
    hosts: ["*"]
  - port: {number: 8082, name: free, protocol: HTTP}
    hosts: ["*"]
"""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--port", "80"), "'80' is not PORT=OWN"),
        (("--port", "80=0"), "'80=0' is not PORT=OWN"),
        (("--port", "80=1", "--port", "80=2"), "port 80 stands twice"),
        (("--address", "localhost"), "'localhost' is no IP address"),
        (("--control", "./mesh"), "a gateway needs a service, HOST:PORT"),
        (("--control", "nowhere"), "control: found 'nowhere'"),
        (("--name", "a b"), "allowed is"),
    ],
)
def test_what_can_not_be_used(arguments: tuple[str, ...], said: str) -> None:
    done = meshlib("gateway", *arguments)
    assert done.returncode == 2
    assert said in " ".join((done.stdout + done.stderr).replace("│", " ").split())


def test_it_says_why_it_has_no_certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.delenv("MESHLIB_ALLOW_PLAINTEXT", raising=False)
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
    done = process("gateway", "--control", address)
    assert done.returncode == 1
    assert "no certificate from the control service" in done.stderr
    assert "MESHLIB_CA_FINGERPRINT" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_port_that_is_taken_is_told_and_the_others_are_served(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        taken = stack.enter_context(contextlib.closing(socket.create_server(("127.0.0.1", 0))))
        mesh = stack.enter_context(secure_mesh(tmp_path, GATEWAY))
        options = ("--port", f"8081={taken.getsockname()[1]}")
        made = stack.enter_context(edge(mesh, 8082, options=options))
        wait_until(lambda: "cannot bind" in made.said, 30, "the word")
        assert made.get("/", "any.example", 8082).status_code == 404
