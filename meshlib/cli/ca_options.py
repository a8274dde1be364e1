"""What the commands of `meshlib ca` are told alike: a state folder, and how long a token may be used."""

import os
from pathlib import Path
from typing import Annotated

import typer

from meshlib.control.ca.store import default_folder

State = Annotated[
    Path | None,
    typer.Option(
        "--state",
        metavar="DIR",
        help="The state folder of the control service. Without it: the one that `meshlib control` takes.",
    ),
]
Ttl = Annotated[
    str,
    typer.Option(metavar="DURATION", help="How long the token may be used, such as 1h or 15m."),
]


def folder_of(state: Path | None) -> Path:
    """The state folder that was given, or that `meshlib control` takes. BadParameter: there is no home."""
    found = state if state is not None else default_folder(os.environ)
    if found is None:
        raise typer.BadParameter("there is no home folder; give one", param_hint="--state")
    return found


def life_of(ttl: str) -> int:
    """Seconds that a token may be used. BadParameter: it is no duration."""
    from meshlib.control.istio.duration import seconds

    try:
        return int(seconds(ttl))
    except ValueError:
        raise typer.BadParameter(f"{ttl!r} is no duration such as 1h or 15m", param_hint="--ttl") from None
