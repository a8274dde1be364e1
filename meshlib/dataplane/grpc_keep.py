"""Keeps what a program with gRPC's own xDS needs, for as long as it runs: beside it, or within it.

Rules:

- A new certificate, and new roots, are in the folder soon after they are in force.
- There is a certificate in the folder before a word of the control service passes the socket: who is told
  to do mutual TLS finds the files.
"""

import asyncio
import contextlib
import logging
import socket
import ssl
import threading
from collections.abc import AsyncIterator
from pathlib import Path

from meshlib.dataplane.certfolder import CertFolder
from meshlib.dataplane.certs import Certs
from meshlib.dataplane.control_socket import leading_to
from meshlib.dataplane.tls import Held

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.5
"""How often it is looked whether there is a new certificate."""
SOCKET = "control.sock"


def socket_of(folder: CertFolder) -> Path:
    """Where the socket of a folder is."""
    return folder.path / SOCKET


@contextlib.asynccontextmanager
async def kept(
    control: str, certs: Certs, folder: CertFolder, listening: socket.socket
) -> AsyncIterator[None]:
    """Certificates in `folder`, and `listening`, the socket in it, served, while the block runs.

    OSError: the certificate that there is can't be written.
    """
    writer = _Writer(certs, folder)
    writer.write()
    async with leading_to(control, listening, writer.secure):
        certs.watch_roots()
        looking = asyncio.create_task(writer.look())
        try:
            yield
        finally:
            looking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await looking


class _Writer:
    def __init__(self, certs: Certs, folder: CertFolder) -> None:
        self._certs = certs
        self._folder = folder
        self._lock = threading.Lock()
        self._written: Held | None = None

    def write(self) -> None:
        """What is in force, if it is not written yet. OSError."""
        with self._lock:
            held = self._certs.held
            if held is not None and held is not self._written:
                self._folder.write(held)
                self._written = held

    def secure(self) -> ssl.SSLContext | None:
        """The context for a connection to the control service."""
        context = self._certs.secure()
        self._try()
        return context

    async def look(self) -> None:
        """Without end."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            self._try()

    def _try(self) -> None:
        try:
            self.write()
        except OSError as error:
            log.warning("the new certificate can't be written to %s: %s", self._folder.path, error)
