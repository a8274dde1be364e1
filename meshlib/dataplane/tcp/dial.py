"""Connections for a client library's own TLS, by the mesh's `tls` rules: what a sidecar does with https://.

Rules:

- The library is given a plain socket that leads where the rules say, and shakes hands on it itself.
- Where no rule can say anything (all chains pass through), the library connects as it does without the mesh.
"""

import socket
import ssl
from typing import TYPE_CHECKING

from meshlib.core.view import View
from meshlib.dataplane.tcp.asked import Meshed
from meshlib.dataplane.tcp.sockets import create_connection
from meshlib.errors import ControlError
from meshlib.xds.names import PASSTHROUGH_CLUSTER

if TYPE_CHECKING:
    import asyncio


def is_ruled(mesh: Meshed, host: str, port: int) -> bool:
    """Whether the mesh makes connections to that host and port."""
    if mesh.network is not None:
        return False
    try:
        view = mesh.prepare(_target(host, port))
    except ControlError:
        return False
    return _rules(view, host, port)


async def ais_ruled(mesh: Meshed, host: str, port: int) -> bool:
    """As `is_ruled`, on asyncio."""
    if mesh.network is not None:
        return False
    try:
        view = await mesh.aprepare(_target(host, port))
    except ControlError:
        return False
    return _rules(view, host, port)


def dial(mesh: Meshed, host: str, port: int, name: str | None, seconds: float | None) -> socket.socket:
    """A plain socket. `name`: the server's, that is asked for (SNI). Errors: see `create_connection`."""
    made = create_connection(mesh, (host, port), seconds, None, name)
    if not isinstance(made, ssl.SSLSocket):
        return made
    from meshlib.dataplane.tcp.relay import relayed

    return relayed(made)


async def adial(mesh: Meshed, host: str, port: int, name: str | None) -> socket.socket:
    """As `dial`, on asyncio: a socket that does not block."""
    import asyncio

    loop = asyncio.get_running_loop()
    task = loop.run_in_executor(None, dial, mesh, host, port, name, None)
    try:
        made = await asyncio.shield(task)
    except asyncio.CancelledError:
        task.add_done_callback(_close)
        raise
    made.setblocking(False)
    return made


def _close(task: "asyncio.Future[socket.socket]") -> None:
    if not task.cancelled() and task.exception() is None:
        task.result().close()


def _target(host: str, port: int) -> str:
    return f"[{host.lower()}]:{port}" if ":" in host else f"{host.lower()}:{port}"


def _rules(view: View, host: str, port: int) -> bool:
    found = view.connections.get(_target(host, port))
    return found is not None and any(
        share.cluster != PASSTHROUGH_CLUSTER for chain in found.every for share in chain.shares
    )
