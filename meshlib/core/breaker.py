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


def allows_retry(limits: Limits, state: ClusterState) -> bool:
    """Whether one more request may be in its retries."""
    return state.retries < limits.max_retries


class RequestSlot:
    """One try in flight: counted at the cluster and the endpoint while inside `with`."""

    __slots__ = ("_cluster", "_host")

    def __init__(self, cluster: ClusterState, host: HostState) -> None:
        self._cluster = cluster
        self._host = host

    def __enter__(self) -> None:
        self._cluster.active += 1
        self._host.active += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._cluster.active -= 1
        self._host.active -= 1


class RetrySlot:
    """The retries of one request: nothing is counted until `take`, and it is given back once at the end."""

    __slots__ = ("_cluster", "_taken")

    def __init__(self, cluster: ClusterState) -> None:
        self._cluster = cluster
        self._taken = False

    def take(self, limits: Limits) -> bool:
        """Takes the slot if there is one; the one held from before is given back first"""
        if self._taken:
            self._cluster.retries -= 1
            self._taken = False
        if not allows_retry(limits, self._cluster):
            return False
        self._cluster.retries += 1
        self._taken = True
        return True

    def __enter__(self) -> "RetrySlot":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._taken:
            self._taken = False
            self._cluster.retries -= 1
