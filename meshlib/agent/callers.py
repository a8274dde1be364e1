"""Who is at the other end of a Unix socket of this machine: which workload, by its process.

Rules:

- The kernel says which process connected. A descriptor of that process is held (`SO_PEERPIDFD`), so that
  another with the same number is never taken for it. Before Linux 6.5 it is opened when the connection is
  taken, a moment later.
- A workload with a network namespace of its own is whoever is in it; one without is the process that was
  started as it, and what that started. The node's own namespace is nobody's.
- A process that has ended, or that can't be looked at, is nobody; so is one that connected and handed on.
"""

import contextlib
import errno
import os
import select
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from meshlib.identity.spiffe import SpiffeId

_PEERPIDFD = 77
"""SO_PEERPIDFD, which Python has no name for."""
_CREDENTIALS = struct.Struct("3i")
_MOST_PARENTS = 256
_PROC = Path("/proc")

Namespace = tuple[int, int]
"""The device and the number of a network namespace."""


@dataclass(frozen=True, slots=True)
class Enrolled:
    """A workload of this node, as the kernel knows it."""

    identity: SpiffeId
    netns: str = ""
    """The file of its network namespace; empty: it has none of its own."""
    pid: int = 0
    """The process that was started as it, where it has no namespace; 0: none was."""


class Process:
    """A process that connected. Close it."""

    def __init__(self, connected: socket.socket) -> None:
        """OSError: it is gone, or the kernel does not say who it is."""
        found = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        self.pid, self.uid, _ = _CREDENTIALS.unpack(found)
        if self.pid <= 0:
            raise ProcessLookupError("it is of a process that can't be seen from here")
        try:
            self._descriptor = connected.getsockopt(socket.SOL_SOCKET, _PEERPIDFD)
        except OSError as error:
            if error.errno != errno.ENOPROTOOPT:
                raise
            self._descriptor = os.pidfd_open(self.pid)

    def __repr__(self) -> str:
        return f"<Process {self.pid} of user {self.uid}>"

    @property
    def alive(self) -> bool:
        """Whether it has not ended."""
        poll = select.poll()
        poll.register(self._descriptor, select.POLLIN)
        return not poll.poll(0)

    def namespace(self) -> Namespace | None:
        """Its network namespace; None: it can't be looked at."""
        return namespace(str(_PROC / str(self.pid) / "ns/net"))

    def among(self, enrolled: Iterable[Enrolled]) -> tuple[SpiffeId, ...]:
        """As whom it is enrolled, sorted by name; empty: it is nobody."""
        its, ours, line = self.namespace(), namespace(str(_PROC / "self/ns/net")), _line(self.pid)
        found = {
            one.identity
            for one in enrolled
            if (its != ours and its == namespace(one.netns) if one.netns else its == ours and one.pid in line)
        }
        # Only then: what was read is of this process, and not of a later one.
        return tuple(sorted(found, key=str)) if its is not None and self.alive else ()

    def close(self) -> None:
        """It is of no interest any more."""
        with contextlib.suppress(OSError):
            os.close(self._descriptor)


def namespace(path: str) -> Namespace | None:
    """The namespace of a file; None: it can't be looked at."""
    try:
        found = os.stat(path)  # noqa: PTH116 - often, of many
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino


def _line(pid: int) -> set[int]:
    """A process and those that started it, one after the other."""
    found: set[int] = set()
    while pid > 1 and pid not in found and len(found) < _MOST_PARENTS:
        found.add(pid)
        try:
            said = (_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            break
        pid = int(said.rpartition(")")[2].split()[1])
    return found
