"""What the control service is asked for, and what is done with what it says.

Rules:

- Nothing starts before the first `want`; nothing is left after `close`.
- Delta ADS over `grpc_stream.KeptStream`. A lost stream is opened again for ever, after 0.1 s growing
  to 5 s, with jitter; what is held stays in force meanwhile and is not sent again, but for listeners:
  they are small, and so each stream begins with an answer, which says that control lives and how new it is.
- No older configuration after a newer one. A response's `system_version_info` is the snapshot's
  `<start, ms>.<count>`; one below the newest that was heard is of an older life of the control
  service (or of a replica that lags): it is not applied, and the stream is opened again. After
  `STALE_PATIENCE` seconds of nothing else the older service is taken for the only one, with a warning:
  a clock that was set back must not lock a client out. What was read from disk does not count as heard.
- A target that nobody called for `idle_targets` seconds is unsubscribed; `targets.py` says who goes and who
  waits where there are more than `max_targets`.
- A message costs what it brings: what it did not touch is not subscribed, published, saved or told again.
- While the control service can't be reached, what it said last is read from disk (`cache.py`).
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from google.protobuf.message import DecodeError

from meshlib.bootstrap import Bootstrap
from meshlib.dataplane import fork
from meshlib.dataplane.cache import Cache
from meshlib.dataplane.grpc_stream import Kept, KeptStream
from meshlib.dataplane.targets import Targets
from meshlib.dataplane.views import KINDS, Views
from meshlib.errors import ControlError
from meshlib.xds import pb
from meshlib.xds.client_stream import ClientStream, ProtocolError, Update
from meshlib.xds.kinds import Kind

log = logging.getLogger(__name__)

STALE_PATIENCE = 30.0
FIRST_BACKOFF, LONGEST_BACKOFF = 0.1, 5.0


def backoff(attempt: int) -> float:
    """Seconds before connection attempt number `attempt` (1 for the first retry): full jitter."""
    with fork.calm:  # so that no child is left with half of it
        import tenacity  # which takes long to load

    state = tenacity.RetryCallState(None, None, (), {})  # type: ignore[arg-type]
    state.attempt_number = attempt
    return FIRST_BACKOFF / 2 + tenacity.wait_random_exponential(FIRST_BACKOFF, LONGEST_BACKOFF)(state)


def order(version: str) -> tuple[int, int]:
    """`<start, ms>.<count>` as numbers that compare; (0, 0) for anything else."""
    start, _, count = version.partition(".")
    numeric = start.isascii() and start.isdecimal() and count.isascii() and count.isdecimal()
    return (int(start), int(count)) if numeric and len(version) < 40 else (0, 0)


class StaleError(ControlError):
    """A response of an older configuration than the one in force."""


class Ads:
    """A subscription by name over a stream that is kept open. Thread-safe; what a `grpc_stream.Talk` is."""

    def __init__(
        self,
        bootstrap: Bootstrap,
        node: Any,
        views: Views,
        cache: Cache | None,
        *,
        changed: Callable[[Iterable[str] | None], None],
        clock: Callable[[], float] = time.monotonic,
        keep: Callable[[str, str, str, "Ads"], Kept] = KeptStream,
    ) -> None:
        """`changed` is called with the targets of which something is known now, None: of any; after each
        update and each loss of the connection, on the stream's thread; with those whose turn came, on any.

        `node` is the Node message that opens each stream.
        """
        self._bootstrap = bootstrap
        self._views = views
        self._cache = cache
        self._changed = changed
        self._clock = clock
        self._lock = threading.RLock()
        self._stream = ClientStream(node, delta=True)
        self._kept = keep("meshlib-ads", bootstrap.control, pb.DELTA_ADS, self)
        self._targets = Targets(bootstrap, clock())
        self._closed = False
        self._newest = (0, 0)
        self._stale_since: float | None = None
        self.connected = False
        """Whether the control service answered on the stream that is open now."""
        self.since: float | None = None
        """When `connected` changed last, on `clock`."""
        self.failure = ""
        """Why there is no connection; empty if there is one, or none was tried."""
        self.attempts = 0
        """How often connecting failed since the last success."""
        self.from_disk: set[str] = set()
        """Targets that are served from disk until the control service is heard."""

    def want(self, name: str) -> None:
        """Somebody waits for a target, until `done`: it is asked for when there is room. Starts all."""
        with self._lock:
            if self._closed:
                return
            self._turn(*self._targets.wait(name, self._clock()))
            self._kept.start()

    def done(self, name: str) -> None:
        """Somebody who waited for a target has what is known of it, or gave up."""
        with self._lock:
            if self._closed:
                return
            gone, come = self._targets.leave(name, self._clock())
            self._turn(gone, come)
        if come:
            self._changed(come)

    def touch(self, name: str) -> None:
        """A target was used now."""
        self._targets.touch(name, self._clock())

    def load(self, name: str) -> bool:
        """Puts a target's last good configuration from disk in force, unless control has been heard."""
        with self._lock:
            if (
                self.connected
                or self._cache is None
                or name in self._views.targets
                or not self._views.wants(name)
            ):
                return name in self._views.targets
            kept = self._cache.load(name)
            if kept is None:
                return False
            heard_later = order(kept.version) < self._newest
            for kind in KINDS:
                known = set(self._views.held(kind))
                if heard_later:
                    known |= self._views.absent(kind)
                fresh = {r.name: r for r in kept.resources if r.kind is kind and r.name not in known}
                absent = {n for of_kind, n in kept.absent if of_kind is kind and n not in known}
                version = kept.decided if kind in (Kind.LISTENER, Kind.ROUTES) else kept.version
                refused = self._views.apply(kind, version, fresh, absent)
                self._stream.hold(kind, {n: r.version for n, r in fresh.items() if n not in refused})
            self._views.touched()  # it is on disk
            if name in self._views.targets:
                self.from_disk.add(name)
            self._subscribe()
            return name in self._views.targets

    def resolved(self, clusters: Iterable[str]) -> None:
        """The names of these clusters stand for something else now."""
        with self._lock:
            if self._closed:
                return
            self._views.resolved(clusters)
            self._subscribe()
            self._save(self._views.touched())
        self._changed(None)

    def lacking(self, name: str) -> str:
        """Why `load` can't put a target in force, as half a sentence."""
        with self._lock:
            if self._cache is None:
                return "no last good configuration is kept: MESHLIB_STATE_DIR names no folder"
            lacks = ", ".join(sorted(self._views.missing(name)))
            folder = self._bootstrap.state_dir
            return self._cache.why_not(name) or f"the last good configuration in {folder} lacks {lacks}"

    def close(self) -> None:
        """Ends the stream and its thread."""
        self._closed = True
        self._kept.close()

    # The talk, on the stream's thread

    def opened(self) -> None:
        """A new stream begins: everything is said again."""
        with self._lock:
            self._stream.reset()

    def ask(self) -> Iterable[bytes]:
        """What there is to say now."""
        with self._lock:
            self._forget(self._targets.idle(self._clock()))
            messages = self._stream.to_send()
        for message in messages:
            if message.type_url == Kind.LISTENER.type_url:
                message.initial_resource_versions.clear()
        return [message.SerializeToString() for message in messages]

    def pause(self) -> float:
        """Seconds until idle targets are looked for again."""
        return self._targets.pause

    def take(self, message: bytes) -> None:
        """Applies a response. ProtocolError, StaleError: it is none that can be applied."""
        try:
            response = pb.DeltaDiscoveryResponse.FromString(message)
        except DecodeError:
            raise ProtocolError("a message that can't be decoded") from None
        with self._lock:
            if self._closed:
                return
            update = self._stream.received(response)
            self._refuse_older(update)
            refused = self._views.apply(update.kind, update.version, update.resources, update.removed)
            self._stream.nack(update, refused)
            self._taken(update, refused)
            for name, reason in {**update.broken, **refused}.items():
                log.error(
                    "refused %s %s of configuration %s: %s", update.kind.short, name, update.version, reason
                )
            was_connected = self.connected
            if not was_connected:
                self.connected, self.since, self.failure, self.attempts = True, self._clock(), "", 0
                log.info("connected to the control service %s", self._bootstrap.control)
            self.from_disk.clear()
            self._subscribe()
            touched = self._views.touched()
            self._save(touched)
        self._changed(touched if was_connected else None)

    def ended(self, why: str) -> float:
        """The stream is over. Gives the seconds to wait before the next."""
        why = why or "the control service ended the stream"
        with self._lock:
            if self._closed:
                why = ""
            elif self.connected:
                log.warning("lost the control service %s: %s", self._bootstrap.control, why)
                self.since = self._clock()
                self.attempts = 0
            elif self.attempts == 0:
                log.warning("can't reach the control service %s: %s", self._bootstrap.control, why)
            self.connected, self.failure = False, why
            self.attempts += 1
            self._forget(self._targets.idle(self._clock()))
        self._changed(None)
        return 0.0 if self._closed else backoff(self.attempts)

    def _refuse_older(self, update: Update) -> None:
        """StaleError: the update is older than what is in force, and patience has not run out."""
        version, now = order(update.version), self._clock()
        if version == (0, 0):
            return
        if version < self._newest:
            if self._stale_since is None:
                self._stale_since = now
            if now - self._stale_since < STALE_PATIENCE:
                raise StaleError(f"it offers configuration {update.version}, older than the one in force")
            log.warning("taking the older configuration %s: there is no other", update.version)
        self._stale_since = None

    def _taken(self, update: Update, refused: Mapping[str, str]) -> None:
        """What was applied is the newest. A service of which nothing can be used locks out no other."""
        version = order(update.version)
        if version != (0, 0) and (update.removed or update.resources.keys() - refused.keys()):
            self._newest = version

    # Under the lock

    def _subscribe(self) -> None:
        """Brings the subscriptions to what the views need."""
        said = False
        for kind, (more, less) in self._views.turned().items():
            self._stream.subscribe(kind, more)
            self._stream.unsubscribe(kind, less)
            said = said or bool(more or less)
        if said:
            self._kept.wake()

    def _turn(self, gone: list[str], come: list[str]) -> None:
        self._views.want(come)
        self._forget(gone)
        self._subscribe()

    def _forget(self, names: list[str]) -> None:
        if names:
            self.from_disk.difference_update(names)
            self._views.forget(names)
            self._subscribe()
            if self._cache is not None:
                self._cache.forget(names)

    def _save(self, names: Iterable[str]) -> None:
        if self._cache is not None:
            kept = ((name, self._views.kept(name)) for name in sorted(names))
            self._cache.save({name: one for name, one in kept if one is not None})

    # Fork

    def before_fork(self) -> None:
        """Nothing changes during a fork."""
        self._lock.acquire()

    def after_fork_in_parent(self) -> None:
        """Goes on."""
        self._lock.release()

    def after_fork_in_child(self, node: Any) -> None:
        """What is known and used stays; the stream, opened by this node, starts at the next `want`."""
        self._lock = threading.RLock()
        self._kept.after_fork_in_child()
        self._stream = ClientStream(node, delta=True)
        self._targets.alone()
        self._views.turned()
        for kind, names in self._views.needs().items():
            self._stream.hold(kind, self._views.held(kind))
            self._stream.subscribe(kind, sorted(names))
        self.connected, self.since, self.failure, self.attempts = False, None, "", 0


def decoders() -> Mapping[Kind, Callable[[Any], Any]]:
    """The decoder of each kind, loaded at first use."""
    from meshlib.dataplane.decode.clusters import decode_cluster
    from meshlib.dataplane.decode.endpoints import decode_endpoints
    from meshlib.dataplane.decode.listeners import listener_value
    from meshlib.dataplane.decode.mtls import decode_roots
    from meshlib.dataplane.decode.routes import decode_routes

    return {
        Kind.LISTENER: listener_value,
        Kind.ROUTES: decode_routes,
        Kind.CLUSTER: decode_cluster,
        Kind.ENDPOINTS: decode_endpoints,
        Kind.SECRET: decode_roots,
    }
