"""Whether an idle socket is still open: the peer of an idle HTTP/1.1 connection has nothing to say."""

import select
from collections.abc import Callable


def watch(descriptor: int) -> Callable[[], bool]:
    """Gives a function that tells, without waiting, whether there is nothing to read: no bytes, no end."""
    if not hasattr(select, "poll"):
        return lambda: not select.select([descriptor], [], [], 0)[0]
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return lambda: not poll.poll(0)
