"""The command that stands for `meshlib`, by how the program was started and from where."""

import sys
from pathlib import Path

import pytest

from meshlib.cli.started import command


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    made = tmp_path / "my app" / ".venv" / "bin" / "meshlib"
    made.parent.mkdir(parents=True)
    made.touch(mode=0o755)
    monkeypatch.setenv("PATH", "/usr/bin")
    monkeypatch.chdir(tmp_path / "my app")
    monkeypatch.setattr(sys, "argv", [".venv/bin/meshlib", "demo"])
    return made


def test_from_a_folder_that_is_not_activated(script: Path) -> None:
    assert command() == ".venv/bin/meshlib"


def test_by_its_whole_path_from_elsewhere(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [str(script)])
    assert command() == ".venv/bin/meshlib"
    monkeypatch.chdir("/usr")
    assert command() == f"'{script}'"


def test_from_its_own_folder(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["./meshlib"])
    monkeypatch.chdir(script.parent)
    assert command() == "./meshlib"


def test_from_the_path(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(script.parent))
    monkeypatch.setattr(sys, "argv", [str(script)])
    assert command() == "meshlib"


def test_as_a_module(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/elsewhere/meshlib/cli/__main__.py"])
    monkeypatch.setattr(sys, "executable", str(script.with_name("python")))
    assert command() == ".venv/bin/python -m meshlib.cli"
