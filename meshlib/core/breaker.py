"""Circuit breaking: how many requests and retries a cluster may have in flight.

Rules (Envoy, ResourceManager): a request holds its slot from the moment that its try has a connection
until the response's body ended; a request that was tried again holds one retry slot until it is over.
Connections, and requests that have none yet, are limited by the pool, which is told the numbers with each
attempt; and tells `Slots` who waits and who goes on.
"""

from collections.abc import Callable
from types import TracebackType

from meshlib.core.balance.cluster import Limits
from meshlib.core.budget import count_try, most_retries, tries_of
from meshlib.core.ledger import ClusterState, HostState


class Slots:
    """What one request holds at a cluster. Nothing is counted until `begin` and `take_retry`, and all is
    given back once at the end of `with`.
    """

    __slots__ = ("_clock", "_cluster", "_host", "_retries", "_waiting")

    def __init__(self, cluster: ClusterState, clock: Callable[[], float]) -> None:
        self._cluster = cluster
        self._clock = clock
        self._host: HostState | None = None
        self._retries = False
        self._waiting = False

    def begin(self, host: HostState) -> None:
        """A try is in flight, to that endpoint. To be called when none is."""
        self._host = host
        self._cluster.active += 1
        host.active += 1

    def end(self) -> None:
        """The try in flight is over."""
        if self._waiting:
            self._end_waiting()
        host = self._host
        if host is not None:
            self._cluster.active -= 1
            host.active -= 1
            self._host = None

    @property
    def waiting(self) -> bool:
        """Whether the try has no connection yet, as far as was told."""
        return self._waiting

    def end_retry(self) -> None:
        """Gives the retry slot back, if it has one."""
        if self._retries:
            self._end_retries()

    def waits(self) -> None:
        """The try has no connection yet."""
        if not self._waiting:
            self._waiting = True
            self._cluster.waiting += 1

    def goes_on(self, limits: Limits) -> bool:
        """The try has a connection; False: too many others have one."""
        if self._waiting:
            self._end_waiting()
        if self._cluster.active - self._cluster.waiting > limits.max_requests:
            return False
        budget = limits.budget
        if budget is not None and budget.interval:
            count_try(budget, self._cluster.tries, self._clock())
        return True

    def _end_waiting(self) -> None:
        self._waiting = False
        self._cluster.waiting -= 1

    def take_retry(self, limits: Limits) -> bool:
        """Takes the retry slot if there is one; the one held from before is given back first."""
        if self._retries:
            self._end_retries()
        if self._cluster.retries >= self._most_retries(limits):
            return False
        self._cluster.retries += 1
        self._retries = True
        return True

    def _most_retries(self, limits: Limits) -> int:
        budget, state = limits.budget, self._cluster
        if budget is None:
            return limits.max_retries
        counted = tries_of(budget, state.tries, self._clock()) if budget.interval else state.active
        return most_retries(budget, counted)

    def _end_retries(self) -> None:
        self._retries = False
        self._cluster.retries -= 1

    def __enter__(self) -> "Slots":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()
        if self._retries:
            self._end_retries()
