"""`meshlib control`: serves a folder of YAML until it is told to stop."""

import asyncio
import logging
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from meshlib.cli.control_report import Report

LOOK_SECONDS = 0.1
"""How often the report looks who came and went."""


def control(
    folder: Annotated[
        Path,
        typer.Argument(metavar="DIR", exists=True, readable=True, help="A folder, or file, of Istio YAML."),
    ],
    listen: Annotated[str, typer.Option(help="ADDRESS:PORT; port 0 takes a free one.")] = "127.0.0.1:15010",
    namespace: Annotated[str, typer.Option(help="The namespace of documents that name none.")] = "default",
    allow_plaintext: Annotated[
        bool,
        typer.Option(
            "--allow-plaintext",
            help="Listen on an address that other machines reach, although there is no TLS: whoever "
            "reaches it reads all rules and may register servers.",
        ),
    ] = False,
) -> None:
    """Serve a folder of Istio YAML to the mesh; a saved edit takes effect within a second."""
    from meshlib.cli.address import checked_address
    from meshlib.control.serve.server import is_loopback, listen_address

    checked_address(listen, "--listen")
    if not allow_plaintext and not is_loopback(listen_address(listen)[0]):
        raise typer.BadParameter(
            f"{listen} is reachable from other machines and there is no TLS; "
            "listen on 127.0.0.1, or add --allow-plaintext if that is meant",
            param_hint="--listen",
        )
    raise typer.Exit(asyncio.run(_serve(folder, listen, namespace, allow_plaintext)))


async def _serve(folder: Path, listen: str, namespace: str, allow_plaintext: bool) -> int:
    from rich.console import Console

    from meshlib.cli.control_report import Report, reported
    from meshlib.control.build import Builder
    from meshlib.control.jwks import KeyFetcher
    from meshlib.control.service import ControlService
    from meshlib.control.sources.files import FileSource
    from meshlib.errors import ConfigError

    console = Console()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    report = Report(console)
    keys = KeyFetcher()
    service = ControlService(
        FileSource(folder, namespace),
        reported(report, Builder(keys.want)),
        listen,
        allow_plaintext=allow_plaintext,
        keys=keys,
    )
    told = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, told.set)
    try:
        await service.start()
    except ConfigError as error:
        await service.stop()
        print(f"meshlib: {error}", file=sys.stderr)
        return 1
    try:
        console.print(
            f"serving [bold]{folder}[/] at [bold cyan]{service.address}[/]; Ctrl-C ends it", soft_wrap=True
        )
        await _follow(report, service, told)
    finally:
        await service.stop()
    console.print("stopped; clients keep what they have")
    return 0


async def _follow(report: "Report", service: Any, told: asyncio.Event) -> None:
    while not told.is_set():
        report.look(service.hub)
        try:
            async with asyncio.timeout(LOOK_SECONDS):
                await told.wait()
        except TimeoutError:
            continue
