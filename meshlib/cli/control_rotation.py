"""What `meshlib control` prints when its roots or its issuing key change: the step, and what to do."""

import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from rich.console import Console

from meshlib.cli.control_security import environment
from meshlib.cli.foreign import escape
from meshlib.cli.render_ca import when


class Reporting(Protocol):
    """What is needed of `control.ca.authority.Authority`."""

    def status(self, now: float) -> dict[str, Any]:
        """See `control.ca.report`."""


class RotationReport:
    """Compares the authority with what was told last, whenever `look` is called."""

    def __init__(self, console: Console, authority: Reporting, wall: Callable[[], float] = time.time) -> None:
        """What is in force now is known."""
        self._console = console
        self._authority = authority
        self._wall = wall
        self._told = authority.status(wall())

    def look(self) -> None:
        """Tells what has changed."""
        now = self._wall()
        before, found = self._told, self._authority.status(now)
        self._told = found
        known, trusted = _roots(before), _roots(found)
        for root in trusted.keys() - known.keys():
            self._announced(root, found, now)
        if found["fingerprint"] != before["fingerprint"]:
            self._issues(before["fingerprint"], found, now)
        elif found["issuer"]["fingerprint"] != before["issuer"]["fingerprint"]:
            issuer = found["issuer"]
            self._say(
                f"[cyan]issuing key[/] renewed: {issuer['fingerprint']}, ends {when(issuer['end'], now)}. "
                "Nothing to do."
            )
        for root in known.keys() - trusted.keys():
            self._say(
                f"[cyan]root[/] {root} is trusted no more. Connections that it vouched for begin anew by "
                "themselves; whoever trusts a file no longer needs it there."
            )

    def _announced(self, root: str, found: Mapping[str, Any], now: float) -> None:
        until = found["rotation"]["until"]
        if found["fingerprint"] == root or found["rotation"]["phase"] != "announced" or until is None:
            self._say(f"[cyan]root[/] {root} is trusted now, too.")
            return
        self._say(
            f"[cyan]root[/] {root} is new: trusted from now on beside {found['fingerprint']}, it issues from "
            f"{when(until, now)}. Before then, give roots.pem of the state folder to whoever trusts a file. "
            "Joins name the old fingerprint until then."
        )

    def _issues(self, old: str, found: Mapping[str, Any], now: float) -> None:
        said = f"[cyan]root[/] {found['fingerprint']} issues now."
        until = next((one["trusted_until"] for one in found["roots"] if one["fingerprint"] == old), None)
        if until is not None:
            said += f" {old} is trusted until {when(until, now)}."
        self._say(f"{said} From now on whoever joins needs the new fingerprint:")
        environment(self._console, f"MESHLIB_CA_FINGERPRINT={found['fingerprint']}")

    def _say(self, text: str) -> None:
        self._console.print(text, highlight=False, soft_wrap=True)


def _roots(found: Mapping[str, Any]) -> dict[str, Any]:
    return {escape(one["fingerprint"]): one for one in found["roots"]}
