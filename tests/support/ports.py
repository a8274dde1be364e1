"""Ports for tests."""

import itertools
import os
import socket

FIRST, LAST = 20_000, 32_000
"""Below those that a system gives to who asks for any: nobody gets one of these by chance meanwhile."""
_numbers = itertools.count(os.getpid() * 97)


def free_port() -> int:
    """A loopback TCP port that nothing listens on now, and that nobody else is given."""
    for number in _numbers:
        port = FIRST + number % (LAST - FIRST)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
    raise AssertionError
