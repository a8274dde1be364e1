"""`meshlib ca`: what an operator sees, and that a running authority follows."""

import json
import stat
import time
from pathlib import Path

import pytest
from support.commands import meshlib
from support.pki import ca, plugin

from meshlib.control.ca.authority import Authority


@pytest.fixture
def running(tmp_path: Path) -> Authority:
    return Authority.open(tmp_path / "state", trust_domain="cluster.local", now=time.time())


def words(text: str) -> str:
    return " ".join(text.replace("│", " ").split())


def test_status_in_words_and_as_json(tmp_path: Path, running: Authority) -> None:
    state = str(tmp_path / "state")
    done = meshlib("ca", "status", "--state", state)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[:2] == [
        "certificate authority: own, for trust domain cluster.local",
        f"fingerprint: {running.fingerprint}",
    ]
    assert "issues, ends " in done.stdout
    assert "UTC (in 3650 days)" in done.stdout
    assert "One root is trusted, and it issues." in done.stdout
    found = json.loads(meshlib("ca", "status", "--state", state, "-o", "json").stdout)
    assert found["fingerprint"] == running.fingerprint
    assert found["rotation"] == {"phase": "settled", "until": None}
    assert "PRIVATE" not in json.dumps(found)


def test_rotate_root_and_the_service_notices(tmp_path: Path, running: Authority) -> None:
    state, old = str(tmp_path / "state"), running.fingerprint
    done = meshlib("ca", "rotate-root", "--state", state, "--overlap", "1s", "--keep", "1h", "--force")
    assert done.returncode == 0, done.stderr
    assert "warning: --overlap 1s: who is not connected until the new root issues does not" in done.stderr
    assert "The new root is trusted beside the old one and issues from " in done.stdout
    assert "Nothing to do. Before then, give the new root to whoever trusts a file" in done.stdout
    now = time.time()
    assert running.reload(now + 2) is True
    assert running.fingerprint != old
    assert running.roots_pem.count("BEGIN CERTIFICATE") == 2
    assert (tmp_path / "state/roots.pem").read_text() == running.roots_pem


def test_a_rotation_that_leaves_clients_out_has_to_be_forced(tmp_path: Path, running: Authority) -> None:
    state, old = str(tmp_path / "state"), running.roots_pem
    done = meshlib("ca", "rotate-root", "--state", state, "--overlap", "5s", "--keep", "8s")
    assert (done.returncode, done.stdout) == (2, "")
    first, second, last = done.stderr.splitlines()
    assert first.startswith("warning: --overlap 5s: ")
    assert "Safe is 1h" in first
    assert second.startswith("warning: --keep 8s: ")
    assert "Safe is 25h" in second
    assert last == "Nothing was done; --force does it all the same."
    assert running.reload(time.time() + 2) is False
    assert running.roots_pem == old
    done = meshlib("ca", "rotate-root", "--state", state, "--overlap", "1h", "--keep", "25h")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_second_rotation_is_one_sentence(tmp_path: Path, running: Authority) -> None:
    state = str(tmp_path / "state")
    assert meshlib("ca", "rotate-root", "--state", state).returncode == 0
    done = meshlib("ca", "rotate-root", "--state", state)
    assert done.returncode == 2
    assert done.stderr == "meshlib: a rotation is under way; wait until its root issues\n"


def test_the_default_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    done = meshlib("ca", "status")
    assert done.returncode == 2
    assert f"there is no certificate authority in {tmp_path}/meshlib-control" in done.stderr
    Authority.open(tmp_path / "meshlib-control", trust_domain="cluster.local", now=time.time())
    assert meshlib("ca", "status").returncode == 0


@pytest.mark.parametrize("option", ["--overlap", "--keep"])
def test_durations_are_checked(running: Authority, tmp_path: Path, option: str) -> None:
    for text in ("soon", "-1h", "1"):
        done = meshlib("ca", "rotate-root", "--state", str(tmp_path / "state"), option, text)
        assert done.returncode == 2
        assert f"'{text}' is no duration such as 24h or 30m" in words(done.stderr)


def test_an_open_folder_is_one_sentence(running: Authority, tmp_path: Path) -> None:
    (tmp_path / "state").chmod(0o755)
    done = meshlib("ca", "status", "--state", str(tmp_path / "state"))
    assert done.returncode == 2
    assert done.stderr == (
        f"meshlib: the folder {tmp_path}/state is open to other users; run: chmod 700 {tmp_path}/state\n"
    )


def test_plug_in_files_are_checked(tmp_path: Path) -> None:
    now = time.time()
    plugin(tmp_path, root=ca("plugged root", begin=now - 9, end=now + 9e6), now=now)
    done = meshlib("ca", "status", "--plugin", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "certificate authority: Istio's plug-in files" in done.stdout
    (tmp_path / "ca-key.pem").chmod(0o644)
    done = meshlib("ca", "status", "--plugin", str(tmp_path))
    assert done.returncode == 2
    assert done.stderr == (
        f"meshlib: {tmp_path}/ca-key.pem is open to other users; run: chmod 600 {tmp_path}/ca-key.pem\n"
    )
    assert stat.S_IMODE((tmp_path / "ca-key.pem").stat().st_mode) == 0o644


def test_help_of_each() -> None:
    assert "rotate-root" in meshlib("ca", "--help").stdout
    for command in ("status", "rotate-root"):
        done = meshlib("ca", command, "--help")
        assert done.returncode == 0
        assert f"Usage: meshlib ca {command}" in done.stdout
