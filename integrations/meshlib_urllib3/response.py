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
    """A urllib3.HTTPResponse with the mesh's `facts`."""

    def __init__(self, answer: Answer, translate: Translate | None = None, **arguments: Any) -> None:
        """`translate` None: errors of the body go up as the mesh's, until one is set. Further arguments are
        HTTPResponse's.
        """
        self.facts = answer.facts
        self.translate = translate
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
            # Cookie jars look there, and nobody else.
            original_response=_Original(headers) if cookies else None,  # type: ignore[arg-type]
            **arguments,
        )

    def preload(self, decode_content: bool) -> None:
        """Reads all of it, as `preload_content` does."""
        self._body = self.read(decode_content=decode_content)

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
