"""gRPC's channels, one for each endpoint of each cluster: which is used, and when one is closed.

Rules:

- A channel is of one cluster, address, authority and way of TLS; gRPC multiplexes calls on it.
- A channel is one connection. One that could not connect is left at once: gRPC would refuse calls for a while
  instead of trying again. One that has lost its connection is left by the next call: whoever answers at the
  endpoint by then is looked at anew, and a call on a channel that is connected has lost no connection.
- One that was made with certificates that are not in force any more serves until there is another.
- One whose endpoint is not in the view any more is left as soon as that is so; one that has been idle, or has
  lived, for too long when it has, also in a process that calls nobody: `looks_at` says when somebody is to
  `look`. One that is worn is left by the next call. What is left is closed when its last call has ended.
- Where one is made, at most `most_idle` idle ones stay; those used longest ago go.
"""

import math
import threading
from collections.abc import Callable, Iterable
from typing import Any, Generic, NamedTuple, TypeVar

import grpc

from meshlib.core.actions import Attempt
from meshlib.core.mtls import ClientTls
from meshlib.core.request import Failed
from meshlib.core.view import View
from meshlib.dataplane.http.pools import COPIES, MOST_IDLE, SHORTEST, listed

READY: int = grpc.ChannelConnectivity.READY.value[0]
FAILING: int = grpc.ChannelConnectivity.TRANSIENT_FAILURE.value[0]
"""No connection could be made. It stays so until one is."""
ANOTHER = "CERTIFICATE_VERIFY_FAILED"
"""What gRPC says of a certificate that is not the one that was looked at."""
LOOKS = 3
"""Channels for one try, if its peer has another certificate each time."""
_MOST_STUBS = 1000
C = TypeVar("C")


class Key(NamedTuple):
    """What a channel is for."""

    cluster: str
    address: tuple[str, int]
    authority: str
    tls: ClientTls | None


class Carrier(Generic[C]):
    """A channel and what the pool knows of it."""

    __slots__ = (
        "active",
        "awaits",
        "channel",
        "connected",
        "dies",
        "idle_timeout",
        "key",
        "left",
        "lost",
        "peer",
        "secured",
        "since",
        "stubs",
        "until",
        "uses",
    )

    def __init__(self, channel: C, attempt: Attempt, now: float, secured: object) -> None:
        self.channel = channel
        self.key = key_of(attempt)
        self.active = 0
        self.uses = 0
        self.connected = False
        """Whether it is known that it had a connection."""
        self.lost = False
        """Whether it is known that it has none any more."""
        self.left = False
        self.secured = secured
        """By what TLS was made; None: plain text."""
        self.peer: object = None
        """Who is at its other end; None: it was not made by who looked."""
        self.awaits: object = None
        """By what TLS the one is made that comes in its place; None: none is."""
        self.stubs: dict[tuple[str, str], Any] = {}
        """What calls a method on it, by kind and path."""
        self.idle_timeout = attempt.upstream.idle_timeout
        self.since = now
        """When it was used last."""
        self.until = now + self.idle_timeout
        self.dies = now + attempt.upstream.max_connection_duration

    def again(self, failed: Failed) -> bool:
        """Whether who found no connection is to try once more, on a new channel: its peer was looked at, and
        has another certificate by now, for which gRPC does not take it.
        """
        return not failed.connected and self.secured is not None and ANOTHER in failed.detail

    def stub(self, kind: str, path: str) -> Any:
        """What calls that method, with messages as bytes."""
        found = self.stubs.get((kind, path))
        if found is None:
            if len(self.stubs) >= _MOST_STUBS:
                self.stubs.clear()
            found = self.stubs[kind, path] = getattr(self.channel, kind)(path)
        return found


def key_of(attempt: Attempt) -> Key:
    """What a channel for the attempt is for."""
    return Key(attempt.cluster, attempt.address, attempt.head.authority, attempt.tls)


class Pool(Generic[C]):
    """Thread-safe."""

    def __init__(
        self,
        clock: Callable[[], float],
        view: Callable[[], View],
        close: Callable[[C], None],
        expect: Callable[[float], None],
        most_idle: int = MOST_IDLE,
        *,
        state: Callable[[C], int],
    ) -> None:
        """`view` is what is known now; `close` closes a channel; `expect` has somebody look after so many
        seconds, and is called under the lock; `state` is that of a channel, a number of gRPC's.
        """
        self._state = state
        self._clock = clock
        self._view = view
        self._close = close
        self._expect = expect
        self._most_idle = most_idle
        self._open: dict[Key, Carrier[C]] = {}
        self._leaving: set[Carrier[C]] = set()
        """Those that were left with calls on them."""
        self._lock = threading.Lock()
        self._closed = False
        self._ended = False
        """Whether calls end, too."""
        self.looks_at = math.inf
        """When somebody will look."""

    def __repr__(self) -> str:
        return f"<Pool: {len(self._open)} channels>"

    def __len__(self) -> int:
        return len(self._open)

    def find(self, attempt: Attempt, now: float) -> Carrier[C] | None:
        """The channel for the attempt, which counts as in use; None: there is none (any more)."""
        # As `Key`, which takes longer to make, and is equal to it.
        key: Any = (attempt.cluster, attempt.address, attempt.head.authority, attempt.tls)
        with self._lock:
            found = self._open.get(key)
            if found is None:
                return None
            if (not found.active and now > found.until) or now >= found.dies or self._is_lost(found):
                closing = self._leave(found)
            else:
                found.active += 1
                found.uses += 1
                if 0 < attempt.upstream.max_requests_per_connection <= found.uses:
                    self._leave(found)
                return found
        if closing:
            self._close(found.channel)
        return None

    def _is_lost(self, carrier: Carrier[C]) -> bool:
        """Whether it has no connection and does not make its first one."""
        if not carrier.lost:
            state = self._state(carrier.channel)
            if state == READY:
                carrier.connected = True
            elif state == FAILING or carrier.connected:
                carrier.lost = True
        return carrier.lost

    def peer_of(self, attempt: Attempt, secured: object) -> object:
        """Who is at the other end of the channel for the attempt, if it was made by this TLS."""
        with self._lock:
            found = self._open.get(key_of(attempt))
            there = found is not None and found.secured is secured and not self._is_lost(found)
            return found.peer if there and found is not None else None

    def is_lost(self, carrier: Carrier[C]) -> bool:
        """Whether it has no connection any more."""
        carrier.lost = carrier.lost or self._state(carrier.channel) != READY
        return carrier.lost

    def is_failing(self, carrier: Carrier[C]) -> bool:
        """Whether no connection could be made."""
        return self._state(carrier.channel) == FAILING

    def add(
        self, attempt: Attempt, channel: C, secured: object, *, idle: bool = False, peer: object = None
    ) -> Carrier[C]:
        """A channel that was made for the attempt, or the one that somebody else made meanwhile. It counts as
        in use, unless it is to be `idle`. `peer` is who is at its other end.
        """
        made = Carrier(channel, attempt, self._clock(), secured)
        made.peer = peer
        closing: list[C] = []
        with self._lock:
            found = self._open.get(made.key)
            if found is not None and found.secured is secured and not self._is_lost(found):
                closing.append(channel)
                made = found
            else:
                if found is not None and self._leave(found):
                    closing.append(found.channel)
                if self._closed or not _is_listed(self._view(), made.key):
                    made.left = True
                else:
                    self._open[made.key] = made
                    self._soon(made.dies)
            if idle:
                if made.left:
                    closing.append(channel)
                else:
                    self._soon(made.until)
            else:
                made.active += 1
                made.uses += 1
                if made.left:
                    self._leaving.add(made)
                    if self._ended:
                        closing.append(made.channel)
                if 0 < attempt.upstream.max_requests_per_connection <= made.uses:
                    self._leave(made)
            others = [one for one in self._open.values() if not one.active and one is not made]
            if len(others) > self._most_idle:
                others.sort(key=lambda one: one.since)
                closing += [one.channel for one in others[: -self._most_idle or None] if self._leave(one)]
        for one in closing:
            self._close(one)
        return made

    def leave(self, carrier: Carrier[C]) -> None:
        """Nobody is to use it from now on."""
        with self._lock:
            closing = not carrier.left and self._leave(carrier)
        if closing:
            self._close(carrier.channel)

    def release(self, carrier: Carrier[C], *, broken: bool = False) -> None:
        """A call on it has ended; `broken`: there is no connection."""
        with self._lock:
            carrier.active -= 1
            if broken:
                self._leave(carrier)
            closing = carrier.left and not carrier.active
            if closing:
                self._leaving.discard(carrier)
            if not carrier.active:
                carrier.since = self._clock()
                carrier.until = carrier.since + carrier.idle_timeout
                if not carrier.left and carrier.until < self.looks_at:
                    self._soon(carrier.until)
        if closing:
            self._close(carrier.channel)

    def _leave(self, carrier: Carrier[C]) -> bool:
        """Under the lock. Whether it is to be closed now."""
        if not carrier.left:
            carrier.left = True
            if self._open.get(carrier.key) is carrier:
                del self._open[carrier.key]
            if carrier.active:
                self._leaving.add(carrier)
        return not carrier.active

    def _soon(self, due: float) -> None:
        """Somebody is to look then, at the latest. Under the lock."""
        if due < self.looks_at:
            self.looks_at = due
            self._expect(max(SHORTEST, due - self._clock()))

    def look(self) -> None:
        """Leaves those whose time is over, and has somebody look when that is so of others."""
        now = self._clock()
        with self._lock:
            self.looks_at = math.inf
            gone, due = [], math.inf
            for carrier in list(self._open.values()):
                ends = carrier.dies if carrier.active else min(carrier.dies, carrier.until)
                if ends > now:
                    due = min(due, ends)
                elif self._leave(carrier):
                    gone.append(carrier.channel)
            self._soon(due)
        for channel in gone:
            self._close(channel)

    def keep_to(self, view: View, clusters: Iterable[str]) -> None:
        """These clusters have other endpoints now."""
        names = {*clusters}
        with self._lock:
            gone = [
                carrier.channel
                for carrier in list(self._open.values())
                if carrier.key.cluster.removeprefix(COPIES) in names
                and not _is_listed(view, carrier.key)
                and self._leave(carrier)
            ]
        for channel in gone:
            self._close(channel)

    def close(self, *, now: bool = False) -> None:
        """Closes what is idle now, and the rest when its last call ends; or all of it `now`, which ends the
        calls on it.
        """
        with self._lock:
            self._closed = True
            self._ended = self._ended or now
            closing = [one.channel for one in list(self._open.values()) if self._leave(one)]
            if now:
                closing += [one.channel for one in self._leaving]
        for channel in closing:
            self._close(channel)


def _is_listed(view: View, key: Key) -> bool:
    """Whether the view has the endpoint of a channel."""
    cluster = key.cluster.removeprefix(COPIES)
    found = listed(view, (cluster,))[cluster]
    return found is None or key.address in found
