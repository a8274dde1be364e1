"""The example of a gRPC service, as a user runs it: real processes, certificates of the control service's."""

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.commands import MESHLIB, Control, answers, wait_until
from support.ports import free_port
from support.serving import SecureMesh

EXAMPLE = Path(__file__).parents[2] / "examples" / "grpc_greeter"


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureMesh]:
    folder = tmp_path_factory.mktemp("mesh")
    address = f"127.0.0.1:{free_port()}"
    command = [
        *MESHLIB,
        "control",
        str(EXAMPLE / "mesh"),
        "--listen",
        address,
        "--state",
        str(folder / "state"),
    ]
    with (folder / "control.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, text=True)
    try:
        wait_until(lambda: answers(Control(address, process)), 60, "the control service")
        yield SecureMesh(folder, address)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def asked(mesh: SecureMesh, account: str, number: str) -> list[str]:
    """What somebody of that account is answered."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLE / "client.py"), "jason", number],
        env=mesh.environ(account),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def until_found(mesh: SecureMesh) -> list[str]:
    """Waits until the server is known to its callers."""
    end = time.monotonic() + 60
    while (found := asked(mesh, "page", "3"))[0].startswith("UNAVAILABLE"):
        assert time.monotonic() < end, found
    return found


@pytest.mark.parametrize("program", ["server.py", "aio_server.py"])
def test_the_example(mesh: SecureMesh, program: str) -> None:
    command = [sys.executable, "-W", "error", str(EXAMPLE / program), "127.0.0.1:0"]
    with mesh.process(command, "greeter", "greeter", "") as served:
        wait_until(lambda: "serving at port" in served.said, 60, "the server")
        assert until_found(mesh) == ["hello jason, asked by page", "0 1 2"]
        assert asked(mesh, "page", "x")[1] == "INVALID_ARGUMENT 'x' is no number"
        assert asked(mesh, "other", "3") == [
            "hello jason, asked by other",
            "PERMISSION_DENIED RBAC: access denied",
        ]
        port = int(served.said.split()[-1])
        with socket.create_connection(("127.0.0.1", port), 10) as plain:
            plain.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0")
            assert closed(plain)


def closed(connection: socket.socket) -> bool:
    """Whether the other end said nothing and left."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True
