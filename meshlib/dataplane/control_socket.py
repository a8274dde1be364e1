"""A Unix socket that leads to the control service: plain text on this side, the workload's TLS on the other.

For programs that can't do that TLS by themselves. Rules:

- The socket is its owner's alone (0600): whoever writes to it speaks as this workload.
- Each connection has one of its own behind it, with the certificate of that moment; when the control service
  ends it, as it does when that certificate has ended, so does the other, and the program comes again.
- Nothing is read faster than the other side takes it.
- A fork's child drops its copies without a word, or an end would not be seen while it lives.
- Why the control service can't be reached is told once, until it can be.
"""

import asyncio
import contextlib
import logging
import os
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from meshlib.dataplane import fork
from meshlib.errors import ConfigError, ControlUnavailable
from meshlib.xds.names import CONTROL_SERVER, split_authority

log = logging.getLogger(__name__)

LONGEST_PATH = 103
"""Bytes of the path of a socket that every system takes."""
BACKLOG = 100
FAREWELL = 0.5
"""Seconds for the goodbye of TLS."""
PATIENCE = 10.0
_PIECE = 64 * 1024


def listen_at(path: Path) -> socket.socket:
    """Listens there: who comes before `leading_to` does waits. ConfigError: it can't be listened there."""
    if len(os.fsencode(path)) > LONGEST_PATH:
        raise ConfigError(f"{path} is too long for a socket's path: at most {LONGEST_PATH} bytes are allowed")
    made = socket.socket(socket.AF_UNIX)
    try:
        _gone(path)
        made.bind(str(path))
        path.chmod(0o600)  # before it listens, so that nobody else ever reached it
        made.listen(BACKLOG)
    except OSError as error:
        made.close()
        raise ConfigError(f"{path} can't be listened at: {error.strerror}") from None
    return made


@contextlib.asynccontextmanager
async def leading_to(
    control: str, listening: socket.socket, secure: Callable[[], ssl.SSLContext | None]
) -> AsyncIterator[None]:
    """Takes the connections of `listening`, and in the end closes and removes it, while the block runs;
    `secure` gives the context for one connection.
    """
    path = Path(listening.getsockname())
    ends = _Ends()
    ends.add(listening)
    told = set[str]()
    pipes: set[asyncio.Task[None]] = set()

    async def came(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            pipes.add(task)
            task.add_done_callback(pipes.discard)
        # A stream's callback that is cancelled would be logged as a failure.
        with contextlib.suppress(asyncio.CancelledError):
            try:
                await _pipe(control, secure, reader, writer, ends, told)
            finally:
                await _closed(writer)

    server = await asyncio.start_unix_server(came, sock=listening)
    try:
        yield
    finally:
        server.close()
        if pipes:  # those whose program has gone end by themselves
            await asyncio.wait(pipes, timeout=FAREWELL)
        for each in pipes:
            each.cancel()
        await asyncio.gather(*pipes, return_exceptions=True)
        await asyncio.sleep(0)  # in which is closed what was aborted
        _gone(path)


def _gone(path: Path) -> None:
    path.unlink(missing_ok=True)


async def _pipe(
    control: str,
    secure: Callable[[], ssl.SSLContext | None],
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    ends: "_Ends",
    told: set[str],
) -> None:
    """`told`: why the control service could not be reached, since it could be."""
    host, port = split_authority(control, 0)
    try:
        context = await asyncio.to_thread(secure)  # which may get a certificate first
        far = await _connected(host, port, context)
    except (OSError, ControlUnavailable) as error:
        level = logging.DEBUG if str(error) in told else logging.WARNING
        told.add(str(error))
        log.log(level, "the control service %s can't be reached: %s", control, error)
        return
    told.clear()
    sockets = [one.get_extra_info("socket") for one in (writer, far[1])]
    with ends.held(sockets):
        ways = [asyncio.create_task(_flow(reader, far[1])), asyncio.create_task(_flow(far[0], writer))]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            await _closed(far[1])


async def _connected(
    host: str, port: int, context: ssl.SSLContext | None
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection. OSError. Who is cancelled meanwhile leaves none behind."""
    name = CONTROL_SERVER if context is not None else None
    made = asyncio.create_task(asyncio.open_connection(host, port, ssl=context, server_hostname=name))
    try:
        await asyncio.wait([made], timeout=PATIENCE)
    except asyncio.CancelledError:
        await asyncio.wait([made], timeout=FAREWELL)
        if made.done() and made.exception() is None:
            await _closed(made.result()[1])
        raise
    finally:
        made.cancel()
    if not made.done():
        raise TimeoutError(f"no connection within {PATIENCE:g} s")
    return made.result()


async def _closed(writer: asyncio.StreamWriter) -> None:
    """Closes it, and is there until it is closed: a loop that ended would not do it."""
    writer.close()
    try:
        with contextlib.suppress(OSError):  # and TimeoutError
            async with asyncio.timeout(FAREWELL):
                await writer.wait_closed()
    finally:
        writer.transport.abort()  # if it did not come to that; also of a task that is cancelled here


async def _flow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while piece := await reader.read(_PIECE):
        writer.write(piece)
        await writer.drain()


class _Ends:
    """The sockets of one."""

    def __init__(self) -> None:
        self._sockets: set[Any] = set()
        fork.watch(self)

    def add(self, one: Any) -> None:
        """For as long as this lives."""
        self._sockets.add(one)

    @contextlib.contextmanager
    def held(self, sockets: Collection[Any]) -> Iterator[None]:
        """For the time of the block."""
        self._sockets.update(sockets)
        try:
            yield
        finally:
            self._sockets.difference_update(sockets)

    def before_fork(self) -> None:
        """What is closed meanwhile has no descriptor."""

    def after_fork_in_parent(self) -> None:
        """Goes on."""

    def after_fork_in_child(self) -> None:
        """Puts something else at their descriptors: whose objects they are closes those."""
        nothing = os.open(os.devnull, os.O_RDWR)
        for one in self._sockets:
            if one.fileno() >= 0:
                os.dup2(nothing, one.fileno(), inheritable=False)
        os.close(nothing)
        self._sockets = set()
