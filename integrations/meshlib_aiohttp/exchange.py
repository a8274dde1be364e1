"""One request and its response, in the place of aiohttp's connection: the mesh sends it and reads what comes.

aiohttp's session asks a connector for a connection, lets the request write itself to it, and lets a response
read itself from the connection's protocol. An exchange is asked the same and answers from the mesh, so
request and response are aiohttp's own classes. A body is read at the pace of the application: what has come
is fed into `response.content`, and who waits there waits for the mesh's connection; a wait that is cancelled
costs nothing.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import aiohttp
from aiohttp import hdrs, http_exceptions
from aiohttp.client_reqrep import ClientRequest, ClientResponse
from aiohttp.http import HttpVersion
from aiohttp.http_parser import DeflateBuffer
from aiohttp.streams import StreamReader
from aiohttp.tracing import Trace
from multidict import CIMultiDict, CIMultiDictProxy

from meshlib.core.actions import Facts
from meshlib.core.request import Header
from meshlib.dataplane.body import Source
from meshlib.dataplane.drive import Answer, AsyncBody, FlightFailed
from meshlib.dataplane.exchange import DEFAULT_PORTS, AsyncSender, Request
from meshlib.dataplane.http.limits import NO_TIMEOUTS, OwnTimeouts, TooSlow
from meshlib.dataplane.http.read import Need
from meshlib.dataplane.http.syntax import Unsendable
from meshlib.errors import ControlError
from meshlib_aiohttp.errors import of_control, of_failure, of_own
from meshlib_aiohttp.upload import Upload, source_of

_VERSIONS = {b"HTTP/1.0": HttpVersion(1, 0), b"HTTP/1.1": HttpVersion(1, 1), b"HTTP/2": HttpVersion(2, 0)}
_HTTP11 = HttpVersion(1, 1)
_NO_FACTS = Facts()
_CODINGS = frozenset(("gzip", "deflate", "br", "zstd"))
_SCHEMES = {"ws": "http", "wss": "https"}


class Message(NamedTuple):
    """What a response wants to know of its head."""

    version: HttpVersion
    code: int
    reason: str
    headers: "CIMultiDictProxy[str]"
    raw_headers: tuple[Header, ...]


class Holder(Protocol):
    """What an exchange knows of its connector."""

    sender: AsyncSender

    @property
    def force_close(self) -> bool:
        """Whether each connection is closed after one request."""
        ...

    def note(self, traces: list[Trace], error: Exception) -> None:
        """Remembers what a request came to."""


class Exchange:
    """aiohttp's `Connection`, its `ResponseHandler` and its `StreamWriter`, as far as they are asked here."""

    __slots__ = (
        *(
            "_body",
            "_buffer",
            "_callbacks",
            "_content",
            "_decompress",
            "_holder",
            "_own",
            "_request",
            "_sink",
        ),
        *("_traces", "_unpacking", "_upload", "facts"),
    )
    transport = None
    upgraded = False
    connected = True
    closed = False
    output_size = 0

    def __init__(self, holder: Holder, request: ClientRequest, traces: list[Trace], own: OwnTimeouts) -> None:
        self._holder = holder
        self._request = request
        self._traces = traces
        self._own = own
        self._callbacks: tuple[Callable[[], None], ...] = ()
        self._body: AsyncBody | None = None
        self._upload: Upload | None = None
        self._content: StreamReader | None = None
        self._sink: StreamReader | DeflateBuffer | None = None
        self._unpacking = False
        self.facts = _NO_FACTS

    # as a connection

    @property
    def protocol(self) -> "Exchange":
        """What reads the response."""
        return self

    def add_callback(self, callback: Callable[[], None]) -> None:
        """Calls it when the exchange ends."""
        self._callbacks += (callback,)

    def release(self) -> None:
        """The response is not wanted any more. If all of it has come, its connection is used again."""
        if self._body is not None:
            self._body.finish()
        self.close()

    def close(self) -> None:
        """Ends the exchange."""
        body, self._body = self._body, None
        self._content = self._sink = None
        if body is not None:
            body.close()
        if self._upload is not None:
            self._upload.close()
        if self._callbacks:
            callbacks, self._callbacks = self._callbacks, ()
            for callback in callbacks:
                callback()

    # as a protocol

    def set_response_params(
        self, *, auto_decompress: bool = True, read_bufsize: int = 2**16, **_: object
    ) -> None:
        """What the application wants done with the response."""
        self._decompress = auto_decompress
        self._buffer = read_bufsize

    def pause_reading(self) -> None:
        """Nothing is read that nobody asked for."""

    def resume_reading(self, resume_parser: bool = True) -> None:
        """As `pause_reading`."""

    async def send(self, _: object) -> ClientResponse:
        """In the place of the request's own: makes the response, which then asks `read`."""
        request = self._request
        headers = request.headers
        if (
            request.method in request.POST_METHODS
            and hdrs.CONTENT_TYPE not in headers
            and hdrs.CONTENT_TYPE not in (request._skip_auto_headers or ())  # noqa: SLF001
        ):
            headers[hdrs.CONTENT_TYPE] = "application/octet-stream"
        if self._holder.force_close and hdrs.CONNECTION not in headers:
            headers[hdrs.CONNECTION] = "close"
        for trace in self._traces:
            await trace.send_request_headers(request.method, request.url, headers)
        del request.send  # it has served; a circle would wait for the collector
        return request.response_class(
            request.method,
            request.original_url,
            writer=None,
            continue100=None,
            timer=request._timer,  # noqa: SLF001
            request_info=request.request_info,
            traces=self._traces,
            loop=request.loop,
            session=request.session,
            stream_writer=self,  # type: ignore[arg-type]
        )

    async def read(self) -> tuple[Message, StreamReader]:
        """The response's head, and its body as far as it has come."""
        request = self._request
        try:
            source: Source = b""
            if request._body is not None:  # noqa: SLF001 - `body` is b"" for none and for an empty one
                source = await source_of(request, self._traces)
                if isinstance(source, Upload):
                    self._upload = source
            answer = await self._holder.sender.send(asked(request, source, self._own))
        except FlightFailed as error:
            raise self._noted(of_failure(error, request)) from None
        except (TooSlow, Unsendable) as error:
            raise self._noted(of_own(error)) from None
        except ControlError as error:
            raise self._noted(of_control(error, request)) from error
        if (tracker := getattr(request, "_upload_tracker", None)) is not None:
            tracker._attempt_finished(request._upload_gen)  # noqa: SLF001
        return self._answered(answer)

    def _noted(self, error: Exception) -> Exception:
        self._holder.note(self._traces, error)
        return error

    def _answered(self, answer: Answer) -> tuple[Message, StreamReader]:
        raw = tuple(answer.wire_headers()) if answer.own else answer.headers
        headers = CIMultiDict(
            [(n.decode("utf-8", "surrogateescape"), v.decode("utf-8", "surrogateescape")) for n, v in raw]
        )
        request, body, self.facts = self._request, answer.body, answer.facts
        version = _VERSIONS.get(answer.version, _HTTP11)
        reason = answer.reason.decode("utf-8", "surrogateescape")
        message = Message(version, answer.status, reason, CIMultiDictProxy(headers), raw)
        content = _Content(self, self._buffer, timer=request._timer, loop=request.loop)  # type: ignore[arg-type]  # noqa: SLF001
        coding = headers.get(hdrs.CONTENT_ENCODING)
        if coding is None and isinstance(body, bytes):
            content.feed_whole(body)
            return message, content
        self._content = self._sink = content
        unpacks = self._decompress and not answer.own and request.method != hdrs.METH_HEAD
        if coding is not None and coding.lower() in _CODINGS and unpacks:
            self._sink = DeflateBuffer(content, coding.lower())
        if isinstance(body, AsyncBody):
            self._body = body
        elif isinstance(body, bytes) and body:
            self._unpack(body)
        self._feed()
        return message, content

    # as what `content` reads from

    async def more(self) -> None:
        """Waits until there is more in `content`. Errors of aiohttp."""
        try:
            if self._unpacking:
                self._unpack(b"")
            elif self._body is None:
                raise aiohttp.ClientConnectionError("Connection closed")
            else:
                await self._body.more()
            self._feed()
        except FlightFailed as error:
            raise self._broken(of_failure(error, self._request)) from None
        except TooSlow as error:
            raise self._broken(of_own(error)) from None

    def _feed(self) -> None:
        """Gives `content` what has come, as far as it is to be unpacked now."""
        body = self._body
        if self._content is None:
            return
        try:
            while not self._unpacking:
                part = Need.NOTHING if body is None else body.ready()
                if isinstance(part, bytes):
                    self._unpack(part)
                    continue
                if part is Need.NOTHING:
                    self._body = None
                    self._end()
                return
        except FlightFailed as error:
            self._spoiled(of_failure(error, self._request))

    def _unpack(self, part: bytes) -> None:
        sink = self._sink
        if isinstance(sink, DeflateBuffer):
            try:
                self._unpacking = sink.feed_data(part, len(part))
            except http_exceptions.ContentEncodingError as error:
                self._spoiled(aiohttp.ClientPayloadError(str(error)))
        elif sink is not None:
            sink.feed_data(part)

    def _end(self) -> None:
        sink = self._sink
        if sink is None or (self._content is not None and self._content.is_eof()):
            return
        try:
            sink.feed_eof()
        except http_exceptions.ContentEncodingError as error:
            self._spoiled(aiohttp.ClientPayloadError(str(error)))

    def _spoiled(self, error: Exception) -> None:
        """Who reads on is told so; what has come before is read first."""
        content = self._content
        self._unpacking = False
        self.close()
        if content is not None:
            content.set_exception(error)

    def _broken(self, error: Exception) -> Exception:
        self.close()
        return error


class _Content(StreamReader):
    """aiohttp's, which waits for the mesh where it would wait for a protocol."""

    __slots__ = ()
    _protocol: Exchange  # type: ignore[assignment]

    def feed_whole(self, body: bytes) -> None:
        """All there is, at once."""
        if body:
            self._buffer.append(body)
            self._size = self.total_bytes = len(body)
        self._eof = True

    async def read(self, n: int = -1) -> bytes:
        """As aiohttp's, at once if all there is is one piece."""
        if n < 0 and self._eof and len(self._buffer) == 1 and self._exception is None:
            self._timer.assert_timeout()
            return self._read_nowait_chunk(-1)
        return await super().read(n)

    async def _wait(self, func_name: str) -> None:
        try:
            with self._timer:
                await self._protocol.more()
        except aiohttp.ClientError as error:
            self.set_exception(error)
        # What came before the error is read first.
        if self._exception is not None and not self._buffer:
            raise self._exception


def asked(request: ClientRequest, source: Source, own: OwnTimeouts = NO_TIMEOUTS) -> Request:
    """What core knows of a request."""
    url = request.url
    scheme = _SCHEMES.get(url.scheme, url.scheme)
    return Request(
        request.method,
        scheme,
        (url.raw_host or "", url.port or DEFAULT_PORTS.get(scheme, 80)),
        url.host_port_subcomponent or "",
        url.raw_path_qs,
        [(name.encode(), value.encode()) for name, value in request.headers.items()],
        source,
        own,
    )


def own_timeouts(timeout: aiohttp.ClientTimeout) -> OwnTimeouts:
    """aiohttp's `connect` is for a place and a connection together."""
    both, one = timeout.connect, timeout.sock_connect
    connect = one if both is None else both if one is None else min(both, one)
    return OwnTimeouts(connect, timeout.sock_read, None, both)


def facts(response: ClientResponse) -> Facts | None:
    """What the mesh knows of a response; None: it did not route it."""
    found = getattr(response, "_protocol", None)
    return found.facts if isinstance(found, Exchange) else None
