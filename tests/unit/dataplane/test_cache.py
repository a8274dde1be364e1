"""The last good configuration on disk: what comes back, and what is ignored."""

import multiprocessing
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from meshlib.dataplane import cache as module
from meshlib.dataplane.cache import Cache, LastGood
from meshlib.xds.kinds import Kind
from meshlib.xds.snapshot import Resource

ONE = (Resource(Kind.LISTENER, "a:80", "v1", b"\x00\xff"), Resource(Kind.CLUSTER, "c|ü", "v2", b""))

KEPT = LastGood("5.1", ONE, frozenset({(Kind.CLUSTER, "gone"), (Kind.SECRET, "ROOTCA")}), "4.9")


def only_file(folder: Path) -> Path:
    (found,) = folder.iterdir()
    return found


def test_what_was_kept_comes_back(tmp_path: Path) -> None:
    Cache(tmp_path / "x" / "y", ("me",)).save({"a:80": KEPT})
    assert Cache(tmp_path / "x" / "y", ("me",)).load("a:80") == KEPT
    assert stat.S_IMODE((tmp_path / "x" / "y").stat().st_mode) == 0o700
    assert stat.S_IMODE(only_file(tmp_path / "x" / "y").stat().st_mode) == 0o600


def test_nothing_was_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert Cache(tmp_path, ("me",)).load("a:80") is None
    assert Cache(tmp_path / "absent", ("me",)).load("a:80") is None
    assert caplog.records == []


def test_other_targets_and_others_who_ask(tmp_path: Path) -> None:
    Cache(tmp_path, ("me",)).save({"a:80": KEPT})
    assert Cache(tmp_path, ("me",)).load("b:80") is None
    assert Cache(tmp_path, ("you",)).load("a:80") is None


def test_why_nothing_can_be_loaded(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "state", ("me",))
    assert cache.why_not("a:80") == f"there is no last good configuration in {tmp_path}/state"
    cache.save({"a:80": KEPT})
    assert cache.why_not("a:80") == ""
    other = f"the last good configuration in {tmp_path}/state is of other targets"
    assert cache.why_not("b:80") == other
    assert Cache(tmp_path / "state", ("you",)).why_not("a:80") == (
        f"the last good configuration in {tmp_path}/state is another client's: of another control address, "
        "namespace, service account, labels or locality"
    )


def test_the_newest_is_kept(tmp_path: Path) -> None:
    cache = Cache(tmp_path, ("me",))
    cache.save({"a:80": KEPT})
    cache.save({"a:80": LastGood("5.2", ONE[:1])})
    assert cache.load("a:80") == LastGood("5.2", ONE[:1])
    assert len(list(tmp_path.iterdir())) == 1


def test_what_is_equal_is_not_written_again(tmp_path: Path) -> None:
    cache = Cache(tmp_path, ("me",))
    cache.save({"a:80": KEPT})
    only_file(tmp_path).unlink()
    cache.save({"a:80": KEPT})
    assert list(tmp_path.iterdir()) == []


def sealed(payload: bytes) -> bytes:
    return module._MAGIC + b" " + module._checksum(payload) + b"\n" + payload


def damaged(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda path: (path.write_bytes(change(path.read_bytes())), None)[1]


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (damaged(lambda whole: whole[:-1]), "it is broken"),
        (damaged(lambda whole: whole[: len(whole) // 2]), "it is broken"),
        (damaged(lambda whole: whole.replace(b"5.1", b"9.9")), "it is broken"),
        (damaged(lambda whole: b"{}"), "it is broken"),
        (damaged(lambda whole: b""), "it is broken"),
        (
            damaged(lambda whole: whole.replace(b"meshlib-state-3", b"meshlib-state-2")),
            "it was written by another version of meshlib",
        ),
        (damaged(lambda whole: sealed(b"{}")), "it is broken"),
        (damaged(lambda whole: sealed(b"[]")), "it is broken"),
        (damaged(lambda whole: sealed(b"")), "Expecting value"),
        (lambda path: (path.unlink(), path.mkdir(), None)[2], "Is a directory"),
    ],
)
def test_a_damaged_file_is_ignored(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, spoil: Callable[[Path], None], why: str
) -> None:
    Cache(tmp_path, ("me",)).save({"a:80": KEPT})
    spoil(only_file(tmp_path))
    assert Cache(tmp_path, ("me",)).load("a:80") is None
    (record,) = caplog.records
    assert "ignoring the last good configuration of a:80" in record.message
    assert why in record.message
    told = Cache(tmp_path, ("me",)).why_not("a:80")
    assert told.startswith(f"the last good configuration in {only_file(tmp_path)} can't be used: ")
    assert why in told


def test_a_file_moved_to_another_name_is_ignored(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = Cache(tmp_path, ("me",))
    cache.save({"a:80": KEPT})
    only_file(tmp_path).rename(cache._path("b:80"))
    assert cache.load("b:80") is None
    assert "it is of something else" in caplog.text


def test_a_file_that_is_too_large(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = Cache(tmp_path, ("me",))
    cache.save({"a:80": KEPT})
    monkeypatch.setattr(module, "MAX_FILE", 10)
    assert cache.load("a:80") is None
    assert "is larger than 10 bytes" in caplog.text
    cache.save({"b:80": KEPT})
    assert len(list(tmp_path.iterdir())) == 1


def test_a_file_of_another_user(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = Cache(tmp_path, ("me",))
    cache.save({"a:80": KEPT})
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert cache.load("a:80") is None
    assert "belongs to another user" in caplog.text


def test_the_number_of_files_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_FILES", 3)
    cache = Cache(tmp_path, ("me",))
    for number in range(5):
        cache.save({f"t{number}:80": KEPT})
        os.utime(cache._path(f"t{number}:80"), (number, number))
    kept = [number for number in range(5) if cache.load(f"t{number}:80") is not None]
    assert kept == [2, 3, 4]


def test_a_folder_that_cannot_be_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("in the way")
    cache = Cache(tmp_path / "file", ("me",))
    cache.save({"a:80": KEPT})
    cache.save({"b:80": KEPT})
    assert sum("can't be kept" in record.message for record in caplog.records) == 1


def test_a_failed_write_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Cache(tmp_path, ("me",))
    cache.save({"a:80": KEPT})

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    cache.save({"a:80": LastGood("5.2", ONE[:1])})
    monkeypatch.undo()
    assert Cache(tmp_path, ("me",)).load("a:80") == KEPT
    assert len(list(tmp_path.iterdir())) == 1


def _write(folder: Path, name: str) -> None:
    cache = Cache(folder, ("me",))
    for count in range(40):
        body = f"{name}.{count}"
        long = Resource(Kind.LISTENER, "shared:80", body, body.encode() * 1000)
        cache.save({"shared:80": LastGood(body, (long,))})
        cache.save({f"{name}:80": LastGood(body, (Resource(Kind.LISTENER, f"{name}:80", body, b""),))})


def test_two_processes_share_a_folder(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write, args=(tmp_path, name)) for name in ("1", "2")]
    for writer in writers:
        writer.start()
    reader = Cache(tmp_path, ("me",))
    while any(writer.is_alive() for writer in writers):
        found = reader.load("shared:80")
        assert found is None or found.resources[0].body == found.version.encode() * 1000
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    for name in ("1", "2"):
        last = Resource(Kind.LISTENER, f"{name}:80", f"{name}.39", b"")
        assert reader.load(f"{name}:80") == LastGood(f"{name}.39", (last,))
