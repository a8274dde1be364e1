"""`meshlib node run`, `list` and `clean`: what is said to the agent of this machine's node."""

import asyncio
import contextlib
import logging
import os
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from meshlib.agent.program import Agent
    from meshlib.agent.workload import Workload
    from meshlib.cli.node_running import Machine

Socket = Annotated[Path | None, typer.Option("--socket", help="Where the node's agent is spoken to.")]
EXPLICIT = """\
explicit mode: requests that come in, and HTTP by way of HTTP_PROXY, are in the mesh; nothing is captured.
What the program sends otherwise, TCP and DNS included, is not; and it can be reached beside the mesh."""


def run(
    command: Annotated[list[str], typer.Argument(metavar="-- PROGRAM [ARGUMENTS]…", help="What to run.")],
    service: Annotated[str, typer.Option(help="Of which service it is; as MESHLIB_SERVICE.")],
    port: Annotated[
        list[str], typer.Option(help="[NAME=]PORT, several times: what it serves, and others call.")
    ],
    account: Annotated[str | None, typer.Option(help="Its service account.")] = None,
    namespace: Annotated[str | None, typer.Option(help="Its namespace.")] = None,
    labels: Annotated[str | None, typer.Option(help="name=value,…, instead of those of the service.")] = None,
    locality: Annotated[str | None, typer.Option(help="region/zone/subzone.")] = None,
    address: Annotated[
        str | None, typer.Option(help="Explicit mode: the address at which others reach it.")
    ] = None,
    app_port: Annotated[
        list[str] | None, typer.Option(help="PORT=OWN, several times: where it listens itself for PORT.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Of the workload on its node: SERVICE-PID.")] = None,
    explicit: Annotated[
        bool, typer.Option("--explicit", help="No network namespace, also as root: nothing is captured.")
    ] = False,
    node: Annotated[
        str | None, typer.Option(help="If no agent answers: the name of the node that is run for it.")
    ] = None,
    control: Annotated[
        str | None, typer.Option(help="If no agent answers: where the control service is.")
    ] = None,
    subnet: Annotated[
        str | None, typer.Option(help="If no agent answers: where its address is taken from.")
    ] = None,
    agent_only: Annotated[
        bool, typer.Option("--agent-only", help="Wait a minute for an agent; run no node for it.")
    ] = False,
    at: Socket = None,
) -> None:
    """Run a program as a workload of this machine's node; of one of its own, if there is none."""
    from meshlib.agent.workload import Workload

    said: dict[str, Any] = {
        "name": name or f"{service}-{os.getpid()}",
        "service": service,
        "namespace": namespace,
        "serviceAccount": account,
        "labels": labels,
        "locality": locality,
        "address": address,
        "ports": _ports(port),
        "appPorts": _app_ports(app_port or ()),
    }
    workload = Workload.of({field: value for field, value in said.items() if value})
    logging.basicConfig(format="meshlib: %(message)s", stream=sys.stderr, level=logging.WARNING)
    capture = not explicit and os.geteuid() == 0
    if not capture:
        print(EXPLICIT, file=sys.stderr)
    own = None if agent_only else (node, control, subnet)
    raise typer.Exit(asyncio.run(_run(workload, command, capture, at, own)))


Own = tuple[str | None, str | None, str | None]
"""Name, control service and subnet of a node of our own."""
AGENT_SECONDS = 60.0


async def _run(
    workload: "Workload",
    command: Sequence[str],
    capture: bool,
    at: Path | None,
    node: Own | None,
) -> int:
    from meshlib.agent.program import run_program

    async with _agent(at, node) as (agent, about):
        subnet = str(about["subnet"]) if capture else None
        return await run_program(workload, command, agent, subnet=subnet, told=about.get("told"))


@contextlib.asynccontextmanager
async def _agent(at: Path | None, node: Own | None) -> "AsyncIterator[tuple[Agent, Mapping[str, Any]]]":
    """The agent of this machine's node, or one of our own; and what it says of itself.

    ConfigError: there is no agent, and none of our own is wanted.
    """
    from meshlib.agent import node_socket
    from meshlib.agent.program import AgentAt
    from meshlib.errors import ConfigError

    path = node_socket.socket_path(at)
    try:
        about = await node_socket.answering(path, 0.0 if node else AGENT_SECONDS)
    except node_socket.NodeUnreachable as error:
        if node is None:
            raise ConfigError(f"socket: {error}") from None
        from meshlib.cli.node_running import machine, running

        print(f"no `meshlib node` answers at {path}; one is run for this program", file=sys.stderr)
        name, control, subnet = node
        api = _of_this_run(path).with_suffix(".api.sock")
        own: Machine = machine(name, control, _of_this_run(path), subnet, 1, 5.0, api)
        async with running(own) as (found, _, _):
            yield found, own.about
    else:
        yield AgentAt(path), about


def _of_this_run(path: Path) -> Path:
    return path.with_name(f"run-{os.getpid()}.sock")


def _ports(given: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in given:
        name, _, number = text.rpartition("=")
        name = name or ("http" if not found else f"http-{number}")
        if name in found:
            raise typer.BadParameter(f"the name {name} stands twice", param_hint="--port")
        found[name] = number
    return found


def _app_ports(given: Sequence[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for text in given:
        port, _, own = text.partition("=")
        if not (own.isascii() and own.isdecimal()):
            raise typer.BadParameter(f"{text!r} is not PORT=OWN", param_hint="--app-port")
        found[port] = int(own)
    return found


def workloads(
    at: Socket = None,
    output: Annotated[str, typer.Option("--output", "-o", help="text or json.")] = "text",
) -> None:
    """List the workloads of this machine's node."""
    import json

    said = asyncio.run(_asked(at, {"do": "list"}))
    found = said["workloads"]
    if output == "json":
        print(json.dumps(found, indent=2))
        return
    for one in found:
        ports = ",".join(f"{name}={number}" for name, number in one["ports"].items())
        where = one.get("netns", "explicit")
        state = f"not ready: {one['why']}" if one["why"] else "ready"
        print(f"{one['name']}  {one.get('address', '-')}  {ports}  {where}  {state}")
    if not found:
        print("no workloads")


async def _asked(at: Path | None, asked: dict[str, Any]) -> Any:
    from meshlib.agent import node_socket
    from meshlib.errors import ConfigError

    try:
        return await node_socket.ask(node_socket.socket_path(at), asked)
    except node_socket.NodeUnreachable as error:
        raise ConfigError(f"socket: {error}") from None


def clean(at: Socket = None) -> None:
    """Remove what a crashed agent left behind: rules in namespaces, and namespaces of programs."""
    logging.basicConfig(format="meshlib: %(message)s", stream=sys.stderr, level=logging.WARNING)
    done, whole = asyncio.run(_clean(at))
    for one in done:
        print(f"removed: {one}")
    raise typer.Exit(0 if whole else 1)


async def _clean(at: Path | None) -> tuple[list[str], bool]:
    """What was removed, and whether that is all; what is not was told."""
    from meshlib.agent import node_socket
    from meshlib.agent.capture import Captures
    from meshlib.agent.folder import sweep
    from meshlib.agent.netns import ours
    from meshlib.agent.node import clean as cleaned

    path = node_socket.socket_path(at)
    done, whole = list[str](), True
    # An agent that runs cleans up itself, when it starts.
    with node_socket.alone(path):
        for record in sorted({path.with_suffix(".captured"), *path.parent.glob("run-*.captured")}):
            captures = Captures(record)
            done += [f"the link {one}" for one in captures.sweep()]
            done += await cleaned(captures, set())
            if captures.held - {one.path for one in ours()}:
                whole = False
            elif not captures.held:
                record.unlink(missing_ok=True)
        done += [f"the folder {one}" for kind in ("node", "workload-api") for one in sweep(kind)]
        for one in (path, path.with_name("workload-api.sock"), *path.parent.glob("run-*.sock")):
            if node_socket.left_behind(one):
                one.unlink(missing_ok=True)
                done.append(f"the socket {one}")
    return done, whole
