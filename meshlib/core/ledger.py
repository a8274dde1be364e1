"""What was learned: requests and retries in flight, cursors of the balancer, failures and ejections.

Rules:
* Everything is keyed by name (cluster, then endpoint), so it outlives views; `prune` drops what a
  view no longer names, so memory is bounded by the configuration.
* A request holds the `ClusterState` that it began with: giving a slot back never needs a look-up,
  and what is pruned meanwhile simply goes with its last request.
* For threads there are no locks. Each change is one attribute increment, one dict operation or one
  heap operation, none of which CPython interrupts for another thread. Threads that decide at the
  same moment may pass a limit by one each; no count is ever lost.
"""

from collections.abc import Iterable
from itertools import count
from typing import Any

from meshlib.core.request import Dice
from meshlib.core.view import View


class HostState:
    """What is known of one endpoint of one cluster."""

    __slots__ = (
        *("active", "ejected_until", "ejections", "failures_5xx", "failures_gateway", "last_ejection"),
        "since",
    )

    def __init__(self) -> None:
        self.active = 0
        self.failures_5xx = 0
        self.failures_gateway = 0
        self.ejected_until: float | None = None
        self.ejections = 0
        """The multiplier of the next ejection's time, less one."""
        self.last_ejection: float = 0.0
        """When the last ejection ended or will end."""
        self.since: float | None = None
        """When the balancer first saw it healthy, where new endpoints warm up."""

    def __repr__(self) -> str:
        return f"<{self.active} active, ejected until {self.ejected_until}>"


class ClusterState:
    """What is known of one cluster. `plan` and `ready` belong to the balancer."""

    __slots__ = ("active", "connections", "ejected", "hosts", "plan", "ready", "retries", "wake")

    def __init__(self) -> None:
        self.active = 0
        self.connections = 0
        """Those that applications hold themselves (TCP); a pool of HTTP counts its own."""
        self.retries = 0
        self.hosts: dict[str, HostState] = {}
        self.ejected: dict[str, HostState] = {}
        self.wake = float("inf")
        """When the first ejection, or the warming up of endpoints, ends; never if there is none."""
        self.plan: Any = None
        self.ready: Any = None

    def host(self, key: str) -> HostState:
        """The state of an endpoint by its key."""
        found = self.hosts.get(key)
        return found if found is not None else self.hosts.setdefault(key, HostState())

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
            state.plan = None if listed is None else state.plan

    def __repr__(self) -> str:
        return f"Ledger({len(self.clusters)} clusters)"
