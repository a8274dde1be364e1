"""One document of the web, read with bounds: for keys, wherever they are needed.

Rules:

- Bytes and redirects are bounded; time is the caller's to bound. TLS is never left for plain text.
- No proxy, no credentials but those that are given, and these go to no other place than the first.
"""

import asyncio
import functools
import json
import ssl
from collections.abc import Sequence
from urllib.parse import urljoin, urlsplit

import h11

from meshlib.errors import ControlError

MAX_BYTES = 1 << 20
MAX_REDIRECTS = 5
WELL_KNOWN = "/.well-known/openid-configuration"
Headers = Sequence[tuple[str, str]]


class Unfetched(ControlError):
    """It could not be fetched; the message says why."""


def json_object(body: bytes, uri: str) -> dict[str, object]:
    """A JSON object. Unfetched: it is none."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        raise Unfetched(f"{uri} is no JSON") from None
    if not isinstance(found, dict):
        raise Unfetched(f"{uri} is no JSON object")
    return found


async def get(
    uri: str, *, tls: ssl.SSLContext | None = None, headers: Headers = (), redirects: int = MAX_REDIRECTS
) -> bytes:
    """The body at a URI of http or https; `tls` None: by the system's roots. Unfetched, OSError."""
    for _ in range(redirects + 1):
        status, location, body = await _ask(uri, tls, headers)
        if status == 200:
            return body
        if status not in (301, 302, 303, 307, 308) or not location or not redirects:
            raise Unfetched(f"{uri} answers {status}")
        try:
            target = urljoin(uri, location)
        except ValueError:
            raise Unfetched(f"{uri} leads to {location!r}, which is no URL") from None
        if uri.startswith("https:") and not target.startswith("https:"):
            raise Unfetched(f"{uri} leads away from TLS")
        uri, headers = target, ()
    raise Unfetched(f"{uri}: more than {redirects} redirects")


@functools.cache
def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()


async def _ask(uri: str, tls: ssl.SSLContext | None, more: Headers) -> tuple[int, str, bytes]:
    """Status, Location and body of one GET."""
    try:
        parts = urlsplit(uri)
        host, port = parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        raise Unfetched(f"{uri!r} is no URL") from None
    if parts.scheme not in ("http", "https") or not host:
        raise Unfetched(f"{uri!r} is no URL of http or https")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    headers = [
        ("Host", parts.netloc.rpartition("@")[2]),
        ("Accept", "application/json"),
        ("Connection", "close"),
        *more,
    ]
    secured = (tls or await asyncio.to_thread(_tls)) if parts.scheme == "https" else None
    reader, writer = await asyncio.open_connection(host, port, ssl=secured)
    try:
        talk = h11.Connection(h11.CLIENT)
        request = h11.Request(method="GET", target=path, headers=headers)
        writer.write((talk.send(request) or b"") + (talk.send(h11.EndOfMessage()) or b""))
        await writer.drain()
        return await _answer(uri, talk, reader)
    except (h11.ProtocolError, UnicodeError) as error:
        raise Unfetched(f"{uri}: {error}") from None
    finally:
        writer.transport.abort()


async def _answer(uri: str, talk: h11.Connection, reader: asyncio.StreamReader) -> tuple[int, str, bytes]:
    status, location, body = 0, "", bytearray()
    while True:
        event = talk.next_event()
        if event is h11.NEED_DATA:
            talk.receive_data(await reader.read(65_536))
        elif isinstance(event, h11.Response):
            status = event.status_code
            location = next((v.decode("latin-1") for n, v in event.headers if n == b"location"), "")
        elif isinstance(event, h11.Data):
            body += event.data
            if len(body) > MAX_BYTES:
                raise Unfetched(f"{uri} is larger than {MAX_BYTES} bytes")
        elif isinstance(event, h11.EndOfMessage):
            return status, location, bytes(body)
        elif isinstance(event, h11.ConnectionClosed):
            raise Unfetched(f"{uri}: the answer ends early")
