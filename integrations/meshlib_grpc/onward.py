"""Calls that go on over a channel of the application's own: what interceptors for threads and tasks share.

The same flow decides as for `channel(…)`, but where a try goes is not its business: each goes on over the
application's channel. Rules:

- Every cluster has one endpoint, which is that channel, and never an ejection: nothing that happens on it is
  held against an endpoint of the mesh. What is learned here (requests in flight, retries) is kept apart, too.
- Messages are the application's objects; what is counted is their size, as far as they tell it.
- No mirrors: a copy would need a channel of its own.
"""

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

from meshlib.core.actions import Attempt, Flow
from meshlib.core.balance.cluster import Cluster, Policy, Resolution
from meshlib.core.balance.endpoints import Endpoint, EndpointSet, LocalityEndpoints
from meshlib.core.ledger import Ledger
from meshlib.core.request import Failed, Header
from meshlib.core.view import View
from meshlib.dataplane.body import RequestBody
from meshlib.dataplane.http.failures import overflowing
from meshlib.dataplane.mesh import Mesh
from meshlib_grpc.asked import Asked, Target
from meshlib_grpc.metadata import Metadata, to_metadata
from meshlib_grpc.outcome import timeout_of, too_late

_CHANNEL = EndpointSet((LocalityEndpoints("", 0, 1, (Endpoint("channel", 0),)),))


class Opaque(bytes):
    """A message that is not bytes yet, or no more: for what handles bytes, as long as they are."""

    message: Any
    _size: int

    @classmethod
    def of(cls, message: Any) -> "Opaque":
        """That message."""
        made = cls()
        made.message = message
        if isinstance(message, bytes):
            made._size = len(message)
        elif hasattr(message, "ByteSize"):  # protobuf's
            made._size = message.ByteSize()
        else:
            made._size = sys.getsizeof(message)
        return made

    def __len__(self) -> int:
        return self._size


def message_of(opaque: Any) -> Any:
    """The message itself."""
    return opaque.message


class Details(NamedTuple):
    """What a `continuation` is told of the call: a `grpc.ClientCallDetails`, of both kinds."""

    method: Any
    timeout: float | None
    metadata: Any
    credentials: Any
    wait_for_ready: bool | None
    compression: Any


class Onward(NamedTuple):
    """How a call goes on, and what the application said of it; stands where `Wishes` does."""

    continuation: Callable[[Any, Any], Any]
    details: Any
    single: bool
    """Whether it has one response."""
    metadata: Callable[[Metadata], Any] = tuple

    def told(self, attempt: Attempt, left: float | None) -> Details:
        """The details for a try."""
        head, before = attempt.head, self.details
        method: Any = before.method
        if path_of(before) != head.path:
            method = head.path.encode() if isinstance(method, bytes) else head.path
        return Details(
            method,
            left,
            self.metadata(to_metadata(head.headers)),
            before.credentials,
            before.wait_for_ready,
            getattr(before, "compression", None),
        )


def refused(attempt: Attempt, now: float) -> Failed | None:
    """Why a try may not be made; None: it may."""
    queue = attempt.queue
    if queue is not None and not queue.goes_on(attempt.upstream.limits):
        return overflowing()
    left = timeout_of(attempt, now)
    return too_late(attempt, now) if left is not None and left <= 0 else None


def path_of(details: Any) -> str:
    """The path of the call's method."""
    method = details.method
    return method.decode() if isinstance(method, bytes) else str(method)


class Alone:
    """Views without endpoints and what they would teach. Thread-safe."""

    def __init__(self) -> None:
        self.ledger = Ledger()
        self._last: tuple[View, View] | None = None

    def view(self, view: View) -> View:
        """That view, whose clusters have one endpoint each."""
        last = self._last
        if last is None or last[0] is not view:
            clusters = {name: _alone(cluster) for name, cluster in view.clusters.items()}
            last = self._last = (view, replace(view, clusters=clusters))
        return last[1]


def _alone(cluster: Cluster) -> Cluster:
    return replace(
        cluster,
        policy=Policy.ROUND_ROBIN,
        resolution=Resolution.ENDPOINTS,
        outlier=None,
        warmup=None,
        hash_table=None,
        inline=_CHANNEL,
        named=None,
        transports=(),
        tls=None,
    )


class AloneTarget(Target):
    """Whom the calls of an application's own channel are for."""

    alone: Alone

    def _asked(self, path: str, headers: list[Header], body: RequestBody, timeout: float | None) -> Asked:
        made = _Asked(self, path, headers, body, timeout)
        made.alone = self.alone
        return made


def target_for(text: str) -> AloneTarget:
    """Of `host:port`. ValueError."""
    made = AloneTarget.parse(text)
    assert isinstance(made, AloneTarget)  # noqa: S101 - as it was called
    made.alone = Alone()
    return made


class _Asked(Asked):
    __slots__ = ("alone",)

    alone: Alone

    def flow(self, mesh: Mesh, view: View, ledger: Ledger | None = None) -> Flow:
        return super().flow(mesh, self.alone.view(view), self.alone.ledger)
