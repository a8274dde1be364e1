"""A request's body that can be sent again: bytes always, a stream for as long as its beginning is kept.

A stream is recorded while it is sent, up to `LIMIT` bytes (Envoy's default for the buffer of a retry).
Beyond that the beginning is forgotten and the body can't be replayed any more. Nor can it if whoever reads it
is cut off while the application is asked for the next part: a generator that is cancelled is at its end,
which is not the body's.
"""

from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable, Iterator

LIMIT = 1024 * 1024


class BodyBroken(Exception):
    """The application's own body raised while it was sent; the error is the cause."""


Source = bytes | Iterable[bytes] | AsyncIterable[bytes]


class RequestBody:
    """The body of one request. Not thread-safe; sent by one attempt at a time."""

    __slots__ = ("_ended", "_failed", "_kept", "_live", "_size", "_source", "_told", "limit")

    def __init__(self, source: Source, limit: int = LIMIT) -> None:
        """`source` is iterated once at most."""
        self.limit = limit
        self._source = source
        self._live: Iterator[bytes] | AsyncIterator[bytes] | None = None
        self._kept: list[bytes] | None = []
        self._size = 0
        self._ended = False
        self._failed = False
        self._told: list[Callable[[bytes | None], None]] = []

    def replayable(self) -> bool:
        """Whether it can be sent from its beginning (once more)."""
        return isinstance(self._source, bytes) or (self._kept is not None and not self._failed)

    def whole(self) -> bool:
        """Whether all of it is known, and kept."""
        known = self._ended and self._kept is not None and not self._failed
        return isinstance(self._source, bytes) or known

    def once(self) -> None:
        """No retry of the mesh's needs it; a connection that turns out to be dead may."""

    @property
    def size(self) -> int:
        """Its bytes, as far as they were read."""
        return len(self._source) if isinstance(self._source, bytes) else self._size

    def when_known(self, tell: Callable[[bytes | None], None]) -> None:
        """Calls `tell` with the whole body as soon as it is known; with None if it was too long or broke."""
        if isinstance(self._source, bytes):
            tell(self._source)
        elif self._kept is None or self._failed:
            tell(None)
        elif self._ended:
            tell(b"".join(self._kept))
        else:
            self._told.append(tell)

    def content(self) -> bytes | Iterator[bytes]:
        """The body from its beginning, for a thread. TypeError: its source is asynchronous."""
        return self._source if isinstance(self._source, bytes) else self._chunks()

    def unread(self) -> Iterator[bytes] | None:
        """As `content`, of a body that is still the application's to give; None: it is known."""
        return None if self.whole() else self._chunks()

    def acontent(self) -> bytes | AsyncGenerator[bytes, None]:
        """The body from its beginning, for a task; the source may be of either kind."""
        return self._source if isinstance(self._source, bytes) else self._achunks()

    def _chunks(self) -> Iterator[bytes]:
        yield from self._from_beginning()
        live = self._iterator()
        while not self._ended:
            try:
                chunk = next(live)
            except StopIteration:
                self._end()
                return
            except Exception as error:
                self._break()
                raise BodyBroken from error
            except BaseException:
                self._break()
                raise
            if chunk:
                self._keep(chunk)
                yield chunk

    async def _achunks(self) -> AsyncGenerator[bytes, None]:
        if not isinstance(self._source, AsyncIterable):
            for chunk in self._chunks():
                yield chunk
            return
        for chunk in self._from_beginning():
            yield chunk
        if self._live is None:
            self._live = aiter(self._source)
        live = self._live
        while not self._ended:
            try:
                chunk = await anext(live)  # type: ignore[arg-type]
            except StopAsyncIteration:
                self._end()
                return
            except Exception as error:
                self._break()
                raise BodyBroken from error
            except BaseException:
                self._break()
                raise
            if chunk:
                self._keep(chunk)
                yield chunk

    def _from_beginning(self) -> tuple[bytes, ...]:
        if self._kept is None or self._failed:
            raise RuntimeError("the body can't be sent again")
        return tuple(self._kept)

    def _iterator(self) -> Iterator[bytes]:
        if self._live is None:
            # A source may be of both kinds, as httpx's multipart streams are.
            if not isinstance(self._source, Iterable):
                raise TypeError("an asynchronous body can't be sent by a blocking client")
            self._live = iter(self._source)  # type: ignore[assignment]
        return self._live  # type: ignore[return-value]

    def _keep(self, chunk: bytes) -> None:
        self._size += len(chunk)
        if self._kept is None:
            return
        if self._size > self.limit:
            self._kept = None
            self._tell(None)
        else:
            self._kept.append(chunk)

    def _end(self) -> None:
        self._ended = True
        if self._kept is not None:
            self._tell(b"".join(self._kept))

    def _break(self) -> None:
        self._failed = True
        self._tell(None)

    def _tell(self, whole: bytes | None) -> None:
        told, self._told = self._told, []
        for tell in told:
            tell(whole)
