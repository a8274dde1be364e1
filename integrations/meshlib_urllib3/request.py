"""A request's body and framing as urllib3's own connection makes them."""

from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import version
from typing import Any

from urllib3.util.request import SKIP_HEADER, body_to_chunks

from meshlib.core.request import Header
from meshlib.dataplane.body import Source

_AGENT = (b"User-Agent", f"python-urllib3/{version('urllib3')}".encode())
_IDENTITY = (b"Accept-Encoding", b"identity")
_CHUNKED = (b"Transfer-Encoding", b"chunked")


def framed(
    method: str, body: Any, headers: Mapping[str, str], *, chunked: bool, blocksize: int
) -> tuple[list[Header], Source]:
    """Headers and body as they are sent. TypeError: the body is none."""
    given = {bytes_of(name).lower() for name in headers}
    chunks, length = body_to_chunks(body, method, blocksize)
    found: list[Header] = []
    if b"accept-encoding" not in given:
        found.append(_IDENTITY)
    if chunked:
        if b"transfer-encoding" not in given:
            found.append(_CHUNKED)
    elif b"content-length" not in given and b"transfer-encoding" not in given:
        if length is not None:
            found.append((b"Content-Length", b"%d" % length))
        elif chunks is not None:
            found.append(_CHUNKED)
    if b"user-agent" not in given:
        found.append(_AGENT)
    found += encoded(headers)
    return found, source_of(chunks)


def encoded(headers: Mapping[str, str]) -> list[Header]:
    """Headers as bytes, without those that are only to keep urllib3 from adding its own."""
    return [(bytes_of(n), bytes_of(v)) for n, v in headers.items() if v != SKIP_HEADER]


def bytes_of(text: str | bytes) -> bytes:
    """As http.client encodes it."""
    return text.encode("latin-1") if isinstance(text, str) else text


def source_of(chunks: Any) -> Source:
    """A body of chunks: bytes if it is one."""
    if chunks is None:
        return b""
    if isinstance(chunks, tuple):
        return chunks[0] if isinstance(chunks[0], bytes) else bytes(chunks[0])
    return _Chunks(chunks)


class _Chunks:
    """Texts among them are UTF-8."""

    def __init__(self, chunks: Iterable[str | bytes]) -> None:
        self._chunks = chunks

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._chunks:
            yield chunk.encode() if isinstance(chunk, str) else bytes(chunk)
