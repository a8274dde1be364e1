"""How much the Envoy of a node may hold: all workloads together, and one of them.

Rules:

- A connection takes two descriptors, its own and one to where it leads; a tenth of them is for all else.
- One workload has an eighth of the connections at each of its listeners, 10,000 at most: what it holds, both
  ways and by tunnels, leaves more than half to its neighbours. Nor has it more than hold half of the memory,
  should all be tunnels that nobody reads.
- Memory is all of the machine's or of the container's, unless less is said. Near to it nothing more is
  accepted, of nobody: it is the last resort.
"""

import resource
from dataclasses import dataclass

from meshlib.agent.memory import memory

MOST, MOST_OF_ONE = 200_000, 10_000
_MIB = 1024 * 1024
FULL_BYTES = 5 * _MIB
"""Of a tunnel that nobody reads, at its caller: its window, and what each step on the way has read."""


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
    """What was said or, where nothing was, follows from the machine.

    `heap` in MiB; `files` is how many descriptors Envoy may have.
    """
    if files is None:
        _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
    every = MOST if files == resource.RLIM_INFINITY else min(MOST, max(1, files * 9 // 20))
    most = memory() if heap is None else heap * _MIB
    if of_workload is None:
        of_workload = max(1, min(MOST_OF_ONE, every // 8, (most or memory()) // 2 // FULL_BYTES))
    return Bounds(most, every, of_workload)
