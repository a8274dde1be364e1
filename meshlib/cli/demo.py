"""`meshlib demo`: Bookinfo under the tutorial's rules, real processes on this machine's loopback."""

import asyncio
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from meshlib.cli.demo_driver import Row
    from meshlib.cli.demo_mixed_scenarios import MixedScenarios
    from meshlib.cli.demo_scenarios import Scenarios
    from meshlib.cli.demo_stage import Stage


def demo(
    port: Annotated[
        int | None,
        typer.Option(
            min=0, max=65535, help="Where the page is served, on 127.0.0.1: 9080; with --once a free port."
        ),
    ] = None,
    control_port: Annotated[
        int, typer.Option(min=0, max=65535, help="Where the control service listens; 0 takes a free port.")
    ] = 0,
    folder: Annotated[
        Path | None,
        typer.Option(
            file_okay=False,
            help="Keep rules, logs and state there. Without it they are gone when the demo ends.",
        ),
    ] = None,
    once: Annotated[
        bool, typer.Option("--once", help="Drive the scenarios, print expected against seen, exit 0 or 1.")
    ] = False,
    mixed: Annotated[
        bool,
        typer.Option(
            "--mixed",
            help="STRICT, and half of it Python: a gateway; Node.js and nginx behind a node's Envoy.",
        ),
    ] = False,
    capture: Annotated[
        bool | None,
        typer.Option(
            "--capture/--no-capture",
            help="With --mixed: network namespaces for what is not Python. They need root, Linux and "
            "nftables, and are made where these are.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Bookinfo under a well-known Istio tutorial's rules: real processes, no sidecar, no network, no root."""
    if capture is not None and not mixed:
        raise typer.BadParameter("only what --mixed runs is captured", param_hint="--capture")
    import starlette  # noqa: F401 what is missing is said before anything starts
    import uvicorn  # noqa: F401
    from rich.console import Console

    console = Console()
    chosen = (0 if once else 9080) if port is None else port

    def made(place: Path) -> "Stage":
        if mixed:
            from meshlib.cli.demo_mixed_stage import MixedStage

            return MixedStage(place, chosen, control_port, wanted=capture)
        from meshlib.cli.demo_stage import Stage

        return Stage(place, chosen, control_port)

    with _until_told_to_stop(once), _stage(folder, made, console) as stage:
        if once:
            raise typer.Exit(_drive(stage, console))
        _linger(stage, console)


@contextmanager
def _stage(folder: Path | None, made: "Callable[[Path], Stage]", console: "Console") -> "Iterator[Stage]":
    """All processes up; none left afterwards, and no folder that nobody asked for."""
    from meshlib.agent.folder import keep, own_folder
    from meshlib.cli.demo_stage import DemoError
    from meshlib.cli.foreign import escape

    with ExitStack() as stack:
        place = folder.absolute() if folder else stack.enter_context(own_folder("demo"))
        stage = made(place)
        stack.callback(stage.stop)
        try:
            stage.set_up()
            for note in stage.notes:
                console.print(f"[yellow]![/] {escape(note)}", highlight=False)
            with console.status("starting the control service and Bookinfo"):
                stage.start()
            yield stage
        except DemoError:
            # Its message points at the logs, if anything started.
            if folder is None and any(child.process for child in stage.children.values()):
                keep(place)
            raise


def _drive(stage: "Stage", console: "Console") -> int:
    from meshlib.cli.render_demo import show_end, show_result, show_row

    started = time.monotonic()
    rows = asyncio.run(_scenarios(stage, lambda row: show_row(console, row)).run())
    show_result(console, rows, time.monotonic() - started)
    for child in stage.ended():
        show_end(console, child)
    return 0 if all(row.passed for row in rows) else 1


def _scenarios(stage: "Stage", told: "Callable[[Row], None]") -> "Scenarios | MixedScenarios":
    from meshlib.cli.demo_mixed_scenarios import MixedScenarios
    from meshlib.cli.demo_mixed_stage import MixedStage
    from meshlib.cli.demo_scenarios import Scenarios

    return MixedScenarios(stage, told) if isinstance(stage, MixedStage) else Scenarios(stage, told)


def _linger(stage: "Stage", console: "Console") -> None:
    """Until Ctrl-C; a child that ends unasked is reported, and without a page it ends."""
    from meshlib.cli.render_demo import show_end, show_start

    show_start(console, stage)
    while True:
        time.sleep(0.2)
        for child in stage.ended():
            show_end(console, child)
            if child is stage.front:
                raise typer.Exit(1)


@contextmanager
def _until_told_to_stop(unfinished: bool) -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP end the block and the program in order; a failure only if `unfinished`."""

    def stop(number: int, _: FrameType | None) -> None:
        for other in told:
            signal.signal(other, signal.SIG_IGN)
        raise SystemExit(128 + number if unfinished else 0)

    told = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, stop) for number in told}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
