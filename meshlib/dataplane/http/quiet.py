"""Whether an idle socket is still open: the peer of an idle HTTP/1.1 connection has nothing to say. And waits
for one that is not idle.
"""

import math
import select
import socket
from collections.abc import Callable


def watch(descriptor: int) -> Callable[[], bool]:
    """Gives a function that tells, without waiting, whether there is nothing to read: no bytes, no end."""
    if not hasattr(select, "poll"):
        return lambda: not select.select([descriptor], [], [], 0)[0]
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return lambda: not poll.poll(0)


def wait(made: socket.socket, seconds: float | None, *, reading: bool, writing: bool) -> None:
    """Until it can be read, or written to, or its end has come, or the time has passed."""
    if not hasattr(select, "poll"):
        select.select([made] if reading else [], [made] if writing else [], [made], seconds)
        return
    poll = select.poll()
    poll.register(made, (select.POLLIN if reading else 0) | (select.POLLOUT if writing else 0))
    poll.poll(None if seconds is None else math.ceil(seconds * 1000))
