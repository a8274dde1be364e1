"""For how long a connection is kept idle, by what its peer says and did."""

import math

import pytest

from meshlib.dataplane.http.habits import LONGEST_MEMORY, MEMORY, MOST, STRIKES, Habits, kept_for


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        (b"timeout=5", 4.0),
        (b"timeout=5, max=100", 4.0),
        (b"max=100,TimeOut = 30", 29.0),
        (b"timeout=1", 0.5),
        (b"timeout=0", 0.0),
        (b"timeout=", math.inf),
        (b"timeout=-5", math.inf),
        (b"timeout=9999999999", math.inf),
        (b"timeout=\xb2", math.inf),
        (b"300", math.inf),
        (b"", math.inf),
    ],
)
def test_what_a_peer_says(said: bytes, seconds: float) -> None:
    assert kept_for(said) == seconds


def test_what_a_peer_does_is_remembered_for_a_while() -> None:
    habits: Habits[str] = Habits()
    assert habits.longest("a", 0.0) == math.inf
    habits.closed("a", 5.0, 3, 10.0)
    habits.closed("a", 4.0, 1, 11.0)
    habits.closed("a", 8.0, 1, 12.0)
    assert habits.longest("a", 13.0) == 3.0
    assert habits.longest("b", 13.0) == math.inf
    assert habits.longest("a", 12.0 + 79.0) == 3.0
    assert habits.longest("a", 12.0 + 80.0) == math.inf
    habits.closed("a", 9.0, 1, 100.0)  # what was forgotten does not count
    assert habits.longest("a", 101.0) == 6.75


def test_what_is_true_again_is_remembered_for_longer() -> None:
    habits: Habits[str] = Habits()
    now = 0.0
    for memory in (MEMORY, 2 * MEMORY, 4 * MEMORY, *[LONGEST_MEMORY] * 20):
        habits.closed("a", 0.5, 3, now)
        if memory < LONGEST_MEMORY:
            assert habits.longest("a", now + memory - 1) == 0.375
        now += max(memory, LONGEST_MEMORY)
        assert habits.longest("a", now) == math.inf
    habits.closed("b", 600.0, 3, now)
    assert habits.longest("b", now + 5999) == 450.0
    assert habits.longest("b", now + 6000) == math.inf


def test_who_restarts_teaches_nothing() -> None:
    habits: Habits[str] = Habits()
    for _ in range(10):
        habits.closed("a", 0.01, 7, 1.0)
    assert habits.longest("a", 1.0) == math.inf


def test_who_keeps_none_is_not_asked_to() -> None:
    habits: Habits[str] = Habits()
    for _ in range(STRIKES - 1):
        habits.closed("a", 0.001, 1, 1.0)
    assert habits.longest("a", 1.0) == math.inf
    habits.used_again("a")
    habits.used_again("b")
    habits.closed("a", 0.001, 1, 1.0)
    assert habits.longest("a", 1.0) == math.inf
    for _ in range(STRIKES):
        habits.closed("a", 0.001, 1, 1.0)
    assert habits.longest("a", 1.0) == 0.0


def test_memory_is_bounded() -> None:
    habits: Habits[int] = Habits()
    for number in range(MOST + 10):
        habits.closed(number, 4.0, 1, 1.0)
    assert len(habits.known) == MOST
    assert habits.longest(9, 1.0) == math.inf
    assert habits.longest(10, 1.0) == 3.0
