"""Endpoints that do as they are told, all in one process: HTTP/1.1, and HTTP/2 by prior knowledge.

A line of JSON says what is to happen, `[what, port]`; a line comes back when it has happened. `come` makes a
new one; what there is can `drain` (its last responses end, then its connections do) or `die` (everything ends
at once), and can be `well`, `unavailable` (503), `resetting` (once it has heard a request) or `deaf` (it
reads nothing; afterwards it goes on where it was).
"""

import asyncio
import json
import socket
import struct
import sys
from typing import Any

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import httptools
from hyperframe.frame import GoAwayFrame

BIG = b"0123456789abcdef" * 8192
"""What `/big` is: more than one turn of a loop can send."""
_PREFACE = b"PRI "
_LINGER = struct.pack("ii", 1, 0)


class Endpoint:
    """One port."""

    def __init__(self) -> None:
        self.mode = "well"
        self.port = 0
        self.open: set[Connection] = set()
        self.draining = False
        self._server: asyncio.Server | None = None

    async def come(self) -> None:
        """It listens from now on."""
        made = await asyncio.get_running_loop().create_server(lambda: Connection(self), "127.0.0.1", 0)
        self._server, self.port = made, made.sockets[0].getsockname()[1]

    def die(self) -> None:
        """As the kernel does it with a process that was killed."""
        self._close()
        for one in list(self.open):
            one.transport.abort()

    async def drain(self) -> None:
        """Ends when everybody is gone."""
        self._close()
        self.draining = True
        for one in list(self.open):
            one.drain()
        while self.open:
            await asyncio.sleep(0.01)

    def become(self, mode: str) -> None:
        """Another mode."""
        self.mode = mode
        for one in list(self.open):
            one.listen(mode != "deaf")

    def _close(self) -> None:
        assert self._server is not None
        self._server.close()


class Connection(asyncio.Protocol):
    """A connection, until it is known which protocol it speaks, and then."""

    transport: asyncio.Transport

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._first = b""
        self._speaks: _First | _Second | None = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.endpoint.open.add(self)
        self.listen(self.endpoint.mode != "deaf")

    def connection_lost(self, exc: Exception | None) -> None:
        self.endpoint.open.discard(self)

    def data_received(self, data: bytes) -> None:
        if self._speaks is None:
            self._first += data
            if len(self._first) < len(_PREFACE):
                return
            self._speaks = _Second(self) if self._first.startswith(_PREFACE) else _First(self)
            data = self._first
        self._speaks.hear(data)

    def listen(self, listens: bool) -> None:
        if not listens:
            self.transport.pause_reading()
        elif not self.transport.is_closing():
            self.transport.resume_reading()

    def drain(self) -> None:
        if self._speaks is None:
            self.transport.close()
        else:
            self._speaks.drain()

    def reset(self) -> None:
        """In the middle of everything."""
        self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER)
        self.transport.abort()


class _First:
    """HTTP/1.1."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._parser = httptools.HttpRequestParser(self)
        self._target, self._within = b"", False

    def hear(self, data: bytes) -> None:
        if self._connection.transport.is_closing():
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._connection.transport.abort()

    def on_message_begin(self) -> None:
        self._target, self._within = b"", True

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_message_complete(self) -> None:
        self._within = False
        endpoint = self._connection.endpoint
        if endpoint.mode == "resetting":
            self._connection.reset()
            return
        status = b"503 Service Unavailable" if endpoint.mode == "unavailable" else b"200 OK"
        body = BIG if self._target.startswith(b"/big") else b"well"
        last = b"connection: close\r\n" * endpoint.draining
        head = b"HTTP/1.1 %s\r\nx-endpoint: %d\r\n%scontent-length: %d\r\n\r\n"
        self._connection.transport.write(head % (status, endpoint.port, last, len(body)) + body)
        if endpoint.draining:
            self._connection.transport.close()

    def drain(self) -> None:
        if not self._within:
            self._connection.transport.close()


class _Second:
    """HTTP/2."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        config = h2.config.H2Configuration(client_side=False, header_encoding="latin-1")
        self._http = h2.connection.H2Connection(config)
        self._http.initiate_connection()
        self._targets: dict[int, str] = {}
        self._unsent: dict[int, bytes] = {}
        self._gone: set[int] = set()
        """Streams that are reset in what was heard last: `h2` has closed their other end already."""
        self._newest = 0
        self._going = False

    def hear(self, data: bytes) -> None:
        try:
            events = self._http.receive_data(data)
        except h2.exceptions.ProtocolError:
            self._flush()
            self._connection.transport.close()
            return
        self._gone = {one.stream_id for one in events if isinstance(one, h2.events.StreamReset)}
        for event in events:
            self._happened(event)
        for stream in list(self._unsent):
            self._send(stream)
        self._flush()
        self._end()

    def _happened(self, event: h2.events.Event) -> None:
        match event:
            case h2.events.RequestReceived():
                if self._going and event.stream_id > self._newest:
                    return  # it was told that nobody looks at this one
                self._newest = max(self._newest, event.stream_id)
                self._targets[event.stream_id] = dict(event.headers)[":path"]
            case h2.events.DataReceived():
                self._http.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            case h2.events.StreamEnded() if event.stream_id in self._targets.keys() - self._gone:
                self._answer(event.stream_id)
            case h2.events.StreamReset():
                self._targets.pop(event.stream_id, None)
                self._unsent.pop(event.stream_id, None)
            case _:
                pass

    def _answer(self, stream: int) -> None:
        target, endpoint = self._targets.pop(stream), self._connection.endpoint
        if endpoint.mode == "resetting":
            self._http.reset_stream(stream, h2.errors.ErrorCodes.INTERNAL_ERROR)
            return
        status = "503" if endpoint.mode == "unavailable" else "200"
        self._http.send_headers(stream, [(":status", status), ("x-endpoint", str(endpoint.port))])
        self._unsent[stream] = BIG if target.startswith("/big") else b"well"

    def _send(self, stream: int) -> None:
        rest = self._unsent[stream]
        while rest:
            room = min(self._http.local_flow_control_window(stream), self._http.max_outbound_frame_size)
            if room <= 0:
                self._unsent[stream] = rest
                return
            self._http.send_data(stream, rest[:room], end_stream=len(rest) <= room)
            rest = rest[room:]
        del self._unsent[stream]

    def drain(self) -> None:
        self._going = True
        self._flush()
        self._connection.transport.write(GoAwayFrame(0, last_stream_id=self._newest).serialize())
        self._end()

    def _flush(self) -> None:
        if data := self._http.data_to_send():
            self._connection.transport.write(data)

    def _end(self) -> None:
        if self._going and not self._targets and not self._unsent:
            self._connection.transport.close()


async def main() -> None:
    """Until standard input ends."""
    endpoints: dict[int, Endpoint] = {}
    reader, loop = asyncio.StreamReader(), asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        what, port = json.loads(line)
        if what == "come":
            made = Endpoint()
            await made.come()
            endpoints[made.port] = made
            port = made.port
        elif what == "drain":
            await endpoints.pop(port).drain()
        elif what == "die":
            endpoints.pop(port).die()
        else:
            endpoints[port].become(what)
        print(json.dumps(port), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
