"""Who asks a control service for its status."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from meshlib.cli.commands import app
from meshlib.errors import ConfigError


def test_without_an_authority_the_way_to_ask_in_plain_text_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MESHLIB_CA_FILE", "MESHLIB_TOKEN", "MESHLIB_ALLOW_PLAINTEXT"):
        monkeypatch.delenv(name, raising=False)
    arguments = ["status", "--control", "127.0.0.1:1", "--state", str(tmp_path / "nowhere")]
    error = CliRunner().invoke(app, arguments).exception
    assert isinstance(error, ConfigError)
    assert "is asked with --allow-plaintext" in str(error)
    assert str(tmp_path / "nowhere") in str(error)
