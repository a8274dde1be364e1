"""`meshlib control`: serves a folder of YAML until it is told to stop."""

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from meshlib.errors import ConfigError

if TYPE_CHECKING:
    from meshlib.cli.control_report import Report
    from meshlib.cli.control_security import Asked
    from meshlib.control.build import Builder, Keys
    from meshlib.control.serve.server import Security

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
            help="Serve WITHOUT TLS and ask nobody who he is: whoever reaches the address reads all rules "
            "and may register servers. There is no certificate authority then.",
        ),
    ] = False,
    state: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Where the certificate authority is kept; made at the first start. "
            "Without it: a folder in your home.",
        ),
    ] = None,
    ca_dir: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            exists=True,
            file_okay=False,
            help="Istio's plug-in CA files: ca-cert.pem, ca-key.pem, cert-chain.pem, root-cert.pem.",
        ),
    ] = None,
    trust_domain: Annotated[
        str, typer.Option(metavar="NAME", help="Without it the MeshConfig's, then cluster.local.")
    ] = "",
    name: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HOST", help="A further name or address that clients reach this by; repeatable."
        ),
    ] = None,
    kubernetes_jwks: Annotated[
        str,
        typer.Option(
            metavar="URL|FILE", help="Take service account tokens of Kubernetes signed by these keys."
        ),
    ] = "",
    kubernetes_issuer: Annotated[
        str,
        typer.Option(metavar="URL", help="Take such tokens of this issuer; its keys are looked up there."),
    ] = "",
    kubernetes_credentials: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="A folder with ca.crt and token with which such keys are fetched."),
    ] = None,
    gateway: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAMESPACE/ACCOUNT",
            help="A service account that is a gateway: it is given the keys of the Secrets that its Gateways "
            "name, of its own namespace; repeatable.",
        ),
    ] = None,
) -> None:
    """Serve a folder of Istio YAML to the mesh; a saved edit takes effect within a second."""
    from meshlib.cli.address import checked_address
    from meshlib.cli.control_security import Asked

    # gRPC's own log lines would stand beside ours when the port is taken; it reads this when imported.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    checked_address(listen, "--listen")
    asked = Asked(
        state,
        ca_dir,
        trust_domain,
        tuple(name or ()),
        kubernetes_jwks,
        kubernetes_issuer,
        kubernetes_credentials,
        _accounts(gateway or ()),
    )
    if allow_plaintext and asked != Asked(state=state):
        raise typer.BadParameter(
            "without TLS there is no authority to be set up", param_hint="--allow-plaintext"
        )
    raise typer.Exit(asyncio.run(_serve(folder, listen, namespace, None if allow_plaintext else asked)))


async def _serve(folder: Path, listen: str, namespace: str, asked: "Asked | None") -> int:
    """`asked` is None for plaintext."""
    from rich.console import Console

    from meshlib.cli.control_report import Report, reported
    from meshlib.cli.control_rotation import RotationReport
    from meshlib.cli.control_security import how_to_join, many_files, secured
    from meshlib.cli.foreign import Format
    from meshlib.control.jwks import KeyFetcher
    from meshlib.control.service import ControlService
    from meshlib.control.sources.files import FileSource
    from meshlib.printable import printable

    console = Console()
    handler = logging.StreamHandler()
    handler.setFormatter(Format("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    report = Report(console)
    many_files()
    source = FileSource(folder, namespace)
    security = secured(asked, source) if asked is not None else None
    if security is not None:
        security = replace(security, changed=RotationReport(console, security.authority).look)
    keys = KeyFetcher()
    service = ControlService(
        source,
        reported(report, _builder(keys.want, asked, security)),
        listen,
        security=security,
        allow_plaintext=security is None,
        keys=keys,
    )
    told = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, told.set)
    try:
        await service.start()
    except ConfigError as error:
        await service.stop()
        print(f"meshlib: {printable(str(error))}", file=sys.stderr)
        return 1
    try:
        console.print(
            f"serving [bold]{folder}[/] at [bold cyan]{service.address}[/]; Ctrl-C ends it", soft_wrap=True
        )
        if asked is None or security is None:
            console.print("[bold red]PLAINTEXT: no TLS, and nobody is asked who he is[/]")
        else:
            how_to_join(console, asked, security, service.address)
        await _follow(report, service, told)
    finally:
        await service.stop()
    console.print("stopped; clients keep what they have")
    return 0


def _builder(keys: "Keys", asked: "Asked | None", security: "Security | None") -> "Builder":
    from meshlib.control.build import Builder

    if asked is None or security is None:
        return Builder(keys)
    return Builder(keys, security.authority.trust_domain, asked.gateways)


def _accounts(given: Sequence[str]) -> tuple[tuple[str, str], ...]:
    from meshlib.identity.spiffe import SpiffeId

    found = []
    for text in given:
        namespace, _, account = text.partition("/")
        try:
            SpiffeId.of("cluster.local", namespace, account)
        except ValueError:
            raise typer.BadParameter(f"{text!r} is not NAMESPACE/ACCOUNT", param_hint="--gateway") from None
        found.append((namespace, account))
    return tuple(found)


async def _follow(report: "Report", service: Any, told: asyncio.Event) -> None:
    while not told.is_set():
        report.look(service.hub, service.notes)
        try:
            async with asyncio.timeout(LOOK_SECONDS):
                await told.wait()
        except TimeoutError:
            continue
