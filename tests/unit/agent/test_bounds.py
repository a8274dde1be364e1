"""How much the Envoy of a node may hold."""

import resource

import pytest

from meshlib.agent.bounds import bounds
from meshlib.agent.memory import memory


@pytest.mark.parametrize(
    ("files", "every", "one"),
    [
        (1024, 460, 57),
        (20_000, 9_000, 1_125),
        (1_048_576, 200_000, 10_000),
        (resource.RLIM_INFINITY, 200_000, 10_000),
        (1, 1, 1),
    ],
)
def test_connections_are_of_the_descriptors_that_there_are(files: int, every: int, one: int) -> None:
    found = bounds(files=files)
    assert (found.connections, found.of_workload) == (every, one)


def test_an_operator_may_say_so() -> None:
    found = bounds(heap=512, of_workload=30, files=20_000)
    assert (found.heap, found.of_workload) == (512 * 1024 * 1024, 30)
    assert bounds(heap=0).heap == 0
    assert bounds().heap == memory()
