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
    """How long connecting may take, whoever waits for it."""


class Channels(Generic[C]):
    """The way to the pool."""

    def __init__(
        self,
        pool: Pool[C],
        clock: Callable[[], float],
        contexts: MakeContexts,
        renew: Callable[[Attempt, Carrier[C], Wanted], None],
    ) -> None:
        """`renew` makes a channel in the background in place of one that was made by other certificates."""
        self._renew = renew
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
        longest = attempt.upstream.connect_timeout
        found = self._pool.find(attempt, now)
        if found is not None:
            if found.secured is not secured and found.awaits is not secured:
                found.awaits = secured
                self._renew(attempt, found, Wanted(secured, contexts, longest))
            return found
        if attempt.upstream.proxy_protocol:
            detail = "gRPC's library can't begin a connection with a PROXY header"
            return Failed(Failure.CONNECT_FAILED, detail, connected=False)
        left = timeout_of(attempt, now)
        if left is not None and left <= 0:
            return too_late(attempt, now)
        return Wanted(secured, contexts, longest)
