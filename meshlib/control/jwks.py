"""The keys of token issuers: fetched, kept, and fetched again.

Rules:

- Nobody waits for a fetch: who builds a configuration takes what is known, and is told of changes.
- Keys are fetched every 20 minutes. What fails is tried again after 1, 2, 4, … seconds, at most 5 minutes;
  the last good keys stay in force meanwhile.
- A fetch is bounded in time as a whole, in bytes and in redirects, and never leaves TLS for plain text.
- Without a URI the issuer is asked for it: `<issuer>/.well-known/openid-configuration` (OpenID Discovery, 4).
"""

import asyncio
import contextlib
import functools
import json
import logging
import ssl
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from urllib.parse import urljoin, urlsplit

import h11

from meshlib.control.graph.policies import KeySource
from meshlib.control.keysets import has_usable_key

log = logging.getLogger(__name__)

REFRESH_SECONDS = 20 * 60.0
RETRY_SECONDS = 300.0
MAX_BYTES = 1 << 20
MAX_REDIRECTS = 5
AT_ONCE = 8
WELL_KNOWN = "/.well-known/openid-configuration"

Fetch = Callable[[KeySource, float], Awaitable[str]]
"""The key set of a source within so many seconds; any exception says why not."""


class Unfetched(Exception):
    """Keys could not be fetched; the message says why."""


@dataclass(slots=True)
class _Entry:
    seconds: float
    due: float
    keys: str | None = None
    failures: int = 0
    fetching: bool = False


class KeySets:
    """What is known and what is due. Time is an argument: seconds that only grow. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: dict[KeySource, _Entry] = {}

    def want(self, sources: Mapping[KeySource, float], now: float) -> Mapping[KeySource, str]:
        """What is known of these sources; each comes with the seconds that fetching may take.

        What was known of others is forgotten.
        """
        with self._lock:
            before = self._entries
            self._entries = {
                source: before.get(source) or _Entry(seconds, now) for source, seconds in sources.items()
            }
            for source, seconds in sources.items():
                self._entries[source].seconds = seconds
            return {source: e.keys for source, e in self._entries.items() if e.keys is not None}

    def start(self, now: float) -> list[tuple[KeySource, float]]:
        """The sources to fetch now, with the seconds it may take; each until its end is told."""
        with self._lock:
            found = [(s, e) for s, e in self._entries.items() if not e.fetching and e.due <= now]
            for _, entry in found:
                entry.fetching = True
            return [(source, entry.seconds) for source, entry in found]

    def next_due(self) -> float | None:
        """When the next fetch is due; None: none is, as things are."""
        with self._lock:
            return min((e.due for e in self._entries.values() if not e.fetching), default=None)

    def fetched(self, source: KeySource, keys: str, now: float) -> bool:
        """Keeps what was fetched; whether that changes anything."""
        with self._lock:
            entry = self._entries.get(source)
            if entry is None:
                return False
            changed = entry.keys != keys
            entry.keys, entry.failures, entry.fetching, entry.due = keys, 0, False, now + REFRESH_SECONDS
            return changed

    def failed(self, source: KeySource, now: float) -> float:
        """Puts the next try off; gives the seconds until then."""
        with self._lock:
            entry = self._entries.get(source)
            if entry is None:
                return 0.0
            wait = min(RETRY_SECONDS, 2.0 ** min(entry.failures, 20))
            entry.failures, entry.fetching, entry.due = entry.failures + 1, False, now + wait
            return wait


class KeyFetcher:
    """Fetches what is wanted for as long as `run` runs."""

    def __init__(self, fetch: Fetch | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` gives seconds that only grow."""
        self._fetch: Fetch = fetch or fetch_keys
        self._clock = clock
        self._sets = KeySets()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wake = asyncio.Event()

    def want(self, sources: Mapping[KeySource, float]) -> Mapping[KeySource, str]:
        """What is known of these sources now; what is not is fetched. From any thread; never waits."""
        known = self._sets.want(sources, self._clock())
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                self._loop.call_soon_threadsafe(self._wake.set)
        return known

    async def run(self, changed: Callable[[], None]) -> None:
        """Fetches until cancelled; `changed` is called whenever other keys are known."""
        self._loop = asyncio.get_running_loop()
        room = asyncio.Semaphore(AT_ONCE)
        try:
            async with asyncio.TaskGroup() as tasks:
                while True:
                    self._wake.clear()
                    for source, seconds in self._sets.start(self._clock()):
                        tasks.create_task(self._one(source, seconds, room, changed))
                    due = self._sets.next_due()
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(None if due is None else max(0.0, due - self._clock())):
                            await self._wake.wait()
        finally:
            self._loop = None

    async def _one(
        self, source: KeySource, seconds: float, room: asyncio.Semaphore, changed: Callable[[], None]
    ) -> None:
        try:
            async with room, asyncio.timeout(seconds):
                keys = await self._fetch(source, seconds)
        except Exception as error:  # noqa: BLE001 - whatever it is, what is known stays in force
            wait = self._sets.failed(source, self._clock())
            reason = f"not within {seconds:g} s" if isinstance(error, TimeoutError) else str(error)
            log.warning("no keys from %s (%s); trying again in %g s", source, reason, wait)
        else:
            if self._sets.fetched(source, keys, self._clock()):
                log.info("keys of %s have changed", source)
                changed()
        self._wake.set()


async def fetch_keys(source: KeySource, seconds: float) -> str:
    """A source's key set as JSON in one spelling. Unfetched, OSError, TimeoutError."""
    async with asyncio.timeout(seconds):
        uri = source.uri or await _discover(source.issuer)
        found = _json(await _get(uri), uri)
    text = json.dumps(found, separators=(",", ":"), sort_keys=True)
    if not has_usable_key(text):
        raise Unfetched(f"{uri} is no key set with a key that can be used")
    return text


async def _discover(issuer: str) -> str:
    if not issuer.startswith(("http://", "https://")):
        raise Unfetched(f"issuer {issuer!r} is no URL; give jwksUri or jwks")
    place = issuer.rstrip("/") + WELL_KNOWN
    uri = _json(await _get(place), place).get("jwks_uri")
    if not isinstance(uri, str) or not uri:
        raise Unfetched(f"{place} names no jwks_uri")
    return uri


def _json(body: bytes, uri: str) -> dict[str, object]:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        raise Unfetched(f"{uri} is no JSON") from None
    if not isinstance(found, dict):
        raise Unfetched(f"{uri} is no JSON object")
    return found


async def _get(uri: str) -> bytes:
    for _ in range(MAX_REDIRECTS + 1):
        status, location, body = await _ask(uri)
        if status == 200:
            return body
        if status not in (301, 302, 303, 307, 308) or not location:
            raise Unfetched(f"{uri} answers {status}")
        try:
            target = urljoin(uri, location)
        except ValueError:
            raise Unfetched(f"{uri} leads to {location!r}, which is no URL") from None
        if uri.startswith("https:") and not target.startswith("https:"):
            raise Unfetched(f"{uri} leads away from TLS")
        uri = target
    raise Unfetched(f"{uri}: more than {MAX_REDIRECTS} redirects")


@functools.cache
def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()


async def _ask(uri: str) -> tuple[int, str, bytes]:
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
    ]
    tls = await asyncio.to_thread(_tls) if parts.scheme == "https" else None
    reader, writer = await asyncio.open_connection(host, port, ssl=tls)
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
