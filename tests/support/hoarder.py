"""A client that holds as much of a control service as it can: messages that it begins and never ends."""

import asyncio
import contextlib
import ssl
import tempfile
from collections.abc import Iterator
from urllib.parse import unquote

import h2.config
import h2.connection
import h2.events
import h2.exceptions

from meshlib.xds import pb
from meshlib.xds.names import CONTROL_SERVER

CHUNK = 16 * 1024
LONG = 4 * 1024 * 1024


def shows(roots_pem: str, key: bytes = b"", chain: bytes = b"") -> ssl.SSLContext:
    """Trusts the authority, and shows a certificate if there is one."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=roots_pem)
    context.set_alpn_protocols(["h2"])
    if chain:
        with tempfile.NamedTemporaryFile() as file:
            file.write(key + b"\n" + chain)
            file.flush()
            context.load_cert_chain(file.name)
    return context


class Hoarder:
    """One connection of it."""

    def __init__(self, address: str, context: ssl.SSLContext) -> None:
        self._address, self._context = address, context
        self._http = h2.connection.H2Connection(
            h2.config.H2Configuration(client_side=True, header_encoding="utf-8")
        )
        self._waiting: dict[int, Iterator[bytes]] = {}
        self.sent = 0
        """Bytes of messages."""
        self.ended: dict[int, tuple[str, str]] = {}
        """Of each stream that was ended: gRPC's status and message."""
        self.closed = False
        """Whether the control service closed the connection."""

    async def hoard(
        self, streams: int, size: int = LONG, chunk: int = CHUNK, path: str = pb.DELTA_ADS
    ) -> None:
        """Begins a message of `size` bytes on each stream, and sends all but its last byte."""
        host, _, port = self._address.rpartition(":")
        self._reader, self._writer = await asyncio.open_connection(
            host, int(port), ssl=self._context, server_hostname=CONTROL_SERVER
        )
        self._http.initiate_connection()
        for _ in range(streams):
            number = self._http.get_next_available_stream_id()
            self._http.send_headers(
                number,
                [
                    (":method", "POST"),
                    (":scheme", "https"),
                    (":path", path),
                    (":authority", "control"),
                    ("content-type", "application/grpc"),
                    ("te", "trailers"),
                ],
            )
            self._waiting[number] = _pieces(size, chunk)
        with contextlib.suppress(OSError):
            await self._talk()
        self.closed = True

    async def _talk(self) -> None:
        while True:
            self._writer.write(self._http.data_to_send())
            await self._writer.drain()
            for number, pieces in list(self._waiting.items()):
                await self._say(number, pieces)
            data = await self._reader.read(CHUNK * 4)
            if not data:
                return
            try:
                self._took(self._http.receive_data(data))
            except h2.exceptions.ProtocolError:
                return

    async def _say(self, number: int, pieces: Iterator[bytes]) -> None:
        """As much as the server lets it."""
        while self._http.local_flow_control_window(number) >= CHUNK + 5:
            piece = next(pieces, None)
            if piece is None:
                del self._waiting[number]
                return
            self._http.send_data(number, piece)
            self.sent += len(piece)
            self._writer.write(self._http.data_to_send())
            await self._writer.drain()

    def _took(self, events: list[h2.events.Event]) -> None:
        for event in events:
            match event:
                case h2.events.ResponseReceived() | h2.events.TrailersReceived():
                    said = dict(event.headers or [])
                    if "grpc-status" in said:
                        text = unquote(str(said.get("grpc-message", "")))
                        self.ended[event.stream_id or 0] = str(said["grpc-status"]), text
                        self._waiting.pop(event.stream_id or 0, None)
                case h2.events.StreamReset() | h2.events.StreamEnded():
                    self._waiting.pop(event.stream_id or 0, None)
                case _:
                    pass

    def close(self) -> None:
        """Ends it."""
        self._writer.transport.abort()


def _pieces(size: int, chunk: int) -> Iterator[bytes]:
    yield b"\0" + size.to_bytes(4)
    left = size - 1
    while left > 0:
        yield b"\0" * min(chunk, left)
        left -= chunk
