"""`meshlib serve`: any ASGI or WSGI application, in the mesh."""

import asyncio
import os
import socket
import sys
from typing import Annotated, Any

import typer

Interface = typer.Option(help="What the application is: auto, asgi or wsgi.")


def serve(
    target: Annotated[str, typer.Argument(metavar="MODULE:NAME", help="The application, or its factory.")],
    service: Annotated[
        str | None, typer.Option(help="The service that this is part of; gives the label app, too.")
    ] = None,
    host: Annotated[str, typer.Option(help="The address to serve at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free port.")] = 9080,
    port_name: Annotated[str, typer.Option(help="The port's name: http, http2, grpc, …")] = "http",
    workers: Annotated[int, typer.Option(min=1, max=256, help="How many processes serve.")] = 1,
    interface: Annotated[str, Interface] = "auto",
    factory: Annotated[bool, typer.Option("--factory", help="NAME is called for the application.")] = False,
    threads: Annotated[
        int, typer.Option(min=1, max=1024, help="Of each process, for a WSGI application.")
    ] = 32,
    namespace: Annotated[str | None, typer.Option(help="As MESHLIB_NAMESPACE.")] = None,
    service_account: Annotated[str | None, typer.Option(help="As MESHLIB_SERVICE_ACCOUNT.")] = None,
    label: Annotated[
        list[str] | None, typer.Option(help="name=value, several times; as MESHLIB_LABELS.")
    ] = None,
    graceful: Annotated[
        float, typer.Option(min=0, help="Seconds for requests in flight when it is told to stop.")
    ] = 30.0,
    fd: Annotated[int | None, typer.Option(hidden=True, help="A listening socket, inherited.")] = None,
    worker: Annotated[bool, typer.Option("--worker", hidden=True)] = False,
) -> None:
    """Serve an application in the mesh: mutual TLS, policy, telemetry, registration, graceful drain."""
    from meshlib.bootstrap import bootstrap
    from meshlib.cli.serve_target import INTERFACES, load

    if interface not in INTERFACES:
        raise typer.BadParameter(
            f"{interface!r} is none of {', '.join(INTERFACES)}", param_hint="--interface"
        )
    who: dict[str, Any] = {
        "service": service,
        "namespace": namespace,
        "service_account": service_account,
        "labels": ",".join(label) if label else None,
    }
    listening = socket.socket(fileno=fd) if fd is not None else _bind(host, port)
    number = listening.getsockname()[1]
    settings = bootstrap(**who, address=None if _anywhere(host) else host, ports={port_name: number})
    if workers > 1:
        raise typer.Exit(_watch(listening, workers, graceful, settings))
    app = load(target, interface, threads, factory)
    from meshlib.dataplane.telemetry.wiring import wired

    with wired(settings, os.environ):
        code = asyncio.run(_serve(app, listening, settings, worker, graceful))
    raise typer.Exit(code)


async def _serve(app: Any, listening: socket.socket, settings: Any, worker: bool, graceful: float) -> int:
    from meshlib.cli.serve_workers import READY
    from meshlib.dataplane.mesh import Mesh
    from meshlib_uvicorn import serve as run

    def ready() -> None:
        if worker:
            sys.stdout.buffer.write(READY)
            sys.stdout.buffer.flush()
        else:
            print(f"serving at {_shown(listening)}", flush=True)

    async with Mesh(settings) as mesh:
        register = None if worker else _registrar(settings)
        return await run(app, listening, mesh, register, ready=ready, graceful=graceful, log_level="warning")


def _watch(listening: socket.socket, count: int, graceful: float, settings: Any) -> int:
    from meshlib.cli.serve_workers import Workers

    command = ["meshlib.cli", *_without(sys.argv[1:], "--workers"), "--worker"]
    print(f"serving at {_shown(listening)} with {count} workers", flush=True)
    return Workers(command, listening, count, _registrar(settings), graceful).run()


def _registrar(settings: Any) -> Any:
    from meshlib.dataplane.register import Registration

    return lambda: Registration(settings, mutual_tls=True)


def _bind(host: str, port: int) -> socket.socket:
    from meshlib.errors import ConfigError

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        raise ConfigError(f"can't serve at {host}:{port}: {error.strerror or error}") from None


def _anywhere(host: str) -> bool:
    return host in ("0.0.0.0", "::")  # noqa: S104 - compared, not bound


def _shown(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _without(arguments: list[str], option: str) -> list[str]:
    """The arguments without one option and its value."""
    kept: list[str] = []
    skip = False
    for argument in arguments:
        if skip or argument == option:
            skip = argument == option
        elif not argument.startswith(f"{option}="):
            kept.append(argument)
    return kept
