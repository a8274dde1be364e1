"""How much memory there is for an Envoy."""

from pathlib import Path

import pytest

from meshlib.agent.memory import memory


def put(place: Path, text: str) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(text)


@pytest.mark.parametrize("path", ["/", "/a/b", "/a", "/not/there", "/../.."])
def test_the_least_limit_of_its_control_groups(tmp_path: Path, path: str) -> None:
    put(tmp_path / "own", f"0::{path}\n")
    put(tmp_path / "memory.max", "3000\n")
    put(tmp_path / "a/memory.max", "2000\n")
    put(tmp_path / "a/b/memory.max", "max\n")
    assert memory(tmp_path, tmp_path / "own") == (2000 if path.startswith("/a") else 3000)


def test_of_the_older_kind(tmp_path: Path) -> None:
    put(tmp_path / "own", "5:cpu,memory:/x\n4:pids:/y\n")
    put(tmp_path / "memory/x/memory.limit_in_bytes", "4096\n")
    assert memory(tmp_path, tmp_path / "own") == 4096


@pytest.mark.parametrize("said", ["", "0::/\n"])
def test_without_a_limit_it_is_the_machines(tmp_path: Path, said: str) -> None:
    put(tmp_path / "own", said)
    assert memory(tmp_path, tmp_path / "own") > 1 << 20
