"""Which targets are held, on a clock that stands still."""

from meshlib.bootstrap import bootstrap
from meshlib.dataplane.targets import Targets
from meshlib.xds.names import inbound_listener

NOTHING: tuple[list[str], list[str]] = ([], [])


def called(targets: Targets, name: str, now: float) -> tuple[list[str], list[str]]:
    """A first call that is answered at once."""
    turn = targets.wait(name, now)
    assert targets.leave(name, now) == NOTHING
    return turn


def test_idle_ones_go_at_a_sweep() -> None:
    targets = Targets(bootstrap({}, idle_targets=100), 0.0)
    called(targets, "a", 0.0)
    called(targets, "b", 30.0)
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
    targets = Targets(bootstrap({}, max_targets=3), 0.0)
    for now, name in enumerate("abc"):
        assert called(targets, name, float(now)) == ([], [name])
    targets.touch("a", 9.0)
    assert called(targets, "d", 10.0) == (["b"], ["d"])
    assert called(targets, "d", 11.0) == NOTHING
    assert called(targets, "b", 12.0) == (["c"], ["b"])
    assert called(targets, "c", 13.0) == (["a"], ["c"])
    assert repr(targets) == "Targets(3 held, 0 wait their turn)"


def test_what_is_waited_for_is_never_forgotten() -> None:
    targets = Targets(bootstrap({}, max_targets=1, idle_targets=10), 0.0)
    assert targets.wait("a", 0.0) == ([], ["a"])
    assert targets.wait("a", 0.0) == NOTHING
    assert targets.wait("b", 1.0) == NOTHING
    assert targets.idle(1000.0) == []
    assert targets.leave("a", 1000.0) == NOTHING
    assert targets.leave("a", 1001.0) == (["a"], ["b"])


def test_those_that_find_no_room_wait_their_turn() -> None:
    targets = Targets(bootstrap({}, max_targets=2), 0.0)
    for name in ("a", "b", "c", "d", "e", "c"):
        targets.wait(name, 0.0)
    assert repr(targets) == "Targets(2 held, 3 wait their turn)"
    assert targets.leave("d", 1.0) == NOTHING  # it gave up
    assert targets.leave("b", 1.0) == (["b"], ["c"])
    assert targets.leave("a", 2.0) == (["a"], ["e"])
    assert targets.leave("c", 3.0) == NOTHING
    assert targets.wait("a", 4.0) == NOTHING
    assert targets.leave("c", 5.0) == (["c"], ["a"])


def test_a_served_port_takes_no_room_and_waits_for_none() -> None:
    targets = Targets(bootstrap({}, max_targets=1), 0.0)
    port = inbound_listener(9080)
    targets.wait("a", 0.0)
    assert targets.wait(port, 0.0) == ([], [port])
    assert targets.leave(port, 0.0) == NOTHING
    assert targets.wait("b", 0.0) == NOTHING
    assert targets.leave("a", 1.0) == (["a"], ["b"])


def test_one_that_is_touched_while_it_is_forgotten_is_not_held() -> None:
    targets = Targets(bootstrap({}, idle_targets=10), 0.0)
    called(targets, "a", 0.0)
    assert targets.idle(10.0) == ["a"]
    targets.touch("a", 10.0)
    assert called(targets, "a", 11.0) == ([], ["a"])
    assert targets.idle(21.0) == ["a"]
    targets.touch("a", 21.0)
    assert targets.idle(1000.0) == []
    assert targets._used == {}


def test_in_a_child_nobody_waits() -> None:
    targets = Targets(bootstrap({}, max_targets=1), 0.0)
    targets.wait("a", 0.0)
    targets.wait("b", 0.0)
    targets.alone()
    assert targets.leave("b", 1.0) == NOTHING
    assert targets.wait("c", 1.0) == (["a"], ["c"])


def test_many_at_once_are_all_served_in_their_order() -> None:
    targets = Targets(bootstrap({}, max_targets=100), 0.0)
    served: list[str] = []
    for number in range(1000):
        served += targets.wait(str(number), 0.0)[1]
    assert len(served) == 100
    for number in range(1000):
        assert len(served) > number
        served += targets.leave(served[number], float(number))[1]
    assert served == [str(number) for number in range(1000)]
