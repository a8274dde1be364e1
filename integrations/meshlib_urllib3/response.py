"""A response of the mesh as urllib3 has it: its HTTPResponse, which reads from the mesh's connection."""

from collections.abc import Callable, Iterator
from email.message import Message
from typing import Any

import urllib3
from urllib3 import HTTPHeaderDict

from meshlib.core.actions import Facts
from meshlib.dataplane.drive import Answer, Body, FlightFailed
from meshlib.dataplane.http.limits import TooSlow

_VERSIONS = {b"HTTP/1.0": 10, b"HTTP/1.1": 11, b"HTTP/2": 20}

Translate = Callable[[FlightFailed | TooSlow], Exception]
"""Makes an error of the body one of the library."""


class Received(urllib3.HTTPResponse):
    """A urllib3.HTTPResponse with the mesh's `facts`.

    What HTTPResponse has beside its methods is made when the first of it is asked for: who wants a whole body
    and no more (`take_whole`) does without.
    """

    def __init__(self, answer: Answer, translate: Translate | None = None, **arguments: Any) -> None:
        """`translate` None: errors of the body go up as the mesh's, until one is set. Further arguments are
        HTTPResponse's.
        """
        self.answer = answer
        self.facts = answer.facts
        self.translate = translate
        self._unmade: dict[str, Any] | None = arguments
        self._taken = False
        # Cookie jars look there, and nobody else.
        self._original_response = None
        if any(name.lower() == b"set-cookie" for name, _ in answer.headers):
            self._make()

    def __getattr__(self, name: str) -> Any:
        if self.__dict__.get("_unmade") is None:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        self._make()
        return getattr(self, name)

    def __del__(self) -> None:
        if self.__dict__.get("_unmade") is None:
            super().__del__()

    def _make(self) -> None:
        answer, arguments = self.answer, self._unmade or {}
        self._unmade = None
        said = dict(self.__dict__)
        headers = HTTPHeaderDict()
        cookies = False
        for name, value in answer.wire_headers():
            headers.add(text := name.decode("latin-1"), value.decode("latin-1"))
            cookies = cookies or text.lower() == "set-cookie"
        super().__init__(
            body=_File(answer.body),  # type: ignore[arg-type]
            headers=headers,
            status=answer.status,
            version=_VERSIONS.get(answer.version, 11),
            version_string=answer.version.decode("latin-1"),
            reason=answer.reason.decode("latin-1"),
            preload_content=False,
            **arguments,
        )
        # What the application set before it asked for anything stays.
        self.__dict__.update(said)
        if cookies:
            self._original_response = _Original(headers)  # type: ignore[assignment]
        if self._taken and self._fp is not None:
            self._fp.close()
            self._fp_bytes_read = len(answer.body) if isinstance(answer.body, bytes) else 0
            self.length_remaining = 0

    def take_whole(self) -> bytes | None:
        """The body, if all of it is here as it is and nothing was asked for yet; None: read it."""
        body = self.answer.body
        if self._unmade is None or self._taken or not isinstance(body, bytes):
            return None
        if any(name.lower() == b"content-encoding" for name, _ in self.answer.headers):
            return None
        self._taken = True
        return body

    def preload(self, decode_content: bool) -> None:
        """Reads all of it, as `preload_content` does."""
        whole = self.take_whole()
        self._body = self.read(decode_content=decode_content) if whole is None else whole

    def _raw_read(self, amt: int | None = None, *, read1: bool = False) -> bytes:
        try:
            return super()._raw_read(amt, read1=read1)
        except (FlightFailed, TooSlow) as error:
            if self.translate is None:
                raise
            raise self.translate(error) from None


class _File:
    """A body as a file to be read."""

    def __init__(self, body: object) -> None:
        self._body = body if isinstance(body, Body) else None
        self._chunks: Iterator[bytes] = iter(self._body) if self._body is not None else iter(())
        self._rest = memoryview(body if isinstance(body, bytes) else b"")
        self.closed = False

    def read(self, amount: int | None = None) -> bytes:
        """So many bytes, fewer at the end; None: all. FlightFailed, TooSlow."""
        if amount is None:
            whole = b"".join((self._rest, *self._chunks))
            self._rest = memoryview(b"")
            self.close()
            return whole
        found, parts = 0, []
        while found < amount and self._fill():
            parts.append(self._rest[: amount - found])
            self._rest = self._rest[amount - found :]
            found += len(parts[-1])
        return b"".join(parts)

    def read1(self, amount: int | None = None) -> bytes:
        """What is there, waiting only if there is nothing."""
        if not self._fill():
            return b""
        amount = len(self._rest) if amount is None or amount < 0 else amount
        part, self._rest = self._rest[:amount], self._rest[amount:]
        return bytes(part)

    def _fill(self) -> bool:
        while not self._rest:
            chunk = next(self._chunks, None)
            if chunk is None:
                return False
            self._rest = memoryview(chunk)
        return True

    def flush(self) -> None:
        """Nothing is written."""

    def close(self) -> None:
        """Ends the request, if it has not ended."""
        self.closed = True
        if self._body is not None:
            self._body.finish()


class _Original:
    """What cookie jars ask of http.client's response."""

    def __init__(self, headers: HTTPHeaderDict) -> None:
        self.msg = Message()
        for name, value in headers.iteritems():
            self.msg[name] = value

    def isclosed(self) -> bool:
        """It has nothing to close."""
        return False

    def close(self) -> None:
        """As `isclosed`."""


def facts(response: object) -> Facts | None:
    """What the mesh knows of a response; None: it did not route it."""
    return response.facts if isinstance(response, Received) else None
