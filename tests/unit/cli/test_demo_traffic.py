"""When the demo's traffic has come to rest."""

from meshlib.cli.demo_scenarios import Traffic


def test_a_single_answer_after_a_stall_is_no_rest() -> None:
    """Nothing came for a while, then one of v2; v1 is in force still."""
    traffic = Traffic(answers=[(1.0, "v1"), (1.1, "v2"), (1.2, "v1"), (9.0, "v2")])
    assert traffic.since(8.5) == {"v2": 1}
    assert traffic.latest(2, 0.0) == {"v1": 1, "v2": 1}
    assert traffic.latest(2, 8.5) == {"v2": 1}


def test_rest_is_that_the_last_ones_agree() -> None:
    traffic = Traffic(answers=[(1.0, "v1"), (2.0, "v2"), (3.0, "v2"), (4.0, "v2")])
    assert traffic.latest(3, 0.0) == {"v2": 3}
    assert traffic.latest(4, 0.0) == {"v1": 1, "v2": 3}
    assert traffic.latest(4, 1.5) == {"v2": 3}
    assert traffic.latest(4, 5.0) == {}
    traffic.answers.append((2.5, "v1"))  # asked before, answered late
    assert traffic.latest(3, 0.0) == {"v1": 1, "v2": 2}
