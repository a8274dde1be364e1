"""The state of a certificate authority in plain words, with what happens next."""

import datetime as dt
from typing import Any

import typer

_NEXT = {
    "announced": "The new root is trusted beside the old one and issues from {until}.",
    "issuing": "The new root issues; the old one is trusted until {until}.",
    "settled": "One root is trusted, and it issues.",
}
_THEN = {
    "announced": (
        "Nothing to do. Before then, give the new root to whoever trusts a file: roots.pem in the state "
        "folder holds both. A join that names the old fingerprint works until then; use the new one after."
    ),
    "issuing": "Nothing to do. Whoever trusts the old root alone must get the new one before then.",
}


def show_ca(found: dict[str, Any], now: float) -> None:
    """Prints what `control.ca.report` says."""
    plugged = found["source"] == "plug-in"
    where = "Istio's plug-in files" if plugged else f"own, for trust domain {found['trust_domain']}"
    typer.echo(f"certificate authority: {where}")
    typer.echo(f"fingerprint: {found['fingerprint']}")
    for root in found["roots"]:
        until = root["trusted_until"]
        notes = [
            "issues" if root["issues"] else "trusted",
            f"ends {when(root['end'], now)}",
            *([f"trusted until {when(until, now)}"] if until is not None else []),
        ]
        typer.echo(f"root   {root['subject']}: {', '.join(notes)}")
        if not root["issues"]:
            typer.echo(f"       {root['fingerprint']}")
    issuer = found["issuer"]
    renewal = "" if plugged else "; it is renewed by itself"
    typer.echo(f"issuer {issuer['subject']}: ends {when(issuer['end'], now)}{renewal}")
    typer.echo(f"       {issuer['fingerprint']}")
    for node, accounts in found.get("nodes", {}).items():
        typer.echo(f"node   {node}: may speak for {', '.join(accounts)}")
    rotation = found["rotation"]
    until = when(rotation["until"], now) if rotation["until"] is not None else ""
    typer.echo(_NEXT[rotation["phase"]].format(until=until))
    if rotation["phase"] in _THEN:
        typer.echo(_THEN[rotation["phase"]])
    for warning in found["warnings"]:
        typer.echo(typer.style(f"warning: {warning}", fg="red"))


def when(seconds: float, now: float) -> str:
    """`2026-11-24 04:05 UTC (in 23 h)`."""
    told = span(abs(seconds - now))
    moment = dt.datetime.fromtimestamp(seconds, dt.UTC)
    return f"{moment:%Y-%m-%d %H:%M} UTC ({'in ' + told if seconds > now else told + ' ago'})"


def span(seconds: float) -> str:
    """`23 h`, in the largest unit of which there are two."""
    units = ("days", 86400.0), ("h", 3600.0), ("min", 60.0)
    unit, length = next(((unit, length) for unit, length in units if seconds >= 2 * length), ("s", 1.0))
    return f"{seconds / length:.0f} {unit}"
