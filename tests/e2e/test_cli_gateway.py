"""`meshlib gateway`: what it says of what it can't use."""

import contextlib
import os
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import httpx
import pytest
from support.commands import MESHLIB, meshlib, process, wait_until
from support.edge import edge
from support.secure_mesh import SecureMesh, secure_mesh

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


def refusals(mesh: SecureMesh) -> list[str]:
    """What the status says of what clients refused."""
    assert mesh.service is not None
    return [kind["nack"] for client in mesh.service.status()["clients"] for kind in client["kinds"]]


def test_a_port_that_is_taken_is_told_and_the_others_are_served(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        taken = stack.enter_context(contextlib.closing(socket.create_server(("127.0.0.1", 0))))
        mesh = stack.enter_context(secure_mesh(tmp_path, GATEWAY))
        options = ("--port", f"8081={taken.getsockname()[1]}")
        made = stack.enter_context(edge(mesh, 8082, options=options))
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        word = f"port 8081 of Gateway default/edge mesh.yaml:17 is not served: {where} is in use by "
        wait_until(lambda: word in made.said, 30, "the word")
        wait_until(lambda: any("cannot bind" in text for text in refusals(mesh)), 30, "the word at control")
        assert made.get("/", "any.example", 8082).status_code == 404
        assert any("cannot bind" in text for text in refusals(mesh)), "what is accepted since hides it"
        assert f" ({os.getpid()})" in made.said
        taken.close()
        wait_until(lambda: "mesh.yaml:17 is served now" in made.said, 30, "the word about its end")
        assert httpx.get(f"http://{where}/", trust_env=False).status_code == 404
        wait_until(lambda: not any(refusals(mesh)), 30, "the end of it at control")
        assert made.said.count(" is not served: ") == 1
        assert "config rejected" not in made.said


def test_a_stop_is_heard_while_the_control_service_is_silent(tmp_path: Path) -> None:
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as silent:
        own = {name: value for name, value in os.environ.items() if not name.startswith("MESHLIB_")}
        own |= {"MESHLIB_CONTROL": f"127.0.0.1:{silent.getsockname()[1]}", "MESHLIB_STATE_DIR": str(tmp_path)}
        own |= {"MESHLIB_TOKEN": "x", "MESHLIB_CA_FINGERPRINT": "sha256:" + "0" * 64}
        made = subprocess.Popen(
            [*MESHLIB, "gateway"], env=own, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        try:
            silent.settimeout(30)
            accepted, _ = silent.accept()
            with accepted:
                began = time.monotonic()
                made.send_signal(signal.SIGHUP)
                assert made.communicate(timeout=20) == (b"", b"")
                assert made.returncode == 0
                assert time.monotonic() - began < 5
        finally:
            made.kill()
            made.communicate()


def test_one_with_the_token_of_another_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with secure_mesh(tmp_path, GATEWAY) as mesh:
        settings = mesh.settings("ratings") | {"service_account": "ingress", "state_dir": tmp_path / "edge"}
        monkeypatch.delenv("MESHLIB_ALLOW_PLAINTEXT", raising=False)
        for name, value in settings.items():
            monkeypatch.setenv(f"MESHLIB_{name.upper()}", str(value))
        done = meshlib("gateway")
    assert done.returncode == 2
    assert "the certificate is of spiffe://cluster.local/ns/default/sa/ratings" in done.stderr


def test_a_folder_that_is_too_long_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / ("x" * 100)
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setenv("MESHLIB_ALLOW_PLAINTEXT", "true")
    done = meshlib("gateway", "--control", "127.0.0.1:1")
    assert done.returncode == 2
    assert "too long for a Unix socket" in done.stderr
    assert list(folder.iterdir()) == []
