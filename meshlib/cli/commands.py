"""Which commands there are. A command's module is loaded when it is asked for, or listed."""

import importlib
from importlib.metadata import version as installed
from typing import Annotated, Any

import typer
import typer.core
import typer.main

COMMANDS = {
    "demo": "meshlib.cli.demo:demo",
    "control": "meshlib.cli.control:control",
    "serve": "meshlib.cli.serve:serve",
    "check": "meshlib.cli.check:check",
    "explain": "meshlib.cli.explain:explain",
    "status": "meshlib.cli.status:status",
    "ca": "meshlib.cli.ca:app",
    "version": "meshlib.cli.commands:version",
}


class Commands(typer.core.TyperGroup):
    """The commands in the order above, each loaded on demand."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Their names."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of that name, or None."""
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name].partition(":")
        found = getattr(importlib.import_module(module), name)
        if isinstance(found, typer.Typer):  # commands of its own below it
            return typer.main.get_command(found)
        one = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        one.command(cmd_name)(found)
        return typer.main.get_command(one)


app = typer.Typer(
    name="meshlib",
    cls=Commands,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def version() -> None:
    """Print which meshlib this is."""
    typer.echo(f"meshlib {installed('meshlib')}")


def _version_option(asked: bool) -> None:
    if asked:
        version()
        raise typer.Exit


@app.callback()
def _meshlib(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_version_option, is_eager=True, help="Print which meshlib this is."
        ),
    ] = False,
) -> None:
    """A service mesh inside the Python process: Istio's YAML, Envoy's xDS, no sidecar."""
