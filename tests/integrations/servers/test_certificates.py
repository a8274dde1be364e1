"""gunicorn's workers show certificates that are good, whenever they were forked."""

import os
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from support.commands import wait_until
from support.ports import free_port
from support.secure_mesh import SecureMesh, secure_mesh
from support.serving import TESTS, gunicorn

LIFE = 8
"""Seconds of a certificate; it is renewed after a quarter of them."""


@pytest.mark.parametrize("options", [(), ("--preload",)], ids=["plain", "preload"])
def test_a_respawned_worker_renews(tmp_path: Path, options: tuple[str, ...]) -> None:
    with secure_mesh(tmp_path, max_ttl_s=LIFE) as control, served(control, *options) as (arbiter, port):
        wait_until(lambda: shown(port) is not None, 60, "a server")
        (first,) = children(arbiter)
        os.kill(int(first), signal.SIGKILL)
        wait_until(lambda: children(arbiter) not in ([], [first]), 60, "another worker")
        wait_until(lambda: shown(port) is not None, 60, "its port")
        (second,) = children(arbiter)
        seen: dict[int, float] = {}
        begun = time.time()
        while len(seen) < 3 or time.time() < begun + 1.1 * LIFE:
            assert time.time() < begun + 8 * LIFE
            certificate = shown(port)
            assert certificate is not None
            left = certificate.not_valid_after_utc.timestamp() - time.time()
            assert left > 0.2 * LIFE
            seen[certificate.serial_number] = left
            time.sleep(0.1)
        assert children(arbiter) == [second]


@contextmanager
def served(control: SecureMesh, *options: str) -> Iterator[tuple[int, int]]:
    """One gunicorn worker; gives its arbiter's process and port."""
    port = free_port()
    command = gunicorn("meshlib_gunicorn.SyncMeshWorker", "support.served_flask:app", *options, port=port)
    command[1:2] = ["-m", "support.renewing", "0.25"]  # for `-m`
    own = {name: value for name, value in os.environ.items() if not name.startswith("MESHLIB_")}
    own["PYTHONPATH"] = os.pathsep.join((str(TESTS), own.get("PYTHONPATH", "")))
    settings: dict[str, Any] = {**control.settings("reviews"), "labels": "app=reviews", "drain": "0.1"}
    settings["state_dir"] = str(control.folder / "served")
    own |= {f"MESHLIB_{name.upper()}": value for name, value in settings.items()}
    with (control.folder / "server.log").open("w") as log:
        process = subprocess.Popen(command, env=own, stdout=log, stderr=subprocess.STDOUT)
    try:
        yield process.pid, port
    finally:
        process.terminate()
        process.wait(40)


def shown(port: int) -> x509.Certificate | None:
    """The certificate that the server shows; None: it takes no connection."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with (
            socket.create_connection(("127.0.0.1", port), 5) as plain,
            context.wrap_socket(plain) as secured,
        ):
            found = secured.getpeercert(binary_form=True)
    except OSError:
        return None
    assert found is not None
    return x509.load_der_x509_certificate(found)


def children(process: int) -> list[str]:
    return Path(f"/proc/{process}/task/{process}/children").read_text().split()
