"""`meshlib status`: who is connected to a control service, what each asked for, accepted and refused."""

import json
import os
import time
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from meshlib.control.status import Operator

ASK_SECONDS = 60
ALARM = 3
"""The exit code if something ends soon that should have been renewed."""


class Output(Enum):
    """How to print."""

    TABLE = "table"
    JSON = "json"


def status(
    control: Annotated[
        str | None,
        typer.Option(
            help="The control service, ADDRESS:PORT. Without it MESHLIB_CONTROL counts, then 127.0.0.1:15010."
        ),
    ] = None,
    output: Annotated[Output, typer.Option("--output", "-o", help="As a table or as JSON.")] = Output.TABLE,
    state: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="The state folder of the control service on this machine, if it is not the usual one. "
            "Elsewhere MESHLIB_CA_FILE and MESHLIB_TOKEN (of `meshlib ca token --operator`) are taken.",
        ),
    ] = None,
    allow_plaintext: Annotated[
        bool,
        typer.Option(
            "--allow-plaintext", envvar="MESHLIB_ALLOW_PLAINTEXT", help="The control service has no TLS."
        ),
    ] = False,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds to wait for an answer.")] = 5.0,
) -> None:
    """Who is connected, what each holds or refused, how far behind it is, and when its certificate ends.

    Exit code 3: there is an alarm, such as a certificate that ends soon and was not renewed; 1: no answer.
    """
    from meshlib.cli.address import control_address

    address = control_address(control)
    from meshlib.control.status import fetch_status

    operator = None if allow_plaintext else _operator(state)
    found = fetch_status(address, timeout, operator)
    if output is Output.JSON:
        typer.echo(json.dumps(found, indent=2))
    else:
        from rich.console import Console

        from meshlib.cli.render_status import show_status

        show_status(Console(), address, found)
    if found["alarms"]:
        raise typer.Exit(ALARM)


def _operator(state: Path | None) -> "Operator":
    """From the environment, else from the state folder, whose reader may do anything.

    ConfigError: there is neither.
    """
    from meshlib.cli.ca_options import folder_of
    from meshlib.control.ca.authority import ROOTS_FILE
    from meshlib.control.ca.mesh import FILE, MeshNote
    from meshlib.control.ca.store import read_secret
    from meshlib.control.ca.tokens import JoinTokens
    from meshlib.control.status import Operator
    from meshlib.errors import ConfigError
    from meshlib.identity.spiffe import SpiffeId

    roots, token = os.environ.get("MESHLIB_CA_FILE"), os.environ.get("MESHLIB_TOKEN")
    try:
        if state is None and roots and token:
            return Operator(Path(roots).read_text("ascii"), token)
        folder = folder_of(state)
        if not (folder / FILE).exists():
            raise ConfigError(
                f"no control service with TLS has kept its state in {folder} (--state); one that was started "
                "with --allow-plaintext is asked with --allow-plaintext, one elsewhere with MESHLIB_CA_FILE "
                "and MESHLIB_TOKEN"
            )
        mesh = MeshNote.read(folder)
        who = SpiffeId.of(mesh.trust_domain, mesh.root_namespace, "operator")
        made = JoinTokens.open(folder).issue(who, ASK_SECONDS, time.time())
        return Operator(read_secret(folder / ROOTS_FILE).decode("ascii"), made)
    except (OSError, ValueError) as error:
        raise ConfigError(f"the authority's roots can't be read: {error}") from None
