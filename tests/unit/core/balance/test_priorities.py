"""The load of each priority: by hand, and what always holds."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshlib.core.balance.priorities import Health, priority_loads


def levels(*counts: tuple[int, ...]) -> list[Health]:
    """Of (healthy, all) or (healthy, degraded, all)."""
    return [Health(each[0], each[1] if len(each) > 2 else 0, each[-1], each[-1]) for each in counts]


@pytest.mark.parametrize(
    ("counts", "threshold", "loads", "panics"),
    [
        ([(5, 5)], 50, (100,), (False,)),
        ([(4, 5)], 50, (100,), (False,)),
        # 1.4 × 50 % = 70 % stay, 30 % go to the next.
        ([(2, 4), (4, 4)], 50, (70, 30), (False, False)),
        ([(0, 4), (4, 4)], 50, (0, 100), (False, False)),
        # Not enough together: what there is, is scaled up; those below the threshold panic.
        ([(4, 10), (3, 10)], 35, (58, 42), (False, True)),
        # All panic: the number of endpoints counts, whoever is healthy.
        ([(1, 30), (1, 10)], 50, (75, 25), (True, True)),
        ([(0, 2), (0, 2)], 50, (50, 50), (True, True)),
        # Without panic nobody healthy means nobody.
        ([(0, 2), (0, 2)], 0, (100, 0), (False, False)),
        ([(0, 0)], 50, (100,), (True,)),
        ([], 50, (), ()),
    ],
)
def test_priorities(
    counts: list[tuple[int, int]], threshold: int, loads: tuple[int, ...], panics: tuple[bool, ...]
) -> None:
    found = priority_loads(levels(*counts), threshold, 140)
    assert (found.healthy, found.panics) == (loads, panics)
    assert not any(found.degraded)


def test_degraded_ones_come_after_all_healthy_ones() -> None:
    found = priority_loads(levels((1, 3, 4), (1, 0, 4)), 50, 100)
    assert (found.healthy, found.degraded) == ((25, 25), (50, 0))
    found = priority_loads(levels((0, 2, 2)), 50, 140)
    assert (found.healthy, found.degraded, found.panics) == ((0,), (100,), (False,))


def test_weights_may_count_instead_of_numbers() -> None:
    heavy = Health(1, 0, 2, 2, (9, 0, 10))
    assert priority_loads([heavy, *levels((1, 1))], 50, 100).healthy == (90, 10)


def test_who_drains_makes_nobody_look_ill() -> None:
    assert priority_loads([Health(1, 0, 1, 9), *levels((1, 1))], 50, 140).healthy == (100, 0)
    # In panic everybody is there still.
    assert priority_loads([Health(0, 0, 1, 3), *levels((0, 1))], 50, 140).healthy == (75, 25)


def test_overprovisioning_is_a_setting() -> None:
    assert priority_loads(levels((1, 2), (2, 2)), 50, 100).healthy == (50, 50)
    assert priority_loads(levels((1, 2), (2, 2)), 50, 200).healthy == (100, 0)


@given(
    st.lists(
        st.integers(0, 9).flatmap(
            lambda n: st.integers(0, n).flatmap(
                lambda h: st.tuples(st.just(h), st.integers(0, n - h), st.just(n))
            )
        ),
        min_size=1,
    ),
    st.integers(0, 100),
    st.integers(100, 300),
)
def test_loads_are_always_the_whole(counts: list[tuple[int, int, int]], threshold: int, factor: int) -> None:
    loads = priority_loads(levels(*counts), threshold, factor)
    assert sum(loads.healthy) + sum(loads.degraded) == 100
    assert all(0 <= load <= 100 for load in (*loads.healthy, *loads.degraded))
