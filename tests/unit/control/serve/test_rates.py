"""Buckets: a burst, a rate, and bounded memory."""

from meshlib.control.serve.rates import Allowance


def test_a_burst_and_then_the_rate() -> None:
    it = Allowance(burst=3, per_second=2)
    assert [it.take("a", 0.0) for _ in range(5)] == [True, True, True, False, False]
    assert [it.take("a", 0.5) for _ in range(2)] == [True, False]
    assert [it.take("a", 100.0) for _ in range(4)] == [True, True, True, False]


def test_keys_do_not_share() -> None:
    it = Allowance(burst=1, per_second=1)
    assert it.take("a", 0.0)
    assert not it.take("a", 0.0)
    assert it.take("b", 0.0)


def test_a_clock_that_goes_back_gives_nothing() -> None:
    it = Allowance(burst=1, per_second=1)
    assert it.take("a", 10.0)
    assert not it.take("a", 5.0)


def test_the_one_unused_for_longest_begins_anew() -> None:
    it = Allowance(burst=1, per_second=0.001, most=2)
    for key in ("a", "b", "a", "c"):
        it.take(key, 0.0)
    assert not it.take("a", 0.0)
    assert it.take("b", 0.0)
