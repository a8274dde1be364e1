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
    found = bounds(heap=1024 * 1024, files=files)
    assert (found.connections, found.of_workload) == (every, one)


def test_an_operator_may_say_so() -> None:
    found = bounds(heap=512, of_workload=30, files=20_000)
    assert (found.heap, found.of_workload) == (512 * 1024 * 1024, 30)
    assert bounds(heap=0).heap == 0
    assert bounds().heap == memory()


@pytest.mark.parametrize(("heap", "one"), [(1024, 102), (4096, 409), (1, 1)])
def test_one_workload_can_not_have_all_the_memory(heap: int, one: int) -> None:
    assert bounds(heap=heap, files=1_048_576).of_workload == one


def test_without_a_limit_it_is_of_what_there_is() -> None:
    assert bounds(heap=0).of_workload == bounds().of_workload
