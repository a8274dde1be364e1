"""Whether an attempt may be made, and over which channel: what threads and tasks have in common."""

from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

from meshlib.core.actions import Attempt
from meshlib.core.request import Failed, Failure
from meshlib.dataplane.http.failures import closed, overflowing
from meshlib.dataplane.http.secure import MakeContexts, context_for
from meshlib.dataplane.tls import Contexts
from meshlib_grpc.outcome import timeout_of, too_late
from meshlib_grpc.pool import Carrier, Pool

C = TypeVar("C")


class Wanted(NamedTuple):
    """A channel has to be made."""

    secured: object
    """By what TLS is made."""
    contexts: Contexts | None
    seconds: float
    """How long connecting may take."""


class Channels(Generic[C]):
    """The way to the pool."""

    def __init__(self, pool: Pool[C], clock: Callable[[], float], contexts: MakeContexts) -> None:
        self._pool = pool
        self._clock = clock
        self._contexts = contexts
        self.closed = False

    def find(self, attempt: Attempt) -> Carrier[C] | Wanted | Failed:
        """The channel for the attempt, which counts as in use."""
        if self.closed:
            return closed()
        queue, tls = attempt.queue, attempt.tls
        if queue is not None and not queue.goes_on(attempt.upstream.limits):
            return overflowing()
        now = self._clock()
        contexts, secured = None, None
        if tls is not None:
            contexts = self._contexts()
            try:
                secured = context_for(tls, contexts)
            except OSError as error:
                return Failed(Failure.CONNECT_FAILED, f"TLS: {error}", connected=False)
        found = self._pool.find(attempt, now, secured)
        if found is not None:
            return found
        if attempt.upstream.proxy_protocol:
            detail = "gRPC's library can't begin a connection with a PROXY header"
            return Failed(Failure.CONNECT_FAILED, detail, connected=False)
        left, longest = timeout_of(attempt, now), attempt.upstream.connect_timeout
        if left is not None and left <= 0:
            return too_late(attempt, now)
        return Wanted(secured, contexts, longest if left is None else min(left, longest))
