"""How long the kernel waits in one call on a blocking socket: SO_RCVTIMEO.

Python's own time-out of a socket makes two system calls of one, and gives up the interpreter's lock at each.
To set the kernel's is a call too, so what is set stays as long as it is about what is left; who has waited in
vain looks how much that is.
"""

import math
import socket
import struct

from meshlib.dataplane.http.limits import EARLY, Limits

SHORTEST = 1e-4
"""Seconds. For 0 the kernel waits for ever."""
LONGEST = 1e8
"""Seconds, for every kernel to take."""


class Patience:
    """Of one direction of one socket, which blocks."""

    __slots__ = ("_operation", "_option", "_seconds", "_socket")

    def __init__(self, made: socket.socket, option: int, operation: str) -> None:
        """`option` is SO_RCVTIMEO or SO_SNDTIMEO, `operation` what it is called if it takes too long."""
        self._socket = made
        self._option = option
        self._operation = operation
        self._seconds = math.inf

    def allow(self, left: float | None, own: float | None) -> None:
        """Before a call that may take what is left: the application's `own` limit, or the mesh's."""
        if left is None:
            left = math.inf
        seconds = self._seconds
        if left / 2 <= seconds <= left:
            return
        # What is left of a deadline is never the same, so less is set: it will do for the next call.
        seconds = self._seconds = left if left == own or left < SHORTEST * 100 else left * 0.75
        whole = 0.0 if seconds > LONGEST else max(seconds, SHORTEST)
        value = struct.pack("@ll", int(whole), int(whole % 1 * 1e6))
        self._socket.setsockopt(socket.SOL_SOCKET, self._option, value)

    def rest(self, limits: Limits, own: float | None, left: float | None) -> float | None:
        """After a call in vain: what is left of `own` when `left` was before. Broken, TooSlow: nothing is."""
        if left is not None:
            left -= self._seconds
        if left is not None and left <= EARLY:
            raise limits.passed(self._operation, own)
        limits.left(None)
        return left
