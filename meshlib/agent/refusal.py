"""What is told of a listener that an Envoy refuses: which it is, and why, in words."""

import asyncio
import contextlib
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path

from meshlib.agent.admin import Admin, AdminUnreachable
from meshlib.agent.log import Told
from meshlib.xds.names import DNS_PORT, HBONE_PORT, INBOUND_PORT, OUTBOUND_PORT

log = logging.getLogger(__name__)

_BIND = re.compile(r"cannot bind '(.*):(\d+)': (.*)")
_LISTEN = "0A"
CAPTURING = frozenset((OUTBOUND_PORT, INBOUND_PORT, HBONE_PORT, DNS_PORT))
"""Listened at in namespaces of workloads, where we see nobody."""


class Teller:
    """Says in our own log what one Envoy refuses. One event loop."""

    def __init__(self, admin: Admin) -> None:
        self._admin = admin
        self._titles: dict[str, str] = {}
        """Of the listeners that are refused."""
        self._telling: set[asyncio.Task[None]] = set()

    def __call__(self, told: Told) -> None:
        telling = asyncio.create_task(self.tell(told))
        self._telling.add(telling)
        telling.add_done_callback(self._telling.discard)

    async def tell(self, told: Told) -> None:
        """Once."""
        if not told.listener:
            log.error("Envoy refuses a secret: %s; the last good one stays", told.why)
        elif told.why:
            title = self._titles[told.listener] = await self._title(told.listener)
            log.error("%s is not served: %s", title, reason(told.why))
        else:
            title = self._titles.pop(told.listener, "") or await self._title(told.listener)
            log.warning("%s is served now", title)

    async def _title(self, listener: str) -> str:
        """`port 80 of Gateway default/edge edge.yaml:5`, or whose listener of a node it is."""
        workload, slash, name = listener.partition("/")
        if slash and workload:
            return f"{name} of the workload {workload}"
        document = ""
        with contextlib.suppress(AdminUnreachable):
            document = await self._admin.document(listener)
        return f"port {listener.rpartition('_')[2]} of {document or 'its Gateways'}"


def reason(why: str) -> str:
    """What Envoy says of a port that it can't have, as its user has to know it; anything else as it is."""
    found = _BIND.fullmatch(why.strip())
    if found is None:
        return why
    address, port, error = found.groups()
    match error:
        case "Address already in use":
            found_here = holders(int(port)) if int(port) not in CAPTURING else ()
            holder = ", ".join(dict.fromkeys(found_here))
            return f"{address}:{port} is in use by {holder or 'another program'}"
        case "Permission denied":
            return f"for {address}:{port} it needs to be root, or to listen elsewhere"
        case "Cannot assign requested address":
            return f"{address} is no address of this machine"
    return f"{address}:{port} can't be bound: {error}"


def holders(port: int) -> Iterator[str]:
    """`nginx (812)`: programs that listen at that port, of those into which we may look (Linux)."""
    sockets = set(_sockets(port))
    if not sockets:
        return
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if any(_led_to(each) in sockets for each in (process / "fd").iterdir()):
                yield f"{(process / 'comm').read_text().strip()} ({process.name})"


def _sockets(port: int) -> Iterator[str]:
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
                row = line.split()
                if row[3] == _LISTEN and int(row[1].rpartition(":")[2], 16) == port:
                    yield f"socket:[{row[9]}]"


def _led_to(descriptor: Path) -> str:
    try:
        return os.readlink(descriptor)  # noqa: PTH115 - it is no path
    except OSError:
        return ""
