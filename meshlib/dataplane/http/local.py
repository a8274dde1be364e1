"""Sockets of the file system, by which an endpoint on the same machine is reached: they have no port."""

import socket

Address = tuple[str, int]


def path_of(address: Address) -> str | None:
    """The path to connect to; None: it is a host with a port. `@name` is one of Linux's, without a file."""
    path, port = address
    if port:
        return None
    return f"\0{path[1:]}" if path.startswith("@") else path


def connect(path: str, timeout: float) -> socket.socket:
    """OSError: nobody listens there."""
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        made.settimeout(timeout)
        made.connect(path)
    except BaseException:
        made.close()
        raise
    return made
