"""A Unix socket that leads to the control service: plain text on this side, the workload's TLS on the other.

For programs that can't do that TLS by themselves. Rules:

- The socket is its owner's alone (0600): whoever writes to it speaks as this workload.
- Each connection has one of its own behind it, with the certificate of that moment; when the control service
  ends it, as it does when that certificate has ended, so does the other, and the program comes again.
- Nothing is read faster than the other side takes it.
"""

import asyncio
import contextlib
import logging
import os
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from meshlib.errors import ConfigError, ControlUnavailable
from meshlib.xds.names import CONTROL_SERVER, split_authority

log = logging.getLogger(__name__)

LONGEST_PATH = 100
"""Bytes of the path of a socket that every system takes."""
PATIENCE = 10.0
_PIECE = 64 * 1024


@contextlib.asynccontextmanager
async def leading_to(
    control: str, path: Path, secure: Callable[[], ssl.SSLContext | None]
) -> AsyncIterator[None]:
    """Listens at `path` while the block runs; `secure` gives the context for one connection.

    ConfigError: it can't be listened there.
    """
    listening = _listening(path)
    pipes: set[asyncio.Task[None]] = set()

    async def came(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            pipes.add(task)
            task.add_done_callback(pipes.discard)
        # A stream's callback that is cancelled would be logged as a failure.
        with contextlib.suppress(asyncio.CancelledError), contextlib.closing(writer):
            await _pipe(control, secure, reader, writer)

    server = await asyncio.start_unix_server(came, sock=listening)
    try:
        yield
    finally:
        server.close()
        for each in pipes:
            each.cancel()
        await asyncio.gather(*pipes, return_exceptions=True)
        _gone(path)


def _listening(path: Path) -> socket.socket:
    if len(os.fsencode(path)) > LONGEST_PATH:
        raise ConfigError(f"{path} is too long for a socket's path: at most {LONGEST_PATH} bytes are allowed")
    made = socket.socket(socket.AF_UNIX)
    try:
        _gone(path)
        made.bind(str(path))
        path.chmod(0o600)  # before it listens, so that nobody else ever reached it
    except OSError as error:
        made.close()
        raise ConfigError(f"{path} can't be listened at: {error.strerror}") from None
    return made


def _gone(path: Path) -> None:
    path.unlink(missing_ok=True)


async def _pipe(
    control: str,
    secure: Callable[[], ssl.SSLContext | None],
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
) -> None:
    host, port = split_authority(control, 0)
    try:
        context = await asyncio.to_thread(secure)  # which may get a certificate first
        async with asyncio.timeout(PATIENCE):
            name = CONTROL_SERVER if context is not None else None
            far = await asyncio.open_connection(host, port, ssl=context, server_hostname=name)
    except (OSError, ControlUnavailable) as error:
        log.warning("the control service %s can't be reached: %s", control, error)
        return
    with contextlib.closing(far[1]):
        ways = [asyncio.create_task(_flow(reader, far[1])), asyncio.create_task(_flow(far[0], writer))]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)


async def _flow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while piece := await reader.read(_PIECE):
        writer.write(piece)
        await writer.drain()
