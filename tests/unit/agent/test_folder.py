"""Folders of agents, and of those that were killed."""

import tempfile
from pathlib import Path

import pytest

from meshlib.agent.folder import BASE_ID, LOCK, MAX_SOCKET_PATH, has_room, keep, own_folder, sweep
from meshlib.agent.node_socket import socket_path
from meshlib.errors import ConfigError


@pytest.fixture(autouse=True)
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "tmp").mkdir()
    (tmp_path / "shm").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setattr("meshlib.agent.process.SHARED", tmp_path / "shm")
    return tmp_path / "shm"


def killed(tmp_path: Path, name: str) -> Path:
    """What a killed agent left."""
    folder = tmp_path / "tmp" / name
    folder.mkdir()
    (folder / LOCK).touch()
    return folder


def test_it_goes_with_its_block_and_is_nobody_elses_meanwhile() -> None:
    with own_folder("node") as folder, own_folder("node") as other:
        assert folder != other
        assert folder.stat().st_mode & 0o777 == 0o700
        assert sweep("node") == []
    assert not folder.exists()
    assert not other.exists()


def test_one_in_which_no_socket_fits_is_refused_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("d" * 70)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    with (
        pytest.raises(ConfigError, match=r"too long for a Unix socket: .*; set TMPDIR"),
        own_folder("node") as folder,
    ):
        has_room(folder)
    assert list(deep.iterdir()) == []


def test_the_path_of_a_socket_that_is_said_must_fit() -> None:
    longest = Path("/" + "s" * (MAX_SOCKET_PATH - 1))
    assert socket_path(longest) == longest
    with pytest.raises(ConfigError, match=r"socket: /s+x is too long for a Unix socket: at most"):
        socket_path(Path(f"{longest}x"))


def test_the_next_one_removes_what_a_killed_one_left(tmp_path: Path, shared: Path) -> None:
    left = killed(tmp_path, "meshlib-node-left")
    (left / BASE_ID).write_text("7")
    (shared / "envoy_shared_memory_70").touch()
    (shared / "envoy_shared_memory_80").touch()
    gateway = killed(tmp_path, "meshlib-gateway-left")
    with own_folder("node"):
        assert not left.exists()
    assert [one.name for one in shared.iterdir()] == ["envoy_shared_memory_80"]
    assert gateway.exists()


def test_one_that_is_kept_stays_for_good() -> None:
    with own_folder("demo") as folder:
        keep(folder)
    assert sweep("demo") == []
    assert folder.exists()


def test_what_is_not_an_agents_stays(tmp_path: Path) -> None:
    folder = tmp_path / "tmp"
    (folder / "meshlib-node-without").mkdir()
    (folder / "meshlib-node-file").touch()
    (folder / "meshlib-node-link").symlink_to(killed(tmp_path, "theirs"))
    linked = folder / "meshlib-node-linked"
    linked.mkdir()
    (linked / LOCK).symlink_to(folder / "theirs" / LOCK)
    assert sweep("node") == []
    assert (folder / "theirs").exists()
    assert linked.exists()


def test_another_users_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = killed(tmp_path, "meshlib-node-left")
    monkeypatch.setattr("meshlib.agent.folder.os.geteuid", lambda: 12345)
    assert sweep("node") == []
    assert left.exists()


def test_a_broken_number_is_no_reason_to_keep_it(tmp_path: Path) -> None:
    left = killed(tmp_path, "meshlib-node-left")
    (left / BASE_ID).write_text("x")
    assert sweep("node") == [left]
