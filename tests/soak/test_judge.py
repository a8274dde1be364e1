"""The law of the soak is one that can be broken."""

import math

import pytest
from soak.judge import GROWTH, SAMPLES, Record, grown, growth, may, wrong
from soak.reasons import Begun, Reason, of_error, of_flag, of_response, of_words

from meshlib.core.actions import Facts
from meshlib.errors import ConnectFailed, UpstreamReset

PHASES = ("calm", "deaf", "calm")
TIMES = {"calm": 2, "deaf": 1, "die": 3}


def record(*failed: tuple[int, int, str, str, int], asked: int = 100) -> Record:
    """Of requests to `plain`: `asked` of either policy in each phase."""
    return Record.of(
        {
            "asked": [
                [phase, "plain", policy, asked]
                for phase in range(len(PHASES))
                for policy in ("tried", "bare")
            ],
            "failed": [[began, ended, "plain", *rest] for began, ended, *rest in failed],
        },
        PHASES,
    )


def test_nothing_that_failed_is_nothing_wrong() -> None:
    assert wrong(record(), record(), TIMES) == []


def test_a_tried_request_fails_if_one_of_envoys_does_and_no_oftener() -> None:
    one = record((1, 1, "tried", "TIME", 1))
    (told,) = wrong(one, record(), TIMES)
    assert told.startswith("deaf: 1 of 100 tried requests to plain failed, time ran out [UT]; of Envoy's 0")
    assert wrong(one, one, TIMES) == []
    assert wrong(record((1, 1, "tried", "TIME", 60)), one, TIMES) != []
    assert wrong(record((1, 1, "tried", "BROKEN", 1)), one, TIMES) != []


def test_a_bare_request_never_fails_while_all_is_calm() -> None:
    assert wrong(record((0, 0, "bare", "TIME", 1)), record(), TIMES) != []


@pytest.mark.parametrize(("ours", "law"), [(8, True), (9, False)])
def test_where_none_of_envoys_failed_a_few_bare_ones_may_by_chance(ours: int, law: bool) -> None:
    assert (wrong(record((1, 1, "bare", "TIME", ours)), record(), TIMES) == []) is law


def test_a_share_is_compared_and_not_a_count() -> None:
    envoys = record((1, 1, "bare", "TIME", 30))
    most = math.floor(1.5 * 30 + 4 * math.sqrt(34))
    assert wrong(record((1, 1, "bare", "TIME", most)), envoys, TIMES) == []
    assert wrong(record((1, 1, "bare", "TIME", most + 1)), envoys, TIMES) != []
    assert wrong(record((1, 1, "bare", "TIME", 60), asked=50), envoys, TIMES) != []


def test_a_bare_request_fails_in_no_other_way_than_the_phase_makes_it() -> None:
    assert wrong(record((1, 1, "bare", "NOBODY", 1)), record(), TIMES) != []


def test_what_began_before_or_ends_after_the_trouble_counts_for_it() -> None:
    assert wrong(record((0, 1, "bare", "TIME", 1), (1, 2, "bare", "TIME", 1)), record(), TIMES) == []


def test_a_response_that_has_begun_may_break_off_where_its_endpoint_dies() -> None:
    assert may("die", "tried", Reason.BEGUN)
    assert not may("drain", "tried", Reason.BEGUN)
    made = Record()
    made.asked["die", "plain", "tried"] = 100
    made.failed["die", "plain", "tried", Reason.BEGUN] = 12
    assert wrong(made, record(), TIMES) == []
    made.failed["die", "plain", "tried", Reason.BEGUN] = 13
    assert wrong(made, record(), TIMES) != []


def test_growth_is_that_of_the_second_half() -> None:
    assert growth([9.0, 1.0] * 5 + [3.0] * 10) == 0.0
    assert growth([0.0] * 10 + [float(number) for number in range(10)]) == pytest.approx(9.0)
    assert growth([]) == growth([1.0]) == 0.0


def test_what_grows_is_told_and_what_goes_up_and_down_is_not() -> None:
    size = 2 * SAMPLES
    up = [dict.fromkeys(GROWTH, 0.0) | {"rss_kb": 40.0 * number} for number in range(size)]
    assert [one.split()[0] for one in grown(up)] == ["rss_kb"]
    waves = [dict.fromkeys(GROWTH, 20.0 * math.sin(number)) for number in range(size)]
    assert grown(waves) == []


def test_the_reason_is_the_same_whoever_tells_it() -> None:
    envoys = "upstream connect error or disconnect/reset before headers. reset reason: "
    assert of_words(envoys + "remote connection failure") is of_error(ConnectFailed("x")) is Reason.CONNECT
    assert of_words(envoys + "connection termination") is of_error(UpstreamReset("x")) is Reason.BROKEN
    assert of_words("upstream request timeout") is of_flag("UT,URX") is Reason.TIME
    assert of_words("no healthy upstream") is of_flag("UH") is Reason.NOBODY
    assert of_words(envoys + "overflow") is of_flag("UO") is Reason.OVERFLOW
    assert of_error(Begun("x")) is Reason.BEGUN
    assert of_response({"x-endpoint": "1"}, "well", Facts(flag="UF")) is Reason.ENDPOINT
    assert of_response({}, "", Facts(flag="NR")) is Reason.NOWHERE
    assert of_words("") is of_flag("-") is of_error(OSError()) is Reason.OTHER
