"""Options that several commands share: where the control service is."""

import os

import typer

from meshlib.bootstrap import DEFAULT_CONTROL
from meshlib.xds.names import split_authority


def control_address(given: str | None) -> str:
    """`host:port` of the control service: what was given, else MESHLIB_CONTROL, else the default.

    BadParameter: it is no address. A folder in MESHLIB_CONTROL has no service to be asked.
    """
    if given:
        return checked_address(given, "--control")
    return checked_address(os.environ.get("MESHLIB_CONTROL") or DEFAULT_CONTROL, "MESHLIB_CONTROL")


def checked_address(address: str, option: str) -> str:
    """`address`, if it is ADDRESS:PORT with a port from 0 to 65535. BadParameter: it is not."""
    host, port = split_authority(address, -1)
    if not host or not 0 <= port <= 65535 or "/" in host:
        raise typer.BadParameter(f"{address!r} is not ADDRESS:PORT", param_hint=option)
    return address
