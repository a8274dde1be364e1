"""How a node of this machine is put together: its settings, its Envoy, its workloads' part in the mesh."""

import asyncio
import contextlib
import ipaddress
import socket
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from meshlib.agent.agent import run_node, wait_ready
from meshlib.agent.bounds import Bounds, bounds
from meshlib.agent.capture import Captures
from meshlib.agent.netns import SUBNET
from meshlib.agent.node import Node
from meshlib.agent.node_socket import fitting, own_folder, socket_path
from meshlib.agent.process import Envoy
from meshlib.agent.secrets import Secrets
from meshlib.bootstrap import Bootstrap, bootstrap
from meshlib.dataplane.address import own_address
from meshlib.dataplane.control_socket import leading_to, listen_at
from meshlib.dataplane.membership import Memberships
from meshlib.dataplane.node_state import node_state
from meshlib.errors import ConfigError
from meshlib.identity.spiffe import SpiffeId
from meshlib.xds.names import NODE_NAMESPACE


@dataclass(frozen=True, slots=True)
class Machine:
    """What was said of the node."""

    name: str
    settings: Bootstrap
    """Of the node's own identity."""
    socket: Path
    subnet: str
    concurrency: int
    drain: float
    workload_api: Path | None
    """Where the SPIFFE Workload API is served; None: nowhere."""
    open_at_end: bool = False
    """Whether what is captured is opened when the agent ends."""
    bounds: Bounds = field(default_factory=bounds)

    @property
    def about(self) -> dict[str, Any]:
        """What the agent says of itself; `told`: more variables for the environment of programs."""
        api = self.workload_api
        told = {} if api is None else {"SPIFFE_ENDPOINT_SOCKET": f"unix://{api}"}
        return {"name": self.name, "subnet": self.subnet, "told": told}

    @property
    def record(self) -> Path:
        """What is captured, for those who come after a crash."""
        return self.socket.with_suffix(".captured")


def machine(
    name: str | None,
    control: str | None,
    at: Path | None,
    subnet: str | None,
    concurrency: int,
    drain: float,
    workload_api: Path | None = None,
) -> Machine:
    """ConfigError: something of it can't be used."""
    name = name or socket.gethostname().lower()
    settings = bootstrap(control=control, namespace=NODE_NAMESPACE, service_account=name)
    if settings.local:
        raise ConfigError(f"control: found {settings.control!r}; a node needs a service, HOST:PORT")
    try:
        network = ipaddress.IPv4Network(subnet) if subnet else SUBNET
    except ValueError as error:
        raise ConfigError(f"subnet: {error}; allowed is one such as {SUBNET}") from None
    path = socket_path(at)
    api = fitting("workload-api", workload_api or path.with_name("workload-api.sock"))
    served = sys.platform == "linux" and not settings.allow_plaintext
    return Machine(name, settings, path, str(network), concurrency, drain, api if served else None)


@contextlib.asynccontextmanager
async def running(machine: Machine) -> "AsyncIterator[tuple[Node, Envoy, asyncio.Task[None]]]":
    """The node, for the time of the block; the task ends when its Envoy serves."""
    settings = machine.settings
    members = Memberships(settings, machine.name)
    secure = members.own.secure if members.own is not None else _in_plain_text
    own_folder(machine.record)
    node = run_node(
        settings,
        machine.name,
        machine.bounds,
        members.own,
        Secrets(lambda: None if members.own is None else members.own.held, members.held),
        members.join,
        Captures(machine.record),
        lambda: settings.address or own_address(settings.control),
        lambda path: leading_to(settings.control, listen_at(path), secure),
        node_state(settings, machine.name),
        open_at_end=machine.open_at_end,
        drain_seconds=machine.drain,
        arguments=("--concurrency", str(machine.concurrency)) if machine.concurrency else (),
    )
    try:
        async with node as (found, envoy, admin), _workload_api(machine, found, members):
            ready = asyncio.create_task(wait_ready(admin))
            try:
                yield found, envoy, ready
            finally:
                ready.cancel()
                await asyncio.gather(ready, return_exceptions=True)
    finally:
        members.close()


def _in_plain_text() -> None:
    """Nothing secures it."""


def _workload_api(
    machine: Machine, node: Node, members: Memberships
) -> contextlib.AbstractAsyncContextManager[object]:
    if machine.workload_api is None or members.own is None:
        return contextlib.nullcontext()
    from meshlib.agent.callers import Enrolled
    from meshlib.agent.workload_api import WorkloadApi

    def enrolled() -> list[Enrolled]:
        own = None if members.own is None else members.own.held
        domain = "" if own is None else SpiffeId.parse(own.principal).trust_domain
        return [
            Enrolled(
                SpiffeId(domain, one.workload.namespace, one.workload.service_account),
                one.workload.netns,
                one.process_id,
            )
            for one in node.members
            if domain
        ]

    return WorkloadApi(machine.workload_api, enrolled, members.held)
