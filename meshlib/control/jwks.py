"""The keys of token issuers: fetched, kept, and fetched again.

Rules:

- Nobody waits for a fetch: who builds a configuration takes what is known, and is told of changes.
- Keys are fetched every 20 minutes. What fails is tried again after 1, 2, 4, … seconds, at most 5 minutes;
  the last good keys stay in force meanwhile.
- A fetch is bounded in time as a whole, and as `fetch` says.
- Without a URI the issuer is asked for it: `<issuer>/.well-known/openid-configuration` (OpenID Discovery, 4).
"""

import asyncio
import contextlib
import json
import logging
import selectors
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace

from meshlib.control.fetch import WELL_KNOWN, Unfetched, get, json_object
from meshlib.control.graph.policies import KeySource
from meshlib.control.keysets import has_usable_key

log = logging.getLogger(__name__)

REFRESH_SECONDS = 20 * 60.0
RETRY_SECONDS = 300.0
AT_ONCE = 8

Fetch = Callable[[KeySource, float], Awaitable[str]]
"""The key set of a source within so many seconds; any exception says why not."""


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

    def forked(self) -> "KeySets":
        """The same in a fork's child, where nobody fetches and no lock is held."""
        made = KeySets()
        made._entries = {source: replace(entry, fetching=False) for source, entry in self._entries.items()}
        return made


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
        async with room:
            if await _renew(self._sets, source, seconds, self._fetch, self._clock):
                changed()
        self._wake.set()


class KeyErrands:
    """The same without an event loop of its own: `go` sends a thread, for as long as there is something due.

    Thread-safe; survives a fork, of which the child knows what its parent knew.
    """

    def __init__(self, changed: Callable[[], None], clock: Callable[[], float] = time.monotonic) -> None:
        """`changed` is called, on such a thread, whenever other keys are known."""
        self._changed = changed
        self._clock = clock
        self._sets = KeySets()

    def want(self, sources: Mapping[KeySource, float]) -> Mapping[KeySource, str]:
        """What is known of these sources now; `go` fetches what is not. Never waits."""
        return self._sets.want(sources, self._clock())

    def go(self) -> None:
        """Has fetched what is due now. To be called now and then."""
        if due := self._sets.start(self._clock()):
            threading.Thread(target=self._run, args=(due,), name="meshlib-local-keys", daemon=True).start()

    def after_fork_in_child(self) -> None:
        """What the parent is fetching, the child fetches itself."""
        self._sets = self._sets.forked()

    def _run(self, due: list[tuple[KeySource, float]]) -> None:
        # Not epoll: its descriptor would be shared with the children of a fork.
        def loop() -> asyncio.AbstractEventLoop:
            return asyncio.SelectorEventLoop(selectors.SelectSelector())

        with asyncio.Runner(loop_factory=loop) as runner:
            runner.run(self._all(due))

    async def _all(self, due: list[tuple[KeySource, float]]) -> None:
        room = asyncio.Semaphore(AT_ONCE)

        async def one(source: KeySource, seconds: float) -> None:
            async with room:
                if await _renew(self._sets, source, seconds, fetch_keys, self._clock):
                    self._changed()

        await asyncio.gather(*(one(source, seconds) for source, seconds in due))


async def _renew(
    sets: KeySets, source: KeySource, seconds: float, fetch: Fetch, clock: Callable[[], float]
) -> bool:
    """Fetches the keys of a source; whether they are others than before."""
    try:
        async with asyncio.timeout(seconds):
            keys = await fetch(source, seconds)
    except Exception as error:  # noqa: BLE001 - whatever it is, what is known stays in force
        wait = sets.failed(source, clock())
        reason = f"not within {seconds:g} s" if isinstance(error, TimeoutError) else str(error)
        log.warning("no keys from %s (%s); trying again in %g s", source, reason, wait)
        return False
    if not sets.fetched(source, keys, clock()):
        return False
    log.info("keys of %s have changed", source)
    return True


async def fetch_keys(source: KeySource, seconds: float) -> str:
    """A source's key set as JSON in one spelling. Unfetched, OSError, TimeoutError."""
    async with asyncio.timeout(seconds):
        uri = source.uri or await _discover(source.issuer)
        found = json_object(await get(uri), uri)
    text = json.dumps(found, separators=(",", ":"), sort_keys=True)
    if not has_usable_key(text):
        raise Unfetched(f"{uri} is no key set with a key that can be used")
    return text


async def _discover(issuer: str) -> str:
    if not issuer.startswith(("http://", "https://")):
        raise Unfetched(f"issuer {issuer!r} is no URL; give jwksUri or jwks")
    place = issuer.rstrip("/") + WELL_KNOWN
    uri = json_object(await get(place), place).get("jwks_uri")
    if not isinstance(uri, str) or not uri:
        raise Unfetched(f"{place} names no jwks_uri")
    return uri
