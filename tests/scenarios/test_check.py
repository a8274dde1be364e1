"""`meshlib check` as it is called."""

import json
from pathlib import Path

import typer
from typer.testing import CliRunner, Result

from meshlib.cli.check import check

TUTORIAL = Path(__file__).parents[2] / "examples/meshlib_bookinfo/mesh"


def run(*arguments: str) -> Result:
    app = typer.Typer()
    app.command()(check)
    return CliRunner().invoke(app, list(arguments))


def test_the_tutorial_has_warnings_only() -> None:
    result = run(str(TUTORIAL))
    assert result.exit_code == 0
    assert "Warning [IST0002] (VirtualService default/reviews virtual-service-all.yml:47) " in result.output


def test_errors_and_json(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(
        "apiVersion: networking.istio.io/v1\nkind: Gatewai\nmetadata: {name: x}\n"
    )
    result = run(str(tmp_path), "--output", "json")
    assert result.exit_code == 1
    (problem,) = json.loads(result.output)
    assert list(problem) == [
        "severity",
        "code",
        "message",
        "document",
        "file",
        "line",
        "field",
        "found",
        "allowed",
    ]
    assert (problem["severity"], problem["file"], problem["line"], problem["field"]) == (
        "error",
        "a.yaml",
        2,
        "kind",
    )


def test_no_such_folder(tmp_path: Path) -> None:
    assert run(str(tmp_path / "x")).exit_code == 2
