"""`meshlib node`: a real Envoy for the workloads of this machine that are not Python."""

import asyncio
import contextlib
import logging
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from meshlib.cli.node_run import clean, run, workloads

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meshlib.agent.node import Node
    from meshlib.agent.process import Envoy
    from meshlib.cli.node_running import Machine

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=False)
app.command("run", context_settings={"allow_interspersed_args": False})(run)
app.command("list")(workloads)
app.command("clean")(clean)

OPENS = "a list in which it is not, or `meshlib node clean` without an agent, opens it"


@app.callback(invoke_without_command=True)
def node(
    context: typer.Context,
    name: Annotated[
        str | None, typer.Option(help="The node's name, its identity; the machine's name, if not given.")
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option("--workloads", help="A list of workloads in YAML; a saved edit takes effect at once."),
    ] = None,
    control: Annotated[
        str | None, typer.Option(help="Where the control service is; as MESHLIB_CONTROL.")
    ] = None,
    at: Annotated[
        Path | None, typer.Option("--socket", help="Where this agent is spoken to on this machine.")
    ] = None,
    api: Annotated[
        Path | None,
        typer.Option("--workload-api", help="Where the SPIFFE Workload API is served: beside the socket."),
    ] = None,
    subnet: Annotated[
        str | None, typer.Option(help="Where programs that are run get addresses from: 10.215.0.0/24.")
    ] = None,
    max_connections: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Of each workload, those that it makes, is made and gets by tunnels each; more are closed "
            "at once. Without it: as open files and memory allow, 10,000 at most.",
        ),
    ] = None,
    max_heap: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="MiB of memory, near to which Envoy takes no more; 0: any. Without it: all that the machine "
            "has, or the container.",
        ),
    ] = None,
    concurrency: Annotated[int, typer.Option(min=0, help="Threads of Envoy; 0: one for each core.")] = 0,
    drain: Annotated[
        float, typer.Option(min=0, help="Seconds for connections to end when it is told to stop.")
    ] = 30.0,
    open_at_end: Annotated[
        bool,
        typer.Option(
            "--open-at-end",
            help="Remove the rules when it ends: workloads are outside of the mesh then, and open.",
        ),
    ] = False,
) -> None:
    """Run an Envoy for the workloads of this machine: in network namespaces, or explicitly."""
    if context.invoked_subcommand is not None:
        return
    from meshlib.agent.bounds import bounds
    from meshlib.cli.node_running import machine

    found = replace(
        machine(name, control, at, subnet, concurrency, drain, api),
        open_at_end=open_at_end,
        bounds=bounds(max_heap, max_connections),
    )
    logging.basicConfig(format="%(levelname)s %(message)s", stream=sys.stderr, level=logging.WARNING)
    raise typer.Exit(asyncio.run(_serve(found, file)))


async def _serve(machine: "Machine", file: Path | None) -> int:
    from meshlib.agent import node_socket
    from meshlib.cli.node_running import running

    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    with node_socket.alone(machine.socket):
        async with running(machine) as (node, envoy, ready), asyncio.TaskGroup() as group:
            again = asyncio.Event()
            loop.add_signal_handler(signal.SIGHUP, again.set)
            working = [
                group.create_task(_announce(machine, ready)),
                group.create_task(_follow(node, file)),
                group.create_task(_renew(envoy, again)),
            ]
            async with node_socket.serve(machine.socket, node, machine.about):
                await stop.wait()
                node.ending()
            for task in working:
                task.cancel()
            print("draining", flush=True)
            await _drain(node, envoy, stop)
    return 0


async def _announce(machine: "Machine", ready: "asyncio.Task[None]") -> None:
    done, _ = await asyncio.wait((ready,), timeout=10)
    if not done:
        waiting = f"waiting for the control service {machine.settings.control}"
        print(waiting, file=sys.stderr, flush=True)
        await ready
    print(f"node {machine.name} is ready", flush=True)


async def _follow(node: "Node", file: Path | None) -> None:
    """The file's workloads, for ever; what an earlier life left behind is of no use beside them.

    Without a file nobody says of what was captured that it is not wanted any more: it stays closed.
    """
    from meshlib.agent.workloads import follow

    if file is None:
        done, closed = await node.clean_closed()
        _removed(done)
        for one in closed:
            print(f"{one} was captured and stays closed; {OPENS}", flush=True)
        return
    first = True
    async for found in follow(file):
        await node.listed(found)
        if first:
            _removed(await node.clean())
        first = False


def _removed(done: "Sequence[str]") -> None:
    for one in done:
        print(f"removed what was left behind: {one}", flush=True)


async def _renew(envoy: "Envoy", again: asyncio.Event) -> None:
    while True:
        await again.wait()
        again.clear()
        if await envoy.restart():
            print("another Envoy has taken over", flush=True)


async def _drain(node: "Node", envoy: "Envoy", stop: asyncio.Event) -> None:
    """Until connections have ended, or it is told to stop once more."""
    stop.clear()
    hurried = asyncio.create_task(stop.wait())
    await node.drain()
    draining = asyncio.create_task(envoy.drain())
    await asyncio.wait({hurried, draining}, return_when=asyncio.FIRST_COMPLETED)
    for task in (hurried, draining):
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
