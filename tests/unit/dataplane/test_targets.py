"""Idle and excess targets, on a clock that stands still."""

from meshlib.bootstrap import bootstrap
from meshlib.dataplane.targets import Targets


def test_idle_ones_go_at_a_sweep() -> None:
    targets = Targets(bootstrap({}, idle_targets=100), 0.0)
    targets.touch("a", 0.0)
    targets.touch("b", 30.0)
    assert targets.pause == 60.0
    assert targets.idle(59.9) == []
    assert targets.idle(60.0) == []
    assert targets.idle(119.9) == []
    assert targets.idle(120.0) == ["a"]
    assert targets.idle(180.0) == ["b"]
    assert targets.idle(1000.0) == []


def test_sweeps_are_no_rarer_than_the_bound() -> None:
    assert Targets(bootstrap({}, idle_targets=5), 0.0).pause == 5.0


def test_the_ones_unused_for_longest_make_room() -> None:
    targets = Targets(bootstrap({}, max_targets=2), 0.0)
    for now, name in enumerate("abcd"):
        targets.touch(name, float(now))
    targets.touch("a", 9.0)
    assert targets.excess() == ["b", "c"]
    assert targets.excess() == []
    assert repr(targets) == "Targets(2)"
