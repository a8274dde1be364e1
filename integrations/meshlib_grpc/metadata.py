"""gRPC's metadata as the headers that they are on the wire, and back.

Rules (gRPC over HTTP/2):

- The value of a name that ends in `-bin` is bytes, and base64 on the wire; any other is text.
- What gRPC writes itself (`content-type`, `te`, `grpc-timeout`) is a header that rules can see, but is not
  handed to gRPC as metadata.
"""

import base64
import binascii
from collections.abc import Collection, Iterable
from typing import Any, NamedTuple
from urllib.parse import unquote

from meshlib.core.request import Header


class Metadatum(NamedTuple):
    """As gRPC gives one."""

    key: str
    value: str | bytes


Metadata = tuple[Metadatum, ...]


class BadName(ValueError):
    """A name of metadata is empty or has capitals, which gRPC does not take."""


TYPE = (b"content-type", b"application/grpc")
_ALWAYS = [(b"te", b"trailers"), TYPE]
_INDEX = dict(_ALWAYS)
_GRPCS_OWN = frozenset(
    (
        b"content-type",
        b"te",
        b"grpc-timeout",
        b"user-agent",
        b"grpc-status",
        b"grpc-message",
        b"content-length",
    )
)
_STATUS, _MESSAGE = b"grpc-status", b"grpc-message"
_MOST_MILLISECONDS = 10**8 - 1
_KEYS: dict[bytes, str] = {}
"""What was found out of the names of texts: each call has much the same ones."""
_MOST_KEYS = 1000


def to_request(metadata: Iterable[Any] | None, timeout: float | None) -> list[Header]:
    """The headers of a request with that metadata, whose caller waits for `timeout` seconds. BadName;
    TypeError: binary ones are bytes.
    """
    headers = _ALWAYS.copy()
    if metadata is not None:
        for name, value in metadata:
            if not name or name != name.lower():
                raise BadName
            if isinstance(value, str) and name[-4:] == "-bin":
                raise TypeError(f'Binary metadata key="{name}" expected bytes, got {type(value)}')
            headers.append(_header(name, value))
    if timeout is not None:
        headers.append((b"grpc-timeout", _timeout(timeout)))
    return headers


def index_of(headers: list[Header]) -> dict[bytes, bytes] | None:
    """The index of a request's headers, if it is the one that most have; None: it is to be made."""
    return _INDEX.copy() if len(headers) == len(_ALWAYS) else None


def to_headers(metadata: Iterable[Any] | None) -> list[Header]:
    """Metadata of a response."""
    return [_header(name, value) for name, value in metadata or ()]


def sendable(headers: Collection[Header]) -> list[tuple[str, str | bytes]]:
    """The metadata of a request with these headers."""
    keys = _KEYS
    try:
        return [(key, value) for name, value in headers if (key := keys[name])]
    except KeyError:
        return _looked_at(headers)


def _looked_at(headers: Collection[Header]) -> list[tuple[str, str | bytes]]:
    found: list[tuple[str, str | bytes]] = []
    keys = _KEYS
    for name, value in headers:
        key = keys.get(name)
        if key is None:
            key = _key_of(name)
            if key[-4:] == "-bin":
                found.append((key, bytes_of(value)))
                continue
            if len(keys) >= _MOST_KEYS:
                keys.clear()
            keys[name] = key
        if key:
            found.append((key, value))
    return found


def _key_of(name: bytes) -> str:
    """The name in metadata; empty: it is none for gRPC's library."""
    return "" if name in _GRPCS_OWN else name.decode("latin-1").lower()


def to_metadata(headers: Iterable[Header]) -> Metadata:
    """What an application is given of a response's headers."""
    return tuple(
        Metadatum(
            name.decode("latin-1").lower(),
            bytes_of(value) if name.endswith(b"-bin") else value.decode("latin-1"),
        )
        for name, value in headers
        if name.lower() not in _GRPCS_OWN
    )


def status_of(headers: Iterable[Header]) -> tuple[int | None, str]:
    """The status in the headers, and its words; None: they have none."""
    number, words = None, ""
    for name, value in headers:
        if name == _STATUS:
            number = int(value) if value.isdigit() else 2
        elif name == _MESSAGE:
            words = unquote(value.decode("latin-1"))
    return number, words


def status_headers(number: int) -> tuple[Header, ...]:
    """A status as it stands in a response's headers."""
    return ((_STATUS, b"%d" % number),)


def _header(name: str | bytes, value: str | bytes) -> Header:
    key = name.encode() if isinstance(name, str) else name
    if key.endswith(b"-bin"):
        raw = value.encode() if isinstance(value, str) else value
        return key, base64.b64encode(raw).rstrip(b"=")
    return key, value.encode() if isinstance(value, str) else value


def bytes_of(value: bytes) -> bytes:
    """`value` is base64, with or without its padding; what is not stays as it is."""
    try:
        return base64.b64decode(value + b"=" * (-len(value) % 4), validate=True)
    except binascii.Error:
        return value


def _timeout(seconds: float) -> bytes:
    milliseconds = max(0, int(min(seconds, _MOST_MILLISECONDS) * 1000))
    if milliseconds <= _MOST_MILLISECONDS:
        return b"%dm" % milliseconds
    return b"%dS" % min(milliseconds // 1000, _MOST_MILLISECONDS)
