"""The stream to the control service: one daemon thread that keeps it open, asks, and applies what comes.

Rules:

- Nothing starts before the first `want`; nothing is left after `close`.
- Delta ADS. A lost stream is opened again for ever, after 0.1 s growing to 5 s, with jitter; what is
  held stays in force meanwhile and is not sent again.
- No older configuration after a newer one. A response's `system_version_info` is the snapshot's
  `<start, ms>.<count>`; one below the newest that was applied is of an older life of the control
  service (or of a replica that lags): it is not applied, and the stream is opened again. After
  `STALE_PATIENCE` seconds of nothing else the older service is taken for the only one, with a warning:
  a clock that was set back must not lock a client out.
- A target that nobody called for `idle_targets` seconds is unsubscribed, and the one unused for
  longest when there are more than `max_targets`.
- While the control service can't be reached, what it said last is read from disk (`cache.py`).
"""

import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from meshlib.bootstrap import Bootstrap
from meshlib.dataplane import fork
from meshlib.dataplane.cache import Cache
from meshlib.dataplane.views import Views
from meshlib.errors import ControlError
from meshlib.xds import pb
from meshlib.xds.client_stream import ClientStream, ProtocolError, Update
from meshlib.xds.kinds import SENDING_ORDER, Kind

log = logging.getLogger(__name__)

STALE_PATIENCE = 30.0
SWEEP_SECONDS = 60.0
FIRST_BACKOFF, LONGEST_BACKOFF = 0.1, 5.0
CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", 512 * 1024 * 1024),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.enable_retries", 0),
    # Reconnecting is this module's own: the channel must not wait on top of it.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 5_000),
    # Two Mesh objects of one process must not share one connection: closing one would hurt the other.
    ("grpc.use_local_subchannel_pool", 1),
)


def open_channel(address: str) -> Any:
    """A plaintext grpc.Channel to the control service.

    Sets GRPC_ENABLE_FORK_SUPPORT if it is not set: gRPC reads it when it is imported.
    """
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "1")
    import grpc

    channel = grpc.insecure_channel(address, options=CHANNEL_OPTIONS)
    fork.arm()
    return channel


def backoff(attempt: int) -> float:
    """Seconds before connection attempt number `attempt` (1 for the first retry): full jitter."""
    import tenacity

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
    """A subscription by name over a stream that is kept open. Thread-safe."""

    def __init__(
        self,
        bootstrap: Bootstrap,
        node: Any,
        views: Views,
        cache: Cache | None,
        *,
        changed: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`changed` is called after each update and each loss of the connection, on the stream's thread.

        `node` is the Node message that opens each stream.
        """
        self._bootstrap = bootstrap
        self._views = views
        self._cache = cache
        self._changed = changed
        self._clock = clock
        self._lock = threading.RLock()
        self._stream = ClientStream(node, delta=True)
        self._used: dict[str, float] = {}
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()
        self._requests: queue.SimpleQueue[Any] | None = None
        self._call: Any = None
        self._newest = (0, 0)
        self._stale_since: float | None = None
        self._swept = clock()
        self._unsaved: set[str] = set()
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
        """Subscribes a target, and starts the stream at the first call."""
        with self._lock:
            if self._closing.is_set():
                return
            if name not in self._used:
                self._used[name] = self._clock()
                self._views.want((name,))
                self._limit()
                self._ask()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="meshlib-ads", daemon=True)
                self._thread.start()

    def touch(self, name: str) -> None:
        """A target was used now."""
        self._used[name] = self._clock()

    def load(self, name: str) -> bool:
        """Puts a target's last good configuration from disk in force, unless control has been heard."""
        with self._lock:
            if self.connected or self._cache is None or name in self._views.targets:
                return name in self._views.targets
            found = self._cache.load(name)
            if found is None:
                return False
            version, resources = found
            for kind in (Kind.LISTENER, Kind.ROUTES, Kind.CLUSTER, Kind.ENDPOINTS):
                of_kind = {r.name: r for r in resources if r.kind is kind}
                known = self._views.held(kind)
                fresh = {n: r for n, r in of_kind.items() if n not in known}
                refused = self._views.apply(kind, version, fresh)
                self._stream.hold(kind, {n: r.version for n, r in fresh.items() if n not in refused})
            if name in self._views.targets:
                self.from_disk.add(name)
            self._newest = max(self._newest, order(version))
            self._ask()
            return name in self._views.targets

    def close(self) -> None:
        """Ends the stream and its thread, and writes what is not on disk yet."""
        self._closing.set()
        with self._lock:
            self._hang_up()
            thread, self._thread = self._thread, None
        if thread is not None and thread is not threading.current_thread():
            thread.join(5.0)
        with self._lock:
            self._save()

    @property
    def memory(self) -> tuple[dict[str, float], tuple[int, int]]:
        """When each target was used, and the newest configuration's place in order."""
        return dict(self._used), self._newest

    def resume(self, former: Any, start: bool) -> None:
        """Goes on where `former`, which was closed (before a fork), stopped."""
        self._used, self._newest = former.memory
        self.from_disk = set(former.from_disk)
        for kind in (Kind.LISTENER, Kind.ROUTES, Kind.CLUSTER, Kind.ENDPOINTS):
            self._stream.hold(kind, self._views.held(kind))
        for name in list(self._used)[:1] if start else ():
            self.want(name)

    # On the thread

    def _run(self) -> None:
        channel = open_channel(self._bootstrap.control)
        try:
            while not self._closing.is_set():
                self._one_stream(channel)
                with self._lock:
                    self._save()
                self._changed()
                self._closing.wait(backoff(max(1, self.attempts)))
        finally:
            channel.close()

    def _one_stream(self, channel: Any) -> None:
        import grpc

        with self._lock:
            self._stream.reset()
            self._requests = queue.SimpleQueue()
            open_stream = channel.stream_stream(
                pb.DELTA_ADS,
                request_serializer=lambda message: message.SerializeToString(),
                response_deserializer=pb.DeltaDiscoveryResponse.FromString,
            )
            self._call = open_stream(_until_none(self._requests))
            self._ask()
        why = "the control service ended the stream"
        try:
            for response in self._call:
                self._take(response)
                if self._closing.is_set():
                    break
        except grpc.RpcError as error:
            why = f"{error.code().name}: {error.details()}"
        except (ProtocolError, StaleError) as error:
            why = str(error)
        with self._lock:
            self._hang_up()
            if self._closing.is_set():
                why = ""
            elif self.connected:
                log.warning("lost the control service %s: %s", self._bootstrap.control, why)
                self.since = self._clock()
                self.attempts = 0
            elif self.attempts == 0:
                log.warning("can't reach the control service %s: %s", self._bootstrap.control, why)
            self.connected, self.failure = False, why
            self.attempts += 1

    def _take(self, response: Any) -> None:
        with self._lock:
            if self._closing.is_set():
                return
            update = self._stream.received(response)
            self._refuse_older(update)
            refused = self._views.apply(update.kind, update.version, update.resources, update.removed)
            self._stream.nack(update, refused)
            for name, reason in {**update.broken, **refused}.items():
                log.error(
                    "refused %s %s of configuration %s: %s", update.kind.short, name, update.version, reason
                )
            if not self.connected:
                self.connected, self.since, self.failure, self.attempts = True, self._clock(), "", 0
                log.info("connected to the control service %s", self._bootstrap.control)
            self.from_disk.clear()
            self._unsaved.update(self._views.view.tables)
            self._sweep()
            self._ask()
            if not self._views.waiting:
                self._save()
        self._changed()

    def _refuse_older(self, update: Update) -> None:
        """StaleError: the update is older than what is in force, and patience has not run out."""
        version, now = order(update.version), self._clock()
        if version == (0, 0) or version >= self._newest:
            self._stale_since = None
        elif self._stale_since is None or now - self._stale_since < STALE_PATIENCE:
            self._stale_since = self._stale_since or now
            raise StaleError(f"it offers configuration {update.version}, older than the one in force")
        else:
            log.warning("taking the older configuration %s: there is no other", update.version)
        self._newest = version if version != (0, 0) else self._newest

    # Under the lock

    def _ask(self) -> None:
        """Brings the subscriptions to what the views need, and sends what there is to say."""
        for kind, names in self._views.needs().items():
            held = self._stream.names(kind)
            if kind in SENDING_ORDER and held != names:
                self._stream.subscribe(kind, sorted(names - held))
                self._stream.unsubscribe(kind, sorted(held - names))
        if self._requests is not None:
            for message in self._stream.to_send():
                self._requests.put(message)

    def _limit(self) -> None:
        if len(self._used) > self._bootstrap.max_targets:
            oldest = sorted(self._used, key=self._used.__getitem__)
            self._forget(oldest[: len(self._used) - self._bootstrap.max_targets])

    def _sweep(self) -> None:
        """Forgets idle targets, once in a while."""
        now = self._clock()
        if now - self._swept >= min(SWEEP_SECONDS, self._bootstrap.idle_targets):
            self._swept = now
            idle = [n for n, used in self._used.items() if now - used >= self._bootstrap.idle_targets]
            self._forget(idle)

    def _forget(self, names: list[str]) -> None:
        for name in names:
            self._used.pop(name, None)
        if names:
            self._views.forget(names)

    def _save(self) -> None:
        if self._cache is not None:
            for name in sorted(self._unsaved & self._views.targets.keys()):
                self._cache.save(name, self._views.view.version, self._views.resources(name))
        self._unsaved.clear()

    def _hang_up(self) -> None:
        if self._requests is not None:
            self._requests.put(None)
            self._requests = None
        if self._call is not None:
            self._call.cancel()
            self._call = None


def _until_none(requests: "queue.SimpleQueue[Any]") -> Iterator[Any]:
    while (message := requests.get()) is not None:
        yield message


def decoders() -> Mapping[Kind, Callable[[Any], Any]]:
    """The decoder of each kind, loaded at first use."""
    from meshlib.dataplane.decode.clusters import decode_cluster
    from meshlib.dataplane.decode.endpoints import decode_endpoints
    from meshlib.dataplane.decode.listeners import decode_listener
    from meshlib.dataplane.decode.routes import decode_routes

    return {
        Kind.LISTENER: lambda message: decode_listener(message).routes,
        Kind.ROUTES: decode_routes,
        Kind.CLUSTER: decode_cluster,
        Kind.ENDPOINTS: decode_endpoints,
    }
