"""What was learned: requests and retries in flight, cursors of the balancer, failures and ejections.

Rules:
* Everything is keyed by name (cluster, then endpoint), so it outlives views; `prune` drops what a
  view no longer names, so memory is bounded by the configuration; of a cluster that lists no endpoints,
  idle ones are forgotten when there are many.
* A request holds the `ClusterState` that it began with: giving a slot back never needs a look-up,
  and what is pruned meanwhile simply goes with its last request.
* For threads there are no locks. Each change is one attribute increment, one dict operation or one
  heap operation, none of which CPython interrupts for another thread. Threads that decide at the
  same moment may pass a limit by one each; no count is ever lost.
"""

from collections.abc import Iterable
from itertools import count
from typing import Any

from meshlib.core.outlier_policy import OutlierPolicy
from meshlib.core.request import Dice
from meshlib.core.view import View

NEVER = float("inf")


class HostState:
    """What is known of one endpoint of one cluster. Most belongs to outlier detection."""

    __slots__ = (
        *("active", "failures_5xx", "failures_gateway", "failures_local"),
        *("requests", "successes", "local_requests", "local_successes"),
        *("ejections", "ejected_until", "returned", "since"),
    )

    def __init__(self) -> None:
        self.active = 0
        self.failures_5xx = 0
        self.failures_gateway = 0
        self.failures_local = 0
        self.requests = 0
        """Since the last sweep, as the other three."""
        self.successes = 0
        self.local_requests = 0
        self.local_successes = 0
        self.ejections = 0
        """By how much the base time is multiplied."""
        self.ejected_until = 0.0
        self.returned = 0
        """The number of the sweep that took it back in."""
        self.since: float | None = None
        """When the balancer first saw it healthy, where new endpoints warm up."""

    def __repr__(self) -> str:
        return f"<{self.active} active, {self.failures_5xx} failures in a row, {self.ejections} ejections>"


class ClusterState:
    """What is known of one cluster. `plan` and `ready` belong to the balancer."""

    __slots__ = (
        *("active", "began", "connections", "ejected", "hosts", "marked", "outlier", "plan", "ready"),
        *("retries", "sweeps", "tries", "waiting", "wake"),
    )

    def __init__(self) -> None:
        self.active = 0
        self.connections = 0
        """Those that applications hold themselves (TCP); a pool of HTTP counts its own."""
        self.retries = 0
        self.tries: dict[int, int] = {}
        """Of the interval of the retry budget, where it has one."""
        self.waiting = 0
        """Of the active, those that have no connection yet."""
        self.hosts: dict[str, HostState] = {}
        self.outlier: OutlierPolicy | None = None
        """The policy in force; what follows belongs to it."""
        self.ejected: dict[str, HostState] = {}
        self.marked: dict[str, HostState] = {}
        """Those with ejections that count: the ejected, and for a while those that are back."""
        self.began = 0.0
        """When the first interval began."""
        self.sweeps = 0
        """How many intervals were looked at."""
        self.wake = NEVER
        """When the interval ends; never: there is no policy, or another thread is at it."""
        self.plan: Any = None
        self.ready: Any = None

    def host(self, key: str) -> HostState:
        """The state of an endpoint by its key."""
        found = self.hosts.get(key)
        return found if found is not None else self.hosts.setdefault(key, HostState())

    def forget_idle(self) -> None:
        """Forgets endpoints of which little is known: where none are listed, there may be any number."""
        for key, host in list(self.hosts.items()):
            if not host.active and key not in self.marked:
                self.hosts.pop(key, None)

    def __repr__(self) -> str:
        return f"<{self.active} active, {self.retries} retries, {len(self.ejected)} ejected>"


class Ledger:
    """All that one process learned."""

    __slots__ = ("_middle", "_number", "address", "clusters", "faults")

    def __init__(self, address: str = "") -> None:
        self.address = address
        """The IP address of this process, as others see it; empty: nothing has needed it."""
        self.clusters: dict[str, ClusterState] = {}
        self.faults = 0
        """Requests that are delayed or aborted on purpose, until their end."""
        self._middle = ""
        self._number = count(1)

    def request_id(self, dice: Dice) -> bytes:
        """A UUID of version 4 for x-request-id. The first part is rolled each time, for Envoy samples by it;
        the middle is this ledger's, the last part counts.
        """
        if not self._middle:
            roll = int(dice.random() * 2**42)
            self._middle = f"-{roll >> 26:04x}-4{roll >> 14 & 0xFFF:03x}-{0x8000 | roll & 0x3FFF:04x}-"
        # `to_bytes(…).hex()` takes half the time of formatting with %x.
        first, last = int(dice.random() * 2**32), next(self._number)
        return f"{first.to_bytes(4, 'big').hex()}{self._middle}{last.to_bytes(6, 'big').hex()}".encode()

    def cluster(self, name: str) -> ClusterState:
        """The state of a cluster by its name."""
        found = self.clusters.get(name)
        return found if found is not None else self.clusters.setdefault(name, ClusterState())

    def prune(self, view: View, changed: Iterable[str]) -> None:
        """Forgets clusters, and endpoints of those that `changed`, that `view` does not name. To be called
        when a view is published.
        """
        for name in self.clusters.keys() - view.clusters.keys():
            self.clusters.pop(name, None)
        for name in changed:
            state, cluster = self.clusters.get(name), view.clusters.get(name)
            if state is None or cluster is None:
                continue
            listed = cluster.inline or view.endpoints.get(name)
            groups = listed.localities if listed is not None else ()
            here = {endpoint.key for group in groups for endpoint in group.endpoints}
            for key in list(state.hosts.keys()):
                if key not in here:
                    state.hosts.pop(key, None)
                    state.ejected.pop(key, None)
                    state.marked.pop(key, None)
            state.plan = None if listed is None else state.plan

    def __repr__(self) -> str:
        return f"Ledger({len(self.clusters)} clusters)"
