"""`meshlib ca status|rotate-root|token|node`: the certificate authority of a state folder.

They work on the folder itself; a control service that runs on it notices within seconds. A command is a
function below, in the order of the help.
"""

import json
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from meshlib.cli.ca_node import node
from meshlib.cli.ca_options import State, folder_of
from meshlib.cli.ca_token import token
from meshlib.cli.status import ALARM
from meshlib.errors import ConfigError

app = typer.Typer(
    name="ca",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="The certificate authority of the mesh: its roots, and how one is replaced.",
)


class Output(StrEnum):
    """How to print."""

    TEXT = "text"
    JSON = "json"


@app.command()
def status(
    state: State = None,
    plugin: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Look at Istio's plug-in CA files in this folder instead, and check them."
        ),
    ] = None,
    output: Annotated[Output, typer.Option("--output", "-o", help="text or json.")] = Output.TEXT,
) -> None:
    """Which roots are trusted, which one issues, and until when. Exit code 3: there is a warning."""
    from meshlib.cli.render_ca import show_ca
    from meshlib.control.ca.authority import Authority
    from meshlib.control.ca.nodes import read_nodes
    from meshlib.control.ca.plugin import read_plugin
    from meshlib.control.ca.report import report

    now = time.time()
    if plugin is not None:
        found = report(read_plugin(plugin, now), "", now)
    else:
        folder = folder_of(state)
        found = Authority.existing(folder, now=now).status(now)
        try:
            found["nodes"] = read_nodes(folder)
        except ConfigError as error:
            found["warnings"].append(str(error))
    if output is Output.JSON:
        typer.echo(json.dumps(found, indent=2))
    else:
        show_ca(found, now)
    if found["warnings"]:
        raise typer.Exit(ALARM)


@app.command("rotate-root")
def rotate_root(
    state: State = None,
    overlap: Annotated[
        str,
        typer.Option(
            metavar="DURATION", help="How long both roots are trusted before the new one issues, such as 24h."
        ),
    ] = "24h",
    keep: Annotated[
        str,
        typer.Option(
            metavar="DURATION",
            help="How long the old root is trusted after that: the longest life of a certificate in use.",
        ),
    ] = "2160h",
    force: Annotated[
        bool, typer.Option("--force", help="Even if times are so short that clients may be left out.")
    ] = False,
) -> None:
    """Make a new root that takes the place of the old one, step by step, with no restart anywhere."""
    from meshlib.cli.ca_rotation import hasty
    from meshlib.cli.render_ca import show_ca
    from meshlib.control.ca.authority import Authority

    times = {name: _seconds(text, name) for name, text in (("--overlap", overlap), ("--keep", keep))}
    for warning in (found := hasty(times["--overlap"], times["--keep"])):
        typer.echo(f"warning: {warning}", err=True)
    if found and not force:
        typer.echo("Nothing was done; --force does it all the same.", err=True)
        raise typer.Exit(2)
    now = time.time()
    authority = Authority.existing(folder_of(state), now=now)
    authority.rotate_root(now, overlap_s=times["--overlap"], keep_s=times["--keep"])
    show_ca(authority.status(now), now)


app.command("token")(token)
app.command("node")(node)


def _seconds(text: str, option: str) -> float:
    from meshlib.control.istio.duration import seconds

    try:
        found = seconds(text)
    except ValueError:
        found = -1.0
    if found < 0:
        raise typer.BadParameter(f"{text!r} is no duration such as 24h or 30m", param_hint=option)
    return found
