"""`meshlib status`: who is connected to a control service, what each asked for, accepted and refused."""

import json
from enum import Enum
from typing import Annotated

import typer


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
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds to wait for an answer.")] = 5.0,
) -> None:
    """Who is connected, what each subscribed to, acknowledged or refused, and how far behind it is."""
    from meshlib.cli.address import control_address

    address = control_address(control)
    from meshlib.control.status import fetch_status

    found = fetch_status(address, timeout)
    if output is Output.JSON:
        typer.echo(json.dumps(found, indent=2))
        return
    from rich.console import Console

    from meshlib.cli.render_status import show_status

    show_status(Console(), address, found)
