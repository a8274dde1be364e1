"""Programs of the system: what they say, and how they fail."""

import pytest

from meshlib.agent import command
from meshlib.agent.command import CommandFailed, run
from meshlib.errors import ConfigError


async def test_it_is_given_its_input_and_says_its_output() -> None:
    assert await run("cat", given="one\n") == "one\n"


async def test_what_fails_says_why() -> None:
    with pytest.raises(CommandFailed, match=r"`sh -c echo no >&2; exit 3`: no$"):
        await run("sh", "-c", "echo no >&2; exit 3")
    with pytest.raises(CommandFailed, match=r"`false`: status 1$"):
        await run("false")


async def test_what_is_not_installed_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    with pytest.raises(ConfigError, match=r"`nft` is not installed, it is of the package nftables"):
        await run("nft", "-f", "-")


async def test_what_does_not_end_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "PATIENCE", 0.02)
    with pytest.raises(CommandFailed, match=r"`sleep 1000` took more than 0.02 s"):
        await run("sleep", "1000")
