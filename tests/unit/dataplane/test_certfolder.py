"""The certificate as files: whole, private, and one writer."""

import os
import stat
from pathlib import Path

import pytest

from meshlib.dataplane.certfolder import CHAIN, KEY, ROOTS, CertFolder
from meshlib.dataplane.tls import Held
from meshlib.errors import ConfigError


def held(number: int) -> Held:
    return Held(f"chain {number}\n", b"key %d\n" % number, f"roots {number}\n")


def read(folder: CertFolder) -> list[str]:
    return [Path(folder.file(name)).read_text() for name in (CHAIN, KEY, ROOTS)]


def test_the_three_change_as_one(tmp_path: Path) -> None:
    with CertFolder(tmp_path / "a/b") as folder:
        for number in range(4):
            folder.write(held(number))
            assert read(folder) == [f"chain {number}\n", f"key {number}\n", f"roots {number}\n"]
        # The one in force, and the one before, which somebody may just read.
        assert len(list(folder.path.glob("certs-*"))) == 2


def test_they_are_the_owners_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with CertFolder(tmp_path / "a") as folder:
            folder.write(held(1))
            path = folder.put("x.json", "{}")
    finally:
        os.umask(before)
    files = [*(folder.path / "certs").iterdir(), path]
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    assert {stat.S_IMODE(p.stat().st_mode) for p in (folder.path, folder.path / "certs")} == {0o700}


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with CertFolder(tmp_path) as folder:
        folder.write(held(1))
        with monkeypatch.context() as patched:
            patched.setattr(CertFolder, "_point", lambda *_: (_ for _ in ()).throw(OSError("no space")))
            with pytest.raises(OSError, match="no space"):
                folder.write(held(2))
        assert read(folder)[0] == "chain 1\n"
        assert len(list(folder.path.glob("certs-*"))) == 1
        folder.write(held(3))
        assert read(folder)[0] == "chain 3\n"


def test_what_a_crash_left_behind_is_no_hindrance(tmp_path: Path) -> None:
    (tmp_path / ".new-certs").symlink_to("certs-gone")
    (tmp_path / ".new-x").write_text("half")
    with CertFolder(tmp_path) as folder:
        folder.write(held(1))
        assert folder.put("x", "whole").read_text() == "whole"
        assert read(folder)[1] == "key 1\n"


def test_one_writer(tmp_path: Path) -> None:
    with CertFolder(tmp_path), pytest.raises(ConfigError, match="another process keeps"):
        CertFolder(tmp_path).__enter__()
    with CertFolder(tmp_path):
        pass


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("")
    with pytest.raises(ConfigError, match="can't be used"), CertFolder(tmp_path / "x"):
        pass
