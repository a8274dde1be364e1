"""What the demo prints."""

from importlib.resources import files

from rich import box
from rich.console import Console
from rich.panel import Panel
from rich.table import Table

from meshlib.cli.demo_driver import Row
from meshlib.cli.demo_edit import FILE
from meshlib.cli.demo_mixed_stage import MixedStage
from meshlib.cli.demo_stage import Child, Stage
from meshlib.cli.foreign import escape
from meshlib.cli.render_demo_mixed import mixed_suggestions
from meshlib.cli.started import command


def show_start(console: Console, stage: Stage) -> None:
    """Where everything is, and what to try."""
    where = Table.grid(padding=(0, 2))
    where.add_column(style="bold")
    where.add_row("page", f"[link={stage.page}/productpage][cyan]{stage.page}/productpage[/][/link]")
    where.add_row("rules", f"[cyan]{escape(str(stage.mesh))}[/]")
    where.add_row("control", f"[cyan]{stage.control_address}[/]  [dim]process {stage.control.pid}[/]")
    where.add_row("logs", f"[dim]{escape(str(stage.folder / 'logs'))}[/]")
    console.print(Panel(where, title="[bold green]Bookinfo is up[/]", border_style="green", box=box.ROUNDED))
    console.print(_processes(stage))
    console.print("\n[bold]Try[/]")
    found = mixed_suggestions(stage) if isinstance(stage, MixedStage) else _suggestions(stage)
    for what, how in found:
        console.print(f"  [yellow]•[/] {what}")
        if how:
            console.print(f"      [cyan]{escape(how)}[/]", soft_wrap=True, highlight=False)
    console.print("\n[dim]Ctrl-C ends it all.[/]")


def show_row(console: Console, row: Row) -> None:
    """One finished scenario."""
    mark = "[green]✓[/]" if row.passed else "[red]✗[/]"
    console.print(f"{mark} {escape(row.scenario)}: {escape(row.seen)}", highlight=False)


def show_result(console: Console, rows: list[Row], seconds: float) -> None:
    """Expected against seen."""
    table = Table(box=box.SIMPLE_HEAD, title="expected against seen", title_justify="left")
    for column in ("", "scenario", "expected", "seen"):
        table.add_column(column, overflow="fold")
    for row in rows:
        color = "green" if row.passed else "red"
        table.add_row(
            f"[{color}]{'✓' if row.passed else '✗'}[/]",
            escape(row.scenario),
            escape(row.expected),
            escape(row.seen),
        )
    console.print(table)
    failed = sum(not row.passed for row in rows)
    verdict = (
        f"[bold red]{failed} of {len(rows)} not as expected[/]"
        if failed
        else f"[bold green]all {len(rows)} as expected[/]"
    )
    console.print(f"{verdict} in {seconds:.0f} s")


def show_end(console: Console, child: Child) -> None:
    """A child that ended unasked, with its last words."""
    words = "\n  ".join(map(escape, child.last_words().split("\n")))
    console.print(f"[bold red]![/] {words}", highlight=False)


def _processes(stage: Stage) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("service", "address", "process"):
        table.add_column(column)
    for child in stage.children.values():
        if child.url:
            table.add_row(child.name, child.url, str(child.pid))
    return table


def _suggestions(stage: Stage) -> list[tuple[str, str]]:
    reviews = f"{stage.page}/api/v1/products/0/reviews"
    ratings = stage.children["ratings v1"].url
    at = f"--control {stage.control_address}"
    strict = files("meshlib_bookinfo") / "tutorial/enable-strict-mode.yml"
    state = f"--state {stage.authority}"
    request = "http://reviews:9080/ -H 'end-user: jason' -H 'user-agent: Chrome'"
    return [
        (
            "Log in as [bold]jason[/] with Chrome: reviews v2, black stars. Everybody else: v1, no stars.",
            "",
        ),
        ("The same without a browser:", f"curl -H 'end-user: jason' -A Chrome {reviews}"),
        ("Each request of the others is mirrored to v3:", f"curl {stage.children['reviews v3'].url}/stats"),
        (
            "Make ratings slow; jason's reviews run into the route's 2 s:",
            f"curl -X POST '{ratings}/slow?seconds=5'",
        ),
        (
            f"Edit a weight, a header or a time-out, save, and reload the page: {FILE}",
            f"$EDITOR {stage.mesh / FILE}",
        ),
        (
            "Ask which line of which file decides:",
            f"{command()} explain --config {stage.mesh} {request}",
        ),
        ("Lock it: nothing but mutual TLS inside; the page goes on:", f"cp {strict} {stage.mesh}"),
        ("… and plain text is refused:", f"curl {stage.children['reviews v1'].url}/reviews/0"),
        ("See who is connected:", f"{command()} status {at} {state}"),
        ("Stop the control service; the page goes on:", f"kill {stage.control.pid}"),
        (
            "… and start it again:",
            f"{command()} control {stage.mesh} --listen {stage.control_address} {state}",
        ),
    ]
