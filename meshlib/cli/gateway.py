"""`meshlib gateway`: an Envoy at the edge of the mesh, for Gateways and the VirtualServices bound to them."""

import asyncio
import contextlib
import logging
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from meshlib.agent.admin import Listening
    from meshlib.agent.agent import Gateway
    from meshlib.agent.bootstrap import Edge
    from meshlib.bootstrap import Bootstrap

NAME = "ingressgateway"


def gateway(
    name: Annotated[
        str, typer.Option(help="Its name: gives the labels istio=NAME and app=istio-NAME.")
    ] = NAME,
    control: Annotated[
        str | None, typer.Option(help="Where the control service is; as MESHLIB_CONTROL.")
    ] = None,
    address: Annotated[
        str, typer.Option(help="Listen at this address, where a Gateway does not say `bind`; empty: at all.")
    ] = "",
    port: Annotated[
        list[str] | None,
        typer.Option(help="PORT=OWN, several times: listen at OWN for PORT of a Gateway, such as 80=8080."),
    ] = None,
    reuse_port: Annotated[
        bool,
        typer.Option(
            "--reuse-port",
            help="Share the ports with other gateways of this user that say so, too (SO_REUSEPORT).",
        ),
    ] = False,
    namespace: Annotated[str | None, typer.Option(help="As MESHLIB_NAMESPACE.")] = None,
    service_account: Annotated[str | None, typer.Option(help="As MESHLIB_SERVICE_ACCOUNT.")] = None,
    label: Annotated[
        list[str] | None, typer.Option(help="name=value, several times, instead of those of the name.")
    ] = None,
    max_connections: Annotated[
        int, typer.Option(min=1, help="Of all clients together; more are closed at once.")
    ] = 50_000,
    max_heap: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="MiB of memory, near to which it takes no more; 0: any. Without it: all that the machine "
            "has, or the container.",
        ),
    ] = None,
    concurrency: Annotated[int, typer.Option(min=0, help="Threads of Envoy; 0: one for each core.")] = 0,
    drain: Annotated[
        float, typer.Option(min=0, help="Seconds for connections to end when it is told to stop.")
    ] = 30.0,
) -> None:
    """Run an Envoy at the edge, for Gateways and the VirtualServices bound to them."""
    from meshlib.agent.bootstrap import Edge
    from meshlib.agent.memory import memory
    from meshlib.bootstrap import bootstrap
    from meshlib.errors import ConfigError

    labels = ",".join(label) if label else f"istio={name},app=istio-{name}"
    settings = bootstrap(
        control=control,
        service=None if label else f"istio-{name}",
        namespace=namespace,
        service_account=service_account,
        labels=labels,
    )
    if settings.local:
        raise ConfigError(f"control: found {settings.control!r}; a gateway needs a service, HOST:PORT")
    heap = memory() if max_heap is None else max_heap * 1024 * 1024
    edge = Edge(name, _address(address), _ports(port or ()), reuse_port, max_connections, heap)
    logging.basicConfig(format="%(levelname)s %(message)s", stream=sys.stderr, level=logging.WARNING)
    more = ("--concurrency", str(concurrency)) if concurrency else ()
    raise typer.Exit(asyncio.run(_run(settings, edge, drain, more)))


async def _run(settings: "Bootstrap", edge: "Edge", drain: float, more: Sequence[str]) -> int:
    from meshlib.agent.agent import run_gateway
    from meshlib.dataplane.mesh import identity

    stop, started, loop = asyncio.Event(), asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, stop.set)
    certificates = identity(settings)
    running: Any = run_gateway(settings, edge, certificates, drain_seconds=drain, arguments=more)
    serving = asyncio.create_task(_serve(running, edge, settings, stop, started))
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not started.is_set():
        serving.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await serving
    return 0


async def _serve(
    running: Any, edge: "Edge", settings: "Bootstrap", stop: asyncio.Event, started: asyncio.Event
) -> None:
    """Until it is told to stop and has drained."""
    async with running as found:
        started.set()
        telling = asyncio.create_task(_tell(found, edge, settings))
        await stop.wait()
        telling.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await telling
        print("draining", flush=True)
        hurried = asyncio.create_task(_again(stop))
        draining = asyncio.create_task(found.envoy.drain())
        await asyncio.wait({hurried, draining}, return_when=asyncio.FIRST_COMPLETED)
        for task in (hurried, draining):
            task.cancel()


async def _again(stop: asyncio.Event) -> None:
    """Until it is told to stop once more."""
    stop.clear()
    await stop.wait()


async def _tell(found: "Gateway", edge: "Edge", settings: "Bootstrap") -> None:
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(_patience(settings))
        await found.wait_ready()
        waiting.cancel()
        print(f"gateway {edge.name} is ready", flush=True)
        group.create_task(found.follow(_listens))


async def _patience(settings: "Bootstrap") -> None:
    await asyncio.sleep(10)
    print(f"waiting for the control service {settings.control}", file=sys.stderr, flush=True)


def _listens(listeners: "Sequence[Listening]") -> None:
    for one in listeners:
        print(f"listens at {one.address} for port {one.name.rpartition('_')[2]} of its Gateways", flush=True)
    if not listeners:
        why = "no Gateway selects its labels, or it can have none of their ports"
        print(f"listens nowhere: {why}", flush=True)


def _address(text: str) -> str:
    import ipaddress

    try:
        return str(ipaddress.ip_address(text)) if text else ""
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no IP address", param_hint="--address") from None


def _ports(given: Sequence[str]) -> dict[int, int]:
    found: dict[int, int] = {}
    for text in given:
        parts = text.split("=")
        numbers = [int(part) for part in parts if part.isascii() and part.isdecimal()]
        if len(parts) != 2 or len(numbers) != 2 or not all(0 < number < 65536 for number in numbers):
            raise typer.BadParameter(
                f"{text!r} is not PORT=OWN, two ports from 1 to 65535", param_hint="--port"
            )
        if numbers[0] in found:
            raise typer.BadParameter(f"port {numbers[0]} stands twice", param_hint="--port")
        found[numbers[0]] = numbers[1]
    return found
