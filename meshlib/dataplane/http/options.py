"""What is set on the socket of a connection: no delay, and the cluster's keep-alive.

A system that knows a number of keep-alive by no name goes by its own.
"""

import socket

from meshlib.core.balance.cluster import Keepalive

_PROBES, _INTERVAL = "TCP_KEEPCNT", "TCP_KEEPINTVL"
_IDLE = ("TCP_KEEPIDLE", "TCP_KEEPALIVE")
"""Linux's name, and macOS's."""


def set_options(made: socket.socket, keepalive: Keepalive | None) -> None:
    """On a new connection; OSError: the system refuses a number."""
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if keepalive is None:
        return
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    _set(made, keepalive.probes, _PROBES)
    _set(made, keepalive.idle, *_IDLE)
    _set(made, keepalive.interval, _INTERVAL)


def _set(made: socket.socket, value: int | None, *names: str) -> None:
    number = next((getattr(socket, name) for name in names if hasattr(socket, name)), None)
    if value is not None and number is not None:
        made.setsockopt(socket.IPPROTO_TCP, number, value)
