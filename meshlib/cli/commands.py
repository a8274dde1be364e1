"""Which commands there are. A command's module is loaded when the command is asked for."""

import importlib
from collections.abc import Callable
from importlib.metadata import version as installed
from typing import Annotated, Any

import typer
import typer.core
import typer.main

COMMANDS = {
    "demo": (
        "meshlib.cli.demo:demo",
        (
            "Bookinfo under a well-known Istio tutorial's rules: real processes, no sidecar, no network, "
            "no root."
        ),
    ),
    "control": (
        "meshlib.cli.control:control",
        "Serve a folder of Istio YAML to the mesh; a saved edit takes effect within a second.",
    ),
    "serve": (
        "meshlib.cli.serve:serve",
        "Serve an application in the mesh: mutual TLS, policy, telemetry, registration, graceful drain.",
    ),
    "gateway": (
        "meshlib.cli.gateway:gateway",
        "Run an Envoy at the edge, for Gateways and the VirtualServices bound to them.",
    ),
    "node": (
        "meshlib.cli.node:app",
        "Run an Envoy for the workloads of this machine: in network namespaces, or explicitly.",
    ),
    "check": (
        "meshlib.cli.check:check",
        "Validate Istio YAML: schema, semantics, and what documents do to each other.",
    ),
    "explain": (
        "meshlib.cli.explain:explain",
        "Say what becomes of a request: which rule matched, why earlier ones did not, where it goes and how.",
    ),
    "status": (
        "meshlib.cli.status:status",
        "Who is connected, what each holds or refused, how far behind it is, and when its certificate ends.",
    ),
    "bootstrap": (
        "meshlib.cli.bootstrap:app",
        "What a program needs that speaks xDS by itself: gRPC's own bootstrap, and certificates.",
    ),
    "ca": (
        "meshlib.cli.ca:app",
        "The certificate authority of the mesh: its roots, and how one is replaced.",
    ),
    "version": ("meshlib.cli.commands:version", "Print which meshlib this is."),
}
"""Where each is, and the first sentence of its help, by which it is listed."""


class Commands(typer.core.TyperGroup):
    """The commands in the order above. To list them loads none."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Their names."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of that name as it is listed, or None."""
        if cmd_name not in COMMANDS:
            return None
        return _alone(cmd_name, lambda: None, COMMANDS[cmd_name][1])

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[Any, Any, list[str]]:
        """The command that was asked for, loaded."""
        name, found, rest = super().resolve_command(ctx, args)
        return name, None if found is None or name is None else load(name), rest


def load(command: str) -> Any:
    """A command as it is run."""
    module, _, name = COMMANDS[command][0].partition(":")
    found = getattr(importlib.import_module(module), name)
    if isinstance(found, typer.Typer):  # commands of its own below it
        return typer.main.get_command(found)
    return _alone(command, found)


def _alone(name: str, runs: Callable[..., Any], help_text: str | None = None) -> Any:
    one = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    one.command(name, help=help_text)(runs)
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
