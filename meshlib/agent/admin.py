"""Envoy's admin interface on its Unix socket: is it ready, where does it listen."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meshlib.xds.names import MESHLIB_METADATA

PATIENCE = 5.0
"""Seconds for an answer."""
_OWN = ("http.admin.", "listener.admin.")
"""Who asks the interface is counted there."""


class AdminUnreachable(OSError):
    """There is no answer now."""


@dataclass(frozen=True, slots=True)
class Listening:
    """One of its listeners."""

    name: str
    address: str
    """`host:port` as bound."""
    netns: str = ""
    """The path of the network namespace in which it is; empty: that of the Envoy."""


class Admin:
    """The admin interface at a socket."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        self._serving: tuple[Listening, ...] | None = None
        """The listeners of one that serves, while another is about to take over."""

    async def ready(self) -> bool:
        """Whether it serves: its first configuration came, and all that had to be fetched for it."""
        try:
            status, _ = await self.ask("GET", "/ready")
        except AdminUnreachable:
            return False
        return status == 200

    @contextlib.asynccontextmanager
    async def taken_over(self) -> AsyncIterator[None]:
        """Another process takes over in the block: it answers at once; the one before serves until then."""
        with contextlib.suppress(AdminUnreachable):
            self._serving = await self.listening()
        try:
            yield
        finally:
            self._serving = None

    async def listening(self) -> tuple[Listening, ...]:
        """The listeners of the one that serves, by name. AdminUnreachable."""
        if self._serving is not None:
            return self._serving
        said = await self._json("/listeners?format=json")
        found = (
            Listening(one["name"], _spelled(address), _netns(address))
            for one in said.get("listener_statuses", ())
            for address in (one.get("local_address", {}),)
        )
        return tuple(sorted(found, key=lambda one: one.name))

    async def document(self, listener: str) -> str:
        """Of which document a listener is that was refused, and where; empty: that is not known.

        AdminUnreachable.
        """
        said = await self._json("/config_dump?resource=dynamic_listeners")
        for one in said.get("configs", ()):
            failed = one.get("error_state", {}).get("failed_configuration", {})
            if one.get("name") == listener and failed:
                marks = failed.get("metadata", {}).get("filter_metadata", {}).get(MESHLIB_METADATA, {})
                return " ".join(str(marks[key]) for key in ("document", "source") if marks.get(key))
        return ""

    async def epoch(self) -> int:
        """How many processes it took over from, one after the other; -1: it does not answer."""
        try:
            said = await self._json("/server_info")
        except AdminUnreachable:
            return -1
        return int(said.get("command_line_options", {}).get("restart_epoch", 0))

    async def count(self, statistic: str) -> int:
        """The sum of all counters and gauges whose names end so, but for its own. AdminUnreachable."""
        said = await self._json(f"/stats?format=json&filter={statistic}$")
        found = (one for one in said.get("stats", ()) if not str(one.get("name")).startswith(_OWN))
        return sum(int(one["value"]) for one in found if "value" in one)

    async def post(self, path: str) -> None:
        """Tells it to do something. AdminUnreachable."""
        await self.ask("POST", path)

    async def ask(self, method: str, path: str) -> tuple[int, bytes]:
        """Status and body of an answer. AdminUnreachable."""
        try:
            async with asyncio.timeout(PATIENCE):
                return await self._asked(method, path)
        except (OSError, ValueError, TimeoutError, asyncio.IncompleteReadError) as error:
            raise AdminUnreachable(f"Envoy's admin interface does not answer: {error!r}") from None

    async def _asked(self, method: str, path: str) -> tuple[int, bytes]:
        reader, writer = await asyncio.open_unix_connection(str(self._socket))
        try:
            head = (
                f"{method} {path} HTTP/1.1\r\nhost: admin\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
            )
            writer.write(head.encode())
            status = int((await reader.readline()).split()[1])
            chunked, length = False, None
            while (line := await reader.readline()).strip():
                name, _, value = line.decode("latin-1").partition(":")
                chunked = chunked or (name.lower() == "transfer-encoding" and "chunked" in value)
                length = int(value) if name.lower() == "content-length" else length
            if not chunked:
                return status, await (reader.read() if length is None else reader.readexactly(length))
            body = b""
            while size := int((await reader.readline()).split(b";")[0], 16):
                body += await reader.readexactly(size)
                await reader.readline()
            return status, body
        except IndexError:
            raise AdminUnreachable("Envoy's admin interface hung up") from None
        finally:
            writer.close()

    async def _json(self, path: str) -> Mapping[str, Any]:
        _, body = await self.ask("GET", path)
        try:
            found: Mapping[str, Any] = json.loads(body)
        except ValueError:
            raise AdminUnreachable(f"Envoy's admin interface gave no JSON: {body[:80]!r}") from None
        return found


def _spelled(address: Mapping[str, Any]) -> str:
    said = address.get("socket_address")
    if said is None:
        return f"unix:{address.get('pipe', {}).get('path', '')}"
    host = said.get("address", "")
    return f"[{host}]:{said.get('port_value')}" if ":" in host else f"{host}:{said.get('port_value')}"


def _netns(address: Mapping[str, Any]) -> str:
    return str(address.get("socket_address", {}).get("network_namespace_filepath", ""))
