"""`meshlib control`: what it loads, what it says of broken files, how it ends."""

import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.commands import MESHLIB, answers, control, meshlib, wait_until
from support.commands import Control as Served
from support.commands import process as command
from support.ports import free_port

GOOD = """
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews}
spec:
  hosts: [reviews.example]
  http:
  - timeout: 2s
    route: [{destination: {host: reviews.example}}]
"""

HOST = """
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: reviews}
spec:
  hosts: [reviews.example]
  ports: [{number: 80, name: http, protocol: HTTP}]
  resolution: DNS
"""


@pytest.fixture(autouse=True)
def the_host_is_known(tmp_path: Path) -> None:
    (tmp_path / "host.yaml").write_text(HOST)


@contextmanager
def start(folder: Path) -> Iterator[tuple[Served, Callable[[signal.Signals], str]]]:
    """A running service, and a call that ends it with a signal and gives all that it printed."""
    address = f"127.0.0.1:{free_port()}"
    process = subprocess.Popen(
        [*MESHLIB, "control", str(folder), "--listen", address, "--allow-plaintext"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )

    def end(number: signal.Signals) -> str:
        process.send_signal(number)
        return process.communicate(timeout=60)[0]

    served = Served(address, process)
    try:
        wait_until(lambda: answers(served), 60, "the control service")
        yield served, end
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_plaintext_is_told_loudly_and_a_signal_ends_it_in_order(
    number: signal.Signals, tmp_path: Path
) -> None:
    (tmp_path / "good.yaml").write_text(GOOD)
    with start(tmp_path) as (served, end):
        said = end(number)
    assert served.process.returncode == 0, said
    assert served.address in said
    assert "loaded 2 documents: " in said
    assert "Traceback" not in said
    assert "PLAINTEXT: no TLS, and nobody is asked who he is" in said
    assert "MESHLIB_CA_FINGERPRINT" not in said


def test_a_broken_document_is_told_with_file_and_line_and_the_others_served(tmp_path: Path) -> None:
    (tmp_path / "good.yaml").write_text(GOOD)
    (tmp_path / "bad.yaml").write_text(GOOD.replace("name: reviews", "name: other").replace("2s", "soon"))
    with start(tmp_path) as (served, end):
        errors = served.status()["errors"]
        said = end(signal.SIGTERM)
    assert len(errors) == 1
    assert "VirtualService default/other bad.yaml:8" in errors[0]
    assert "'soon'" in errors[0]
    assert errors[0] in said
    assert "loaded 2 documents: " in said


def test_an_edit_is_told_and_a_broken_one_keeps_the_last_good_state_until_it_is_repaired(
    tmp_path: Path,
) -> None:
    (tmp_path / "good.yaml").write_text(GOOD)
    with start(tmp_path) as (served, end):
        before = served.status()["version"]
        (tmp_path / "good.yaml").write_text(GOOD.replace("2s", "3s"))
        wait_until(lambda: served.status()["version"] != before, 60, "the edit")
        (tmp_path / "good.yaml").write_text(GOOD.replace("2s", "soon"))
        wait_until(lambda: served.status()["errors"] != [], 60, "the error")
        (tmp_path / "good.yaml").write_text(GOOD)
        wait_until(lambda: served.status()["errors"] == [], 60, "the repair")
        said = end(signal.SIGTERM)
    assert "changed VirtualService default/reviews (good.yaml:" in said
    assert "good.yaml:8" in said
    assert "what is broken keeps its last good state" in said
    assert "1 problem fixed" in said
    assert "gone" not in said


def test_a_taken_port_is_exit_1(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = command("control", str(tmp_path), "--listen", address, "--state", str(tmp_path / "state"))
    assert done.returncode == 1
    assert f"can't listen on {address}" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_plaintext_has_no_authority(tmp_path: Path) -> None:
    done = command("control", str(tmp_path), "--allow-plaintext", "--trust-domain", "x.example")
    assert done.returncode == 2
    assert "there is no authority" in done.stderr


def test_the_helper_ends_what_it_starts(tmp_path: Path) -> None:
    with control(tmp_path) as served:
        assert served.status()["clients"] == []
    assert served.process.returncode == 0


@pytest.mark.parametrize("text", ["ingress", "/ingress", "edge/", "edge/in gress", "a/b/c", ""])
def test_a_gateway_is_a_namespace_with_an_account(text: str, tmp_path: Path) -> None:
    done = meshlib("control", str(tmp_path), "--gateway", text)
    assert done.returncode == 2
    assert "is not NAMESPACE/ACCOUNT" in " ".join((done.stdout + done.stderr).replace("│", " ").split())
