"""What is written down of captured namespaces, and which are none. The rules: scenarios/test_netns.py."""

import json
from pathlib import Path

import pytest

from meshlib.agent.capture import Captures
from meshlib.agent.command import CommandFailed


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/proc/self/ns/net", "is the network namespace of this node itself"),
        ("/nowhere", "is not a network namespace"),
        ("/etc/passwd", "is not a network namespace"),
        ("relative", "is not a network namespace"),
    ],
)
async def test_no_rules_are_put_anywhere_else(tmp_path: Path, path: str, said: str) -> None:
    with pytest.raises(CommandFailed, match=said):
        await Captures(tmp_path / "captured").capture(path)
    assert not (tmp_path / "captured").exists()


@pytest.mark.parametrize("path", ["/proc/self/ns/net", "/nowhere", "/etc/passwd", "relative"])
async def test_what_can_have_no_rules_is_released(tmp_path: Path, path: str) -> None:
    """Such as the node's own namespace: a process of that number is another one now."""
    (tmp_path / "captured").write_text(json.dumps([path]))
    await Captures(tmp_path / "captured").release(path)
    assert not (tmp_path / "captured").exists()


async def test_what_was_captured_is_known_after_a_crash(tmp_path: Path) -> None:
    (tmp_path / "captured").write_text('["/nowhere"]')
    found = Captures(tmp_path / "captured")
    assert found.held == {"/nowhere"}
    await found.release("/nowhere")
    assert not (tmp_path / "captured").exists()


async def test_a_namespace_that_is_gone_is_released(tmp_path: Path) -> None:
    """What `ip netns` mounts on is a file, which is still there in other mount namespaces."""
    (tmp_path / "gone").touch()
    await Captures(tmp_path / "captured").release(str(tmp_path / "gone"))


@pytest.mark.parametrize("text", ["", "{", "5", "null", '["/a"'])
def test_a_broken_record_is_an_empty_one(tmp_path: Path, text: str) -> None:
    (tmp_path / "captured").write_text(text)
    assert Captures(tmp_path / "captured").held == frozenset()
