"""`meshlib bootstrap grpc`: what gRPC's own xDS client and server need to be in the mesh, in any language."""

import asyncio
import json
import logging
import os
import shlex
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from meshlib.bootstrap import Bootstrap
    from meshlib.dataplane.certfolder import CertFolder
    from meshlib.dataplane.certs import Certs
    from meshlib.dataplane.tls import Held

log = logging.getLogger(__name__)

app = typer.Typer(
    name="bootstrap",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="What a program needs that speaks xDS by itself: gRPC's own bootstrap, and certificates.",
)


@app.callback()
def _bootstrap() -> None:
    """So that there is a command below this one, though it is the only one."""


@app.command()
def grpc(
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Where bootstrap.json, certificate, key and roots are written. Without it: the first is "
            "printed, and the others are below MESHLIB_STATE_DIR.",
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            metavar="ID", help="What `meshlib status` calls the program; default: account and machine."
        ),
    ] = None,
    keep: Annotated[
        bool,
        typer.Option(
            "--keep",
            help="Run on: renew the certificate and follow the roots, and lead to the control service by a "
            "socket in DIR, which gRPC of every language can use.",
        ),
    ] = False,
    control: Annotated[str | None, typer.Option(metavar="ADDRESS:PORT", help="As MESHLIB_CONTROL.")] = None,
    namespace: Annotated[str | None, typer.Option(help="As MESHLIB_NAMESPACE.")] = None,
    service_account: Annotated[str | None, typer.Option(help="As MESHLIB_SERVICE_ACCOUNT.")] = None,
    label: Annotated[
        list[str] | None, typer.Option(help="name=value, several times; as MESHLIB_LABELS.")
    ] = None,
) -> None:
    """Print, or write, the bootstrap of gRPC's own xDS client and server, with a certificate beside it.

    Who the program is, the environment says, as for any workload of the mesh: MESHLIB_CONTROL,
    MESHLIB_CA_FINGERPRINT, MESHLIB_TOKEN, … A certificate lasts a day: without --keep, run this again
    in time.
    """
    from meshlib.bootstrap import bootstrap
    from meshlib.cli.foreign import Format
    from meshlib.dataplane.certfolder import CertFolder
    from meshlib.dataplane.mesh import identity
    from meshlib.errors import ConfigError

    handler = logging.StreamHandler()
    handler.setFormatter(Format("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    settings = bootstrap(
        control=control,
        namespace=namespace,
        service_account=service_account,
        labels=",".join(label) if label else None,
    )
    if settings.local:
        raise ConfigError(
            f"gRPC needs a control service, ADDRESS:PORT; {settings.control} is a folder or file"
        )
    name = name or f"grpc~{settings.service_account}.{settings.namespace}~{os.uname().nodename}"[:253]
    certs = identity(settings)
    if certs is None:
        _plain(settings, name, out, keep)
        return
    if out is None and settings.state_dir is None:
        raise ConfigError("there is nowhere to keep a certificate: --out, or MESHLIB_STATE_DIR, is needed")
    where = out if out is not None else settings.state_dir / "grpc"  # type: ignore[operator]
    certs.use()
    try:
        with CertFolder(where) as folder:
            held = certs.ensure()
            if keep:
                asyncio.run(_kept(settings, name, certs, folder, written=out is not None))
            else:
                _once(settings, name, held, folder, written=out is not None)
    finally:
        certs.leave()


def _plain(settings: "Bootstrap", name: str, out: Path | None, keep: bool) -> None:
    """Without TLS there is nothing but the bootstrap itself."""
    from meshlib.dataplane.certfolder import CertFolder
    from meshlib.dataplane.grpc_bootstrap import grpc_bootstrap
    from meshlib.errors import ConfigError

    if keep:
        raise ConfigError(
            "--keep: in plain text (MESHLIB_ALLOW_PLAINTEXT) there is no certificate to be kept"
        )
    made = grpc_bootstrap(settings, name, None)
    if out is None:
        _tell(made, None)
    else:
        with CertFolder(out) as folder:
            _tell(made, folder)


def _once(settings: "Bootstrap", name: str, held: "Held", folder: "CertFolder", *, written: bool) -> None:
    from meshlib.dataplane.grpc_bootstrap import check_name, grpc_bootstrap

    try:
        check_name(settings, held)
    except OSError as error:
        log.warning("the control service %s does not answer now: %s", settings.control, error)
    folder.write(held)
    _tell(grpc_bootstrap(settings, name, folder), folder if written else None)


async def _kept(
    settings: "Bootstrap", name: str, certs: "Certs", folder: "CertFolder", *, written: bool
) -> None:
    from meshlib.dataplane.control_socket import listen_at
    from meshlib.dataplane.grpc_bootstrap import grpc_bootstrap
    from meshlib.dataplane.grpc_keep import kept, socket_of

    told, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, told.set)
    path = socket_of(folder)
    async with kept(settings.control, certs, folder, listen_at(path)):
        made = grpc_bootstrap(settings, name, folder, str(path))
        _tell(made, folder if written else None)
        await told.wait()


def _tell(made: Mapping[str, Any], folder: "CertFolder | None") -> None:
    """Prints the bootstrap, or writes it and prints the environment that names it."""
    from meshlib.dataplane.grpc_bootstrap import FILE

    text = json.dumps(made, indent=2)
    if folder is None:
        typer.echo(text)
    else:
        typer.echo(f"export GRPC_XDS_BOOTSTRAP={shlex.quote(str(folder.put(FILE, text + chr(10))))}")
