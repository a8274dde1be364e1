"""Circuit breaking: how many requests and retries a cluster may have in flight.

Rules (Envoy, ResourceManager): a request holds its slot from its try until the response's body
ended; a request that was tried again holds one retry slot until it is over. Connections and waiting
requests are limited by the pool, which is told the numbers with each attempt.
"""

from types import TracebackType

from meshlib.core.balance.cluster import Limits
from meshlib.core.ledger import ClusterState, HostState


def allows_request(limits: Limits, state: ClusterState) -> bool:
    """Whether one more request may be in flight."""
    return state.active < limits.max_requests


class Slots:
    """What one request holds at a cluster. Nothing is counted until `begin` and `take_retry`, and all is
    given back once at the end of `with`.
    """

    __slots__ = ("_cluster", "_host", "_retries")

    def __init__(self, cluster: ClusterState) -> None:
        self._cluster = cluster
        self._host: HostState | None = None
        self._retries = False

    def begin(self, host: HostState) -> None:
        """A try is in flight, to that endpoint. To be called when none is."""
        self._host = host
        self._cluster.active += 1
        host.active += 1

    def end(self) -> None:
        """The try in flight is over."""
        if self._host is not None:
            self._cluster.active -= 1
            self._host.active -= 1
            self._host = None

    def take_retry(self, limits: Limits) -> bool:
        """Takes the retry slot if there is one; the one held from before is given back first."""
        self._end_retries()
        if self._cluster.retries >= limits.max_retries:
            return False
        self._cluster.retries += 1
        self._retries = True
        return True

    def _end_retries(self) -> None:
        if self._retries:
            self._retries = False
            self._cluster.retries -= 1

    def __enter__(self) -> "Slots":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()
        self._end_retries()
