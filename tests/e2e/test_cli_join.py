"""`meshlib control` with its authority: what it prints is all that a workload needs to join."""

import os
import re
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.commands import MESHLIB, Control, answers, meshlib, wait_until
from support.ports import free_port
from support.turning import turn

MESH = """
apiVersion: v1
kind: Service
metadata: {name: reviews}
spec:
  ports: [{port: 80, name: http}]
  selector: {app: reviews}
"""
JOIN = """
import meshlib, sys
with meshlib.connect() as mesh, meshlib.Client(mesh=mesh) as client:
    print(client.get("http://reviews.default.svc.cluster.local/").status_code, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def secured(monkeypatch: pytest.MonkeyPatch, plaintext: None) -> None:
    """No plaintext here."""
    monkeypatch.delenv("MESHLIB_ALLOW_PLAINTEXT")


@contextmanager
def control(tmp_path: Path, *options: str) -> Iterator[tuple[Control, Path]]:
    """A secured service on a folder with one service; and its log."""
    folder, log = tmp_path / "mesh", tmp_path / "log"
    folder.mkdir(exist_ok=True)
    (folder / "mesh.yaml").write_text(MESH)
    address = f"127.0.0.1:{free_port()}"
    state = ("--state", str(tmp_path / "state"))
    with log.open("w") as file:
        process = subprocess.Popen(
            [*MESHLIB, "control", str(folder), "--listen", address, *state, *options],
            stdout=file,
            stderr=subprocess.STDOUT,
            text=True,
        )
    served = Control(address, process, state)
    try:
        wait_until(lambda: answers(served) and "Who is connected" in log.read_text(), 60, "the service")
        yield served, log
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Control, Path]]:
    """One that serves until the tests of this file are over; its folder is its log's."""
    with control(tmp_path_factory.mktemp("running")) as found:
        yield found


def join(
    environ: dict[str, str], until: Callable[[], bool] = lambda: True
) -> subprocess.CompletedProcess[str]:
    """A workload that asks once and, once it was answered, stays until that holds."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("MESHLIB_")}
    process = subprocess.Popen(
        [sys.executable, "-c", JOIN],
        env=own | environ,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        answer = process.stdout.readline()
        if answer:
            wait_until(until, 30, "its line")
        _, errors = process.communicate(timeout=60)
    return subprocess.CompletedProcess(process.args, process.returncode, answer, errors)


def printed(log: Path, account: str) -> dict[str, str]:
    """The environment that was printed, its command run."""
    found: dict[str, str] = {}
    for line in re.findall(r"^  export (.*)$", log.read_text(), re.MULTILINE):
        for name, value in re.findall(r"(MESHLIB_[A-Z_]+)=(\$\(.*\)|\S+)", line):
            found[name] = value.replace("NAME", account)
    done = meshlib(*found["MESHLIB_TOKEN"].removeprefix("$(meshlib ").removesuffix(")").split())
    assert done.returncode == 0, done.stderr
    return found | {"MESHLIB_TOKEN": done.stdout.strip()}


def test_what_is_printed_is_enough_to_join(running: tuple[Control, Path], tmp_path: Path) -> None:
    served, log = running
    environ = printed(log, "cart") | {"MESHLIB_STATE_DIR": str(tmp_path / "app")}
    assert set(environ) == {
        "MESHLIB_CONTROL",
        "MESHLIB_CA_FINGERPRINT",
        "MESHLIB_NAMESPACE",
        "MESHLIB_SERVICE_ACCOUNT",
        "MESHLIB_TOKEN",
        "MESHLIB_STATE_DIR",
    }
    done = join(environ, lambda: "client connected: default/cart (meshlib)" in log.read_text())
    assert (done.returncode, done.stdout) == (0, "503\n"), done.stderr
    assert served.status()["errors"] == []
    said = log.read_text()
    assert environ["MESHLIB_TOKEN"] not in said
    assert "PRIVATE KEY" not in said


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"MESHLIB_CA_FINGERPRINT": "sha256:" + "0" * 64}, "its certificate authority is another one"),
        ({"MESHLIB_TOKEN": ""}, "there is nothing that proves who this is"),
        ({"MESHLIB_TOKEN": "a.b.c"}, "UNAUTHENTICATED"),
        ({"MESHLIB_NAMESPACE": "bank"}, "PERMISSION_DENIED"),
    ],
)
def test_who_lacks_one_of_it_stays_out(
    change: dict[str, str], why: str, running: tuple[Control, Path], tmp_path: Path
) -> None:
    _, log = running
    given = {"MESHLIB_STATE_DIR": str(tmp_path / "app"), "MESHLIB_FIRST_CALL_TIMEOUT": "2"}
    done = join(printed(log, "outsider") | given | change)
    assert [line for line in log.read_text().splitlines() if "connected: default/outsider" in line] == []
    assert done.returncode != 0
    assert why in done.stderr


def test_secrets_are_the_owners_alone(running: tuple[Control, Path]) -> None:
    state = running[1].parent / "state"
    assert stat.S_IMODE(state.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in state.iterdir()} == {0o600}


def test_status_from_elsewhere_needs_an_operators_token(
    running: tuple[Control, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    served, log = running
    state = log.parent / "state"
    monkeypatch.setenv("MESHLIB_CA_FILE", str(state / "roots.pem"))
    ask = ("status", "--control", served.address, "--output", "json")
    for options, code in (((), 1), (("--operator",), 0)):
        token = meshlib("ca", "token", "--state", str(state), *options).stdout.strip()
        monkeypatch.setenv("MESHLIB_TOKEN", token)
        done = meshlib(*ask)
        assert done.returncode == code, done.stderr
        if code:
            assert "is no operator" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("--ttl", "soon"), "is no duration"),
        (("--ttl", "9000h"), "lifetime of a token"),
        (("--namespace", "a/b"), "--namespace"),
        (("--operator", "--namespace", "shop"), "operators are of istio-system"),
    ],
)
def test_tokens_that_are_not_made(arguments: tuple[str, ...], why: str, tmp_path: Path) -> None:
    from meshlib.control.ca.mesh import MeshNote

    (tmp_path / "state").mkdir(mode=0o700)
    MeshNote().write(tmp_path / "state")
    done = meshlib("ca", "token", "--state", str(tmp_path / "state"), *arguments)
    assert done.returncode == 2
    assert why in done.stderr
    assert done.stdout == ""


def test_no_token_without_an_authority(tmp_path: Path) -> None:
    done = meshlib("ca", "token", "--state", str(tmp_path / "nowhere"))
    assert done.returncode == 2
    assert "no control service has kept its state" in done.stderr


def test_the_trust_domain_is_the_meshconfigs(tmp_path: Path) -> None:
    (tmp_path / "mesh").mkdir()
    (tmp_path / "mesh" / "config.yaml").write_text(
        "apiVersion: mesh.istio.io/v1alpha1\nkind: MeshConfig\n"
        "trustDomain: shop.example\nrootNamespace: ops\n"
    )
    with control(tmp_path):
        said = (tmp_path / "state" / "mesh.json").read_text()
    assert said == '{"trust_domain": "shop.example", "root_namespace": "ops"}'


def test_a_rotation_is_told_step_by_step_and_what_is_printed_last_is_enough_to_join(tmp_path: Path) -> None:
    with control(tmp_path) as (_, log):
        old = printed(log, "cart")
        state = tmp_path / "state"
        done = meshlib("ca", "rotate-root", "--state", str(state))
        assert done.returncode == 0, done.stderr
        wait_until(lambda: " is new: trusted from now on beside " in log.read_text(), 30, "the announcement")
        turn(state)
        wait_until(lambda: " issues now. " in log.read_text(), 30, "the new root to issue")
        turn(state, settled=True)
        wait_until(lambda: " is trusted no more. " in log.read_text(), 30, "the end of the old root")
        new = printed(log, "cart")
        given = {"MESHLIB_STATE_DIR": str(tmp_path / "app"), "MESHLIB_FIRST_CALL_TIMEOUT": "2"}
        assert new["MESHLIB_CA_FINGERPRINT"] != old["MESHLIB_CA_FINGERPRINT"]
        assert join(old | given).returncode != 0
        done = join(new | given)
        assert (done.returncode, done.stdout) == (0, "503\n"), done.stderr
        said = log.read_text()
    assert f"root {new['MESHLIB_CA_FINGERPRINT']} issues now. {old['MESHLIB_CA_FINGERPRINT']} is" in said
