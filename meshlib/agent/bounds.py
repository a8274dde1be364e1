"""How much the Envoy of a node may hold: all workloads together, and one of them.

Rules:

- A connection takes two descriptors, its own and one to where it leads; a tenth of them is for all else.
- One workload has an eighth of the connections at each of its listeners, 10,000 at most: what it holds, both
  ways and by tunnels, leaves more than half to its neighbours.
- Memory is all of the machine's or of the container's, unless less is said. Near to it nothing more is
  accepted, of nobody: it is the last resort.
"""

import resource
from dataclasses import dataclass

from meshlib.agent.memory import memory

MOST, MOST_OF_ONE = 200_000, 10_000
_MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Bounds:
    """What an Envoy of a node is told."""

    heap: int
    """Bytes; 0: no limit of ours."""
    connections: int
    """Of all workloads together; more are closed at once."""
    of_workload: int
    """To each listener of one workload."""


def bounds(heap: int | None = None, of_workload: int | None = None, files: int | None = None) -> Bounds:
    """`heap` in MiB; `files`: how many descriptors Envoy may have; None: what there is."""
    if files is None:
        _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
    every = MOST if files == resource.RLIM_INFINITY else min(MOST, max(1, files * 9 // 20))
    one = max(1, min(MOST_OF_ONE, every // 8)) if of_workload is None else of_workload
    return Bounds(memory() if heap is None else heap * _MIB, every, one)
