"""How a node's agent is spoken to on its machine: a Unix socket, one JSON object a line.

    {"do": "about"}                     ─► {"name": …, "subnet": …}
    {"do": "list"}                      ─► {"workloads": [{…, "why": …}]}
    {"do": "enrol", "workload": {…}}    ─► {"why": …, "address": …} at each change; no `why`: it is ready
    {"do": "started", "name": …, "pid": …} ─► {}
    {"do": "listens", "name": …}        ─► {}; until then nobody is sent to what was enrolled so
    {"do": "drain", "name": …}          ─► {} when others have heard that it leaves

Rules:

- A workload that was enrolled so is one for as long as that connection stands.
- Who may speak is whoever may open the socket: its user, in a folder that is this user's alone.
- One agent a socket: it holds a lock beside it. A socket that a killed one left is replaced.
"""

import asyncio
import contextlib
import fcntl
import json
import os
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

from meshlib.agent.folder import MAX_SOCKET_PATH, fits
from meshlib.agent.node import Node
from meshlib.agent.workload import Workload
from meshlib.errors import ConfigError

LOOK_SECONDS = 0.25
_LIMIT = 1024 * 1024


class NodeUnreachable(OSError):
    """No agent is at the socket, or none any more."""


class NodeRefused(ConfigError):
    """The agent does not do it; the text is why."""


def socket_path(said: Path | None = None) -> Path:
    """Where the node's agent is spoken to; if nothing is said, in a folder of this user. ConfigError."""
    if said is not None:
        return fitting("socket", said)
    given = Path(os.environ.get("XDG_RUNTIME_DIR", ""))
    if os.geteuid() == 0:
        return Path("/run/meshlib/node.sock")
    folder = given / "meshlib" if given.is_absolute() else Path(f"/tmp/meshlib-{os.geteuid()}")  # noqa: S108
    return fitting("socket", folder / "node.sock")


def fitting(what: str, path: Path) -> Path:
    """The absolute path. ConfigError: no Unix socket can be there."""
    if not fits(path.absolute()):
        most = f"at most {MAX_SOCKET_PATH} bytes are allowed"
        raise ConfigError(f"{what}: {path.absolute()} is too long for a Unix socket: {most}")
    return path.absolute()


def own_folder(path: Path) -> None:
    """The folder of a socket is there, and this user's. ConfigError: it is somebody else's."""
    path.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
    found = path.parent.stat()
    if found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise ConfigError(f"socket: {path.parent} is not a folder that only this user may write to")


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Nobody else serves that socket for the time of the block. ConfigError: somebody does.

    Others may enter its folder, for the Workload API's socket beside it.
    """
    own_folder(path)
    with path.with_suffix(".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"socket: another `meshlib node` serves {path}") from None
        yield


@contextlib.asynccontextmanager
async def serve(path: Path, node: Node, about: Mapping[str, Any]) -> AsyncIterator[None]:
    """Serves it for the time of the block; whoever calls is `alone`."""
    _unlink(path)
    talks: set[asyncio.Task[None]] = set()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - it is in one
        talks.add(task)
        try:
            # Of one that is cancelled asyncio's streams would tell as of an error.
            with contextlib.suppress(asyncio.CancelledError):
                await _Talk(node, about, reader, writer).run()
        finally:
            talks.discard(task)
            writer.close()

    before = os.umask(0o177)
    try:
        server = await asyncio.start_unix_server(talk, path, limit=_LIMIT)
    finally:
        os.umask(before)
    try:
        yield
    finally:
        server.close()
        for one in list(talks):
            one.cancel()
        await asyncio.gather(*talks, return_exceptions=True)
        _unlink(path)


def left_behind(path: Path) -> bool:
    """Whether it is a socket at which nobody answers any more."""
    with socket.socket(socket.AF_UNIX) as made:
        made.settimeout(1.0)
        try:
            if not path.is_socket():
                return False
            made.connect(str(path))
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
    return False


def _owner(path: Path) -> int:
    return path.stat().st_uid


def _unlink(path: Path) -> None:
    path.unlink(missing_ok=True)


class _Talk:
    """One connection."""

    def __init__(
        self,
        node: Node,
        about: Mapping[str, Any],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self._node, self._about = node, about
        self._reader, self._writer = reader, writer

    async def run(self) -> None:
        """One question and its answers."""
        with contextlib.suppress(ConnectionError):
            try:
                await self._answer(json.loads(await self._reader.readline()))
            except (ValueError, AttributeError, TypeError):
                await self._say({"error": "that is no JSON object in a line"})
            except ConfigError as error:
                await self._say({"error": str(error)})

    async def _answer(self, asked: Mapping[str, Any]) -> None:
        match asked.get("do"):
            case "about":
                await self._say(self._about)
            case "list":
                members = self._node.members
                listed = [{**one.workload.said(), "why": await self._node.why(one)} for one in members]
                await self._say({"workloads": listed})
            case "enrol":
                await self._enrol(Workload.of(asked.get("workload")))
            case "started":
                await self._node.started(str(asked.get("name")), int(asked.get("pid") or 0))
                await self._say({})
            case "listens":
                await self._node.listens(str(asked.get("name")))
                await self._say({})
            case "drain":
                await self._node.drain(str(asked.get("name")))
                await self._say({})
            case other:
                raise ConfigError(
                    f"do: found {other!r}; allowed are about, list, enrol, started, listens, drain"
                )

    async def _enrol(self, workload: Workload) -> None:
        telling = asyncio.create_task(self._tell(workload))
        gone = asyncio.create_task(self._reader.read(1))
        try:
            await asyncio.wait((gone, telling), return_when=asyncio.FIRST_COMPLETED)
            if telling.done():
                telling.result()
        finally:
            gone.cancel()
            telling.cancel()
            await asyncio.gather(gone, telling, return_exceptions=True)

    async def _tell(self, workload: Workload) -> None:
        async with contextlib.aclosing(self._node.enrolling(workload)) as changes:
            async for one in changes:
                await self._say(one)

    async def _say(self, said: Mapping[str, Any]) -> None:
        self._writer.write(json.dumps(said).encode() + b"\n")
        await self._writer.drain()


async def answering(path: Path, seconds: float) -> Mapping[str, Any]:
    """What the agent says of itself, which may be about to start. As `ask`."""
    loop = asyncio.get_running_loop()
    until = loop.time() + seconds
    while True:
        try:
            return await ask(path, {"do": "about"})
        except NodeUnreachable:
            if loop.time() >= until:
                raise
        await asyncio.sleep(min(LOOK_SECONDS, seconds))


async def ask(path: Path, asked: Mapping[str, Any]) -> Mapping[str, Any]:
    """The answer of the agent at a socket. NodeUnreachable; NodeRefused."""
    async with contextlib.aclosing(talk(path, asked)) as answers:
        async for answer in answers:
            return answer
    raise NodeUnreachable(f"the agent at {path} hung up")


async def talk(path: Path, asked: Mapping[str, Any]) -> AsyncGenerator[Mapping[str, Any], None]:
    """All its answers, until it hangs up; the connection closes with the iterator. As `ask`."""
    try:
        if _owner(path) not in (0, os.geteuid()):
            raise NodeRefused(f"socket: {path} is somebody else's")
        reader, writer = await asyncio.open_unix_connection(path, limit=_LIMIT)
    except OSError as error:
        raise NodeUnreachable(f"no `meshlib node` answers at {path}: {error.strerror}") from None
    try:
        writer.write(json.dumps(asked).encode() + b"\n")
        while line := await reader.readline():
            answer: Mapping[str, Any] = json.loads(line)
            if "error" in answer:
                raise NodeRefused(str(answer["error"]))
            yield answer
    except ConnectionError:
        raise NodeUnreachable(f"the agent at {path} hung up") from None
    finally:
        writer.close()
