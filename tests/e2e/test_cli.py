"""The command line as a whole: help, version, and mistakes that are one sentence."""

from importlib.metadata import version
from pathlib import Path

import pytest
from support.commands import meshlib, process

COMMANDS = ("demo", "control", "check", "explain", "status", "version")


def test_help_names_every_command() -> None:
    done = process("--help")
    assert done.returncode == 0
    assert [name for name in COMMANDS if f" {name} " not in done.stdout] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help(command: str) -> None:
    done = meshlib(command, "--help")
    assert done.returncode == 0
    assert f"Usage: meshlib {command}" in done.stdout


def test_version() -> None:
    assert process("version").stdout == meshlib("--version").stdout == f"meshlib {version('meshlib')}\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nonsense",), "No such command 'nonsense'"),
        (("control",), "Missing argument"),
        (("control", "no/such/folder"), "no/such/folder"),
        (("control", ".", "--listen", "nowhere"), "ADDRESS:PORT"),
        (("control", ".", "--listen", "127.0.0.1:99999"), "ADDRESS:PORT"),
        (("status", "--control", "nowhere"), "ADDRESS:PORT"),
        (("demo", "--port", "x"), "integer"),
    ],
)
def test_usage_errors_exit_2(arguments: tuple[str, ...], said: str) -> None:
    done = meshlib(*arguments)
    assert done.returncode == 2
    assert said in " ".join(done.stderr.replace("│", " ").split())
    assert "Traceback" not in done.stderr


def test_a_usage_error_ends_the_process_with_2() -> None:
    done = process("status", "--control", "nowhere")
    assert done.returncode == 2
    assert "ADDRESS:PORT" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_library_is_named_with_the_extra(tmp_path: Path) -> None:
    import os
    import subprocess
    import sys

    (tmp_path / "typer.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'typer'\", name='typer')\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "meshlib.cli", "check"],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr == "meshlib: typer is not installed; run: pip install 'meshlib[control]'\n"
