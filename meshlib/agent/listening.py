"""At which ports a program listens, without a connection to it.

Linux says it for a whole network namespace. Elsewhere a connection at 127.0.0.1 tries it: there is nothing
else to see there.
"""

import os
import socket
from collections.abc import Iterable
from pathlib import Path

_LISTEN = "0A"
"""The state in /proc/net/tcp, TCP_LISTEN."""


def listening(ports: Iterable[int], process_id: int, netns: str = "") -> frozenset[int]:
    """Those of the ports at which somebody listens who shares the network of that process.

    `netns`: the file of the namespace that it enters as it starts; before it is there, there is nobody.
    """
    of_process = Path("/proc") / str(process_id)
    if not Path("/proc/self/net/tcp").exists():
        return frozenset(port for port in ports if _answers(port))
    try:
        if netns and not os.path.samefile(of_process / "ns" / "net", netns):  # noqa: PTH121
            return frozenset()
        tables = [(of_process / "net" / name).read_text() for name in ("tcp", "tcp6")]
    except OSError:
        return frozenset()
    return frozenset(ports) & {port for table in tables for port in listed(table)}


def listed(table: str) -> set[int]:
    """The ports of a table such as /proc/net/tcp at which somebody listens."""
    rows = (line.split() for line in table.splitlines()[1:])
    return {int(row[1].rpartition(":")[2], 16) for row in rows if len(row) > 3 and row[3] == _LISTEN}


def _answers(port: int) -> bool:
    with socket.socket() as made:
        made.settimeout(0.2)
        return made.connect_ex(("127.0.0.1", port)) == 0
