"""The status of a control service as tables."""

from collections.abc import Iterable
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from meshlib.cli.foreign import escape
from meshlib.cli.render_ca import span

NAMES_SHOWN = 3
SHORT_ROOT = len("sha256:") + 12


def show_status(console: Console, address: str, found: dict[str, Any]) -> None:
    """Prints what `control.status.fetch_status` gave."""
    version = found["version"] or "none yet"
    console.print(
        f"control [cyan]{escape(address)}[/], configuration [cyan]{escape(version)}[/]", highlight=False
    )
    console.print(_clients(found["clients"]) if found["clients"] else "[dim]no client is connected[/]")
    if any(client["certificate"] or client["token_left"] is not None for client in found["clients"]):
        console.print(_certificates(found["clients"], found["authority"]))
    if found["registrations"]:
        console.print(_servers(found["registrations"]))
    for client in found["clients"]:
        for kind in client["kinds"]:
            if kind["nack"]:
                console.print(
                    f"[red]refused[/] by {escape(client['id'])}, {kind['kind']}: {escape(kind['nack'])}",
                    highlight=False,
                    soft_wrap=True,
                )
        for note in client["notes"]:
            console.print(
                f"[yellow]note[/] of {escape(client['id'])}: {escape(note)}", highlight=False, soft_wrap=True
            )
    for word, color in (("alarms", "bold red"), ("errors", "red"), ("warnings", "yellow")):
        for text in found[word]:
            console.print(
                f"[{color}]{word.removesuffix('s')}[/] {escape(text)}", highlight=False, soft_wrap=True
            )


def _clients(clients: list[dict[str, Any]]) -> Table:
    table = _table("clients", "client", "kind", "asks for", "holds", "state")
    for client in clients:
        who = f"{client['namespace']}/{client['service_account']}"
        for number, kind in enumerate(client["kinds"] or [None]):
            told = f"{escape(who)}\n[dim]{escape(client['flavour'])} {escape(client['id'])}[/]"
            name = told if number == 0 else ""
            if kind is None:
                table.add_row(name, "", "[dim]nothing[/]", "", _behind(client))
                continue
            table.add_row(
                name,
                kind["kind"],
                _names(kind["names"], kind["subscribed"]),
                str(kind["held"]),
                _state(client, kind),
            )
    return table


def _certificates(clients: list[dict[str, Any]], authority: dict[str, Any] | None) -> Table:
    """By what each client is known, how long that lasts, and below which root it is."""
    table = _table("certificates", "client", "ends in", "of its life", "root", "state")
    issuing = authority["fingerprint"] if authority else ""
    for client in clients:
        who = escape(f"{client['namespace']}/{client['service_account']}")
        who += f"\n[dim]{escape(client['id'])}[/]"
        shown = client["certificate"]
        if shown is None:
            left = client["token_left"]
            table.add_row(who, "" if left is None else span(left), "", "", "[dim]by token[/]" if left else "")
            continue
        share = f"{shown['left'] / shown['life']:.0%} left" if shown["life"] else ""
        root = f"{escape(shown['root'][:SHORT_ROOT])}…"
        root += " [dim]issues[/]" if shown["root"] == issuing else " [yellow]is being replaced[/]"
        table.add_row(who, span(shown["left"]), share, root, _HEALTH[_standing(shown)])
    return table


_HEALTH = {
    "ok": "[green]good[/]",
    "renewed": "[green]renewed since[/]",
    "late": "[yellow]should have been renewed[/]",
    "alarm": "[bold red]ends soon, and was not renewed[/]",
}


def _standing(shown: dict[str, Any]) -> str:
    if shown["alarm"]:
        return "alarm"
    return "ok" if shown["health"] == "ok" else "renewed" if shown["renewed"] else "late"


def _servers(registrations: list[dict[str, Any]]) -> Table:
    table = _table("servers that joined", "server", "labels", "address", "state")
    for one in registrations:
        table.add_row(
            escape(f"{one['namespace']}/{one['service_account']}"),
            escape(_pairs(one["labels"])),
            escape(", ".join(f"{one['address']}:{port} {name}" for name, port in one["ports"].items())),
            "[yellow]draining[/]" if one["draining"] else "[green]healthy[/]",
        )
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _state(client: dict[str, Any], kind: dict[str, Any]) -> str:
    if kind["nack"]:
        return "[red]refused[/]"
    if kind["pending"]:
        return f"[yellow]waiting for its answer, {client['behind_seconds']:.1f} s[/]"
    return _behind(client)


def _behind(client: dict[str, Any]) -> str:
    """Whether a client has the newest configuration, or since when it has not."""
    if not client["behind_versions"]:
        return "[green]up to date[/]"
    return f"[yellow]{client['behind_versions']} behind, {client['behind_seconds']:.1f} s[/]"


def _names(names: list[str], subscribed: int) -> str:
    shown = escape(", ".join(names[:NAMES_SHOWN]))
    return f"{shown}, [dim]… {subscribed} in all[/]" if len(names) > NAMES_SHOWN else shown


def _pairs(labels: dict[str, str]) -> str:
    items: Iterable[tuple[str, str]] = sorted(labels.items())
    return ", ".join(f"{key}={value}" for key, value in items)
