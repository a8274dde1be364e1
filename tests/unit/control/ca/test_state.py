"""The state on disk: its modes, its safety against crashes, other processes and other users."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from support.pki import NOW

from meshlib.control.ca import store
from meshlib.control.ca.authority import Authority
from meshlib.control.ca.issuer import DAY_S
from meshlib.errors import ConfigError
from meshlib.identity.pem import split_pem


def opened(folder: Path, now: float = NOW, domain: str = "cluster.local") -> Authority:
    return Authority.open(folder, trust_domain=domain, now=now)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_modes_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        opened(tmp_path / "above/state")
    finally:
        os.umask(before)
    folder = tmp_path / "above/state"
    assert mode(folder) == 0o700
    assert {path.name: mode(path) for path in folder.iterdir()} == {
        "authority.json": 0o600,
        "lock": 0o600,
        "roots.pem": 0o600,
    }


def test_a_secret_is_closed_from_its_first_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the moment of the rename nothing in the folder was ever open to others."""
    seen: list[int] = []
    replace = Path.replace

    def looking(self: Path, target: Path) -> Path:
        seen.extend(mode(path) for path in self.parent.iterdir())
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", looking)
    before = os.umask(0)
    try:
        opened(tmp_path / "state")
    finally:
        os.umask(before)
    assert seen
    assert set(seen) == {0o600}


def test_it_survives_a_restart(tmp_path: Path) -> None:
    first, second = opened(tmp_path), opened(tmp_path, NOW + 5)
    assert (first.roots_pem, first.fingerprint) == (second.roots_pem, second.fingerprint)
    assert (tmp_path / "roots.pem").read_text() == first.roots_pem


@pytest.mark.parametrize("bits", [0o640, 0o604, 0o620, 0o666])
def test_a_file_that_is_open_to_others_is_refused(tmp_path: Path, bits: int) -> None:
    opened(tmp_path)
    path = tmp_path / "authority.json"
    path.chmod(bits)
    with pytest.raises(ConfigError, match=f"is open to other users; run: chmod 600 {path}"):
        opened(tmp_path)


def test_a_folder_that_is_open_to_others(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    folder.mkdir(mode=0o755)
    opened(folder)  # it was empty and is closed now
    assert mode(folder) == 0o700
    folder.chmod(0o750)
    with pytest.raises(ConfigError, match=f"is open to other users; run: chmod 700 {folder}"):
        opened(folder)


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="can't be used for secrets"):
        opened(tmp_path / "file")
    with pytest.raises(ConfigError, match="can't be used for secrets"):
        opened(tmp_path / "file/below")


def broken(text: str) -> list[str]:
    """Ways in which a file breaks."""
    found = json.loads(text)
    swapped = json.loads(text)
    swapped["generations"][0]["root_key"] = swapped["generations"][0]["issuer_key"]
    return [
        "",
        text[: len(text) // 2],
        "[]",
        "{}",
        json.dumps(found | {"version": 2}),
        json.dumps(found | {"generations": []}),
        json.dumps(found | {"generations": [{}]}),
        json.dumps(swapped),
        text.replace("BEGIN PRIVATE", "BEGIN PRIVY"),
        "x" * (store.MAX_FILE + 1),
        "[" * 100_000,
    ]


@pytest.mark.parametrize("number", range(11))
def test_a_broken_state_is_refused_and_never_made_anew(tmp_path: Path, number: int) -> None:
    opened(tmp_path)
    path = tmp_path / "authority.json"
    secret = json.loads(path.read_text())["generations"][0]["root_key"].splitlines()[1]
    bad = broken(path.read_text())[number]
    path.write_text(bad)
    with pytest.raises(ConfigError, match=r"authority\.json") as caught:
        opened(tmp_path)
    assert secret not in str(caught.value)
    assert path.read_text() == bad


@pytest.mark.parametrize("step", ["fsync", "replace", "mkstemp"])
def test_a_crash_between_writes_leaves_the_old_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    authority = opened(tmp_path)
    before = (tmp_path / "authority.json").read_bytes()

    def dies(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    owner = {"fsync": os, "replace": Path, "mkstemp": store.tempfile}[step]
    with monkeypatch.context() as patched:
        patched.setattr(owner, step, dies)
        with pytest.raises(ConfigError, match=r"authority\.json can't be written: No space left on device"):
            authority.rotate_root(NOW)
    assert (tmp_path / "authority.json").read_bytes() == before
    assert opened(tmp_path).roots_pem == authority.roots_pem


KILLED = """
import os, sys
from pathlib import Path
from meshlib.control.ca.authority import Authority
step, folder, now = sys.argv[1], Path(sys.argv[2]), float(sys.argv[3])
owner = {"fsync": os, "replace": Path}[step]
setattr(owner, step, lambda *_, **__: os._exit(9))
Authority.open(folder, trust_domain="cluster.local", now=now).rotate_root(now)
"""


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("first", [True, False])
def test_a_process_that_is_killed_while_it_writes(tmp_path: Path, step: str, first: bool) -> None:
    known = None if first else opened(tmp_path).roots_pem
    done = subprocess.run(
        [sys.executable, "-c", KILLED, step, str(tmp_path), str(NOW)], check=False, timeout=60
    )
    assert done.returncode == 9
    assert len(list(tmp_path.glob(".authority.json-*"))) == 1
    after = opened(tmp_path)
    assert known in {None, after.roots_pem}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["authority.json", "lock", "roots.pem"]


STARTED = """
import sys
from pathlib import Path
from meshlib.control.ca.authority import Authority
sys.stdin.read(1)
print(Authority.open(Path(sys.argv[1]), trust_domain="cluster.local", now=float(sys.argv[2])).fingerprint)
"""


def test_processes_that_start_at_once_share_one_root(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", STARTED, str(folder), str(NOW)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("x")
        process.stdin.flush()
    found = {process.communicate(timeout=60)[0].strip() for process in processes}
    assert [process.returncode for process in processes] == [0] * 4
    assert found == {opened(folder).fingerprint}


def test_a_lock_that_is_never_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "LOCK_WAIT_S", 0.0)
    with store.locked(tmp_path), pytest.raises(ConfigError, match="another process holds"):
        opened(tmp_path)


def test_a_change_of_another_process_is_noticed(tmp_path: Path) -> None:
    running, command = opened(tmp_path), opened(tmp_path)
    assert running.reload(NOW) is False
    command.rotate_root(NOW)
    assert len(split_pem(running.roots_pem)) == 1
    assert running.reload(NOW) is True
    assert running.roots_pem == command.roots_pem
    assert len(split_pem(running.roots_pem)) == 2
    assert running.reload(NOW) is False


def test_a_change_that_can_not_be_used_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    authority = opened(tmp_path)
    roots, path = authority.roots_pem, tmp_path / "authority.json"
    good = path.read_bytes()
    path.write_bytes(good[:-30])
    for _ in range(3):
        assert authority.reload(NOW) is False
    assert authority.roots_pem == roots
    assert len(caplog.records) == 1
    assert "what was in force stays" in authority.status(NOW)["warnings"][0]
    path.write_bytes(good)
    authority.reload(NOW)
    assert authority.status(NOW)["warnings"] == []
    path.unlink()
    authority.reload(NOW)
    assert "is gone" in authority.status(NOW)["warnings"][0]
    path.touch(mode=0o600)
    path.write_bytes(good)
    path.chmod(0o644)
    authority.reload(NOW)
    assert "open to other users" in authority.status(NOW)["warnings"][0]
    path.chmod(0o600)  # changes no content and no time of content
    authority.reload(NOW)
    assert authority.status(NOW)["warnings"] == []


def test_a_passing_trouble_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority, other = opened(tmp_path), opened(tmp_path)
    other.rotate_root(NOW)
    with monkeypatch.context() as patched:
        patched.setattr(os, "open", lambda *_: (_ for _ in ()).throw(OSError(24, "Too many open files")))
        assert authority.reload(NOW) is False
    assert authority.reload(NOW + 59) is False
    assert authority.reload(NOW + 60) is True


def test_a_disk_that_is_full_when_the_issuer_is_due(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    authority = opened(tmp_path)
    due = NOW + 200 * DAY_S

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(store.tempfile, "mkstemp", full)
        assert [authority.reload(due) for _ in range(2)] == [False, False]
    assert "can't be renewed" in authority.status(due)["warnings"][0]
    assert len(caplog.records) == 1
    assert authority.reload(due) is True
    assert authority.status(due)["warnings"] == []


def test_the_trust_domain_is_kept_and_may_change(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = opened(tmp_path, domain="Old@Example")
    assert first.trust_domain == Authority.existing(tmp_path, now=NOW).trust_domain == "old.example"
    second = opened(tmp_path, domain="new.example")
    assert "was old.example and is now new.example" in caplog.text
    assert second.roots_pem == first.roots_pem
    assert Authority.existing(tmp_path, now=NOW).trust_domain == "new.example"
    with pytest.raises(ValueError):
        opened(tmp_path, domain="no domain")


def test_nothing_is_made_where_something_is_expected(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no certificate authority"):
        Authority.existing(tmp_path / "none", now=NOW)
    assert not (tmp_path / "none").exists()


def test_the_folder_of_a_service() -> None:
    assert store.default_folder({"XDG_STATE_HOME": "/x"}) == Path("/x/meshlib-control")
    assert store.default_folder({"HOME": "/home/me"}) == Path("/home/me/.local/state/meshlib-control")
    assert store.default_folder({}) is None
