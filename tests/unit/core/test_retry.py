"""Retries as tables: which outcome is named by which condition, what headers add, how long the pause is."""

import pytest

from meshlib.core.request import Failed, Failure, RequestHead, ResponseHead
from meshlib.core.retry import RetryOn, RetryPolicy, back_off, effective, wants_retry

LATE_TRY, LATE = Failure.TRY_TIMED_OUT, Failure.TIMED_OUT
ALL_LOST = {
    *(Failure.CONNECT_FAILED, Failure.CONNECT_TIMED_OUT, Failure.RESET_BEFORE_REQUEST, Failure.RESET),
    *(Failure.REFUSED_STREAM, Failure.REMOTE_RESET, Failure.PROTOCOL, LATE_TRY),
}
NOT_CONNECTED = {Failure.CONNECT_FAILED, Failure.CONNECT_TIMED_OUT}
FAILURES = {
    RetryOn.FIVE_XX: ALL_LOST,
    RetryOn.GATEWAY_ERROR: ALL_LOST,
    RetryOn.RESET: ALL_LOST,
    RetryOn.RESET_BEFORE_REQUEST: NOT_CONNECTED | {Failure.RESET_BEFORE_REQUEST},
    RetryOn.CONNECT_FAILURE: NOT_CONNECTED,
    RetryOn.REFUSED_STREAM: {Failure.REFUSED_STREAM},
}
STATUSES = {
    RetryOn.FIVE_XX: {500, 501, 502, 503, 504, 599},
    RetryOn.GATEWAY_ERROR: {502, 503, 504},
    RetryOn.RETRIABLE_4XX: {409},
    RetryOn.RETRIABLE_STATUS_CODES: {418, 204},
}
GRPC = {
    RetryOn.CANCELLED: 1,
    RetryOn.DEADLINE_EXCEEDED: 4,
    RetryOn.RESOURCE_EXHAUSTED: 8,
    RetryOn.INTERNAL: 13,
    RetryOn.UNAVAILABLE: 14,
}


class Loaded:
    """Dice that always fall the same way."""

    def __init__(self, number: float) -> None:
        self.number = number

    def random(self) -> float:
        return self.number


def policy_of(*conditions: RetryOn) -> RetryPolicy:
    return RetryPolicy(
        frozenset(conditions), status_codes=frozenset((418, 204)), headers=(b"x-again", b"x-b")
    )


def asking(**headers: str) -> RequestHead:
    names = {"on": "retry-on", "grpc_on": "retry-grpc-on", "most": "max-retries"}
    names |= {"codes": "retriable-status-codes", "names": "retriable-header-names"}
    pairs = [(f"X-Envoy-{names[key]}".encode(), value.encode()) for key, value in headers.items()]
    return RequestHead("GET", "http", "a", "/", pairs)


@pytest.mark.parametrize("condition", RetryOn)
def test_failures_that_a_condition_names(condition: RetryOn) -> None:
    # An overflow is never tried again, and after the time of the route there is no time left.
    taken = {how for how in Failure if wants_retry(policy_of(condition), Failed(how))}
    assert taken == FAILURES.get(condition, set())


@pytest.mark.parametrize("condition", RetryOn)
def test_statuses_that_a_condition_names(condition: RetryOn) -> None:
    statuses = (200, 204, 302, 400, 404, 408, 409, 410, 418, 429, 499, 500, 501, 502, 503, 504, 599, 600)
    taken = {status for status in statuses if wants_retry(policy_of(condition), ResponseHead(status))}
    assert taken == STATUSES.get(condition, set())


@pytest.mark.parametrize("condition", RetryOn)
def test_grpc_statuses_that_a_condition_names(condition: RetryOn) -> None:
    policy = policy_of(condition)
    heads = {number: ResponseHead(200, ((b"Grpc-Status", b"%d" % number),)) for number in range(18)}
    taken = {number for number, head in heads.items() if wants_retry(policy, head)}
    assert taken == ({GRPC[condition]} if condition in GRPC else set())


@pytest.mark.parametrize(
    ("value", "taken"),
    [
        *((b"014", True), (b" 14 ", True), (b"+14", True), (b"", False), (b"x", False), (b"-14", False)),
        *((b"14.0", False), (b"1_4", False), (b"9" * 5000, False), (b"\xff", False)),
    ],
)
def test_a_grpc_status_is_a_number(value: bytes, taken: bool) -> None:
    head = ResponseHead(200, ((b"grpc-status", value),))
    assert wants_retry(policy_of(RetryOn.UNAVAILABLE), head) is taken


@pytest.mark.parametrize("condition", RetryOn)
@pytest.mark.parametrize("status", [429, 503, 418])
def test_a_rate_limited_response_is_only_for_the_condition_of_its_name(
    condition: RetryOn, status: int
) -> None:
    head = ResponseHead(status, ((b"X-Envoy-RateLimited", b"true"), (b"x-again", b"1")))
    assert wants_retry(policy_of(condition), head) is (condition is RetryOn.ENVOY_RATELIMITED)


@pytest.mark.parametrize("condition", RetryOn)
def test_any_header_of_the_list_will_do_whatever_it_says(condition: RetryOn) -> None:
    for name in (b"X-Again", b"x-b"):
        head = ResponseHead(200, ((name, b""),))
        assert wants_retry(policy_of(condition), head) is (condition is RetryOn.RETRIABLE_HEADERS)
    assert not wants_retry(policy_of(condition), ResponseHead(200, ((b"x-c", b"1"),)))


def test_no_condition_no_retry() -> None:
    assert not wants_retry(policy_of(), ResponseHead(503, ((b"x-again", b"1"), (b"grpc-status", b"14"))))
    assert not any(wants_retry(policy_of(), Failed(how)) for how in Failure)


@pytest.mark.parametrize(
    ("base", "longest", "bounds"),
    [
        (25, 250, [25, 50, 100, 200, 250, 250]),
        (100, 300, [100, 200, 300, 300]),
        (1, 1, [1, 1, 1]),
        (100, 10_000, [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]),
    ],
)
def test_the_bound_doubles_up_to_the_longest(base: int, longest: int, bounds: list[int]) -> None:
    policy = RetryPolicy(frozenset(), base_interval=base / 1000, max_interval=longest / 1000)
    for dice, share in ((0.0, 0.0), (0.25, 0.25), (0.5, 0.5), (1 - 2**-53, 1.0)):
        pauses = [1000 * back_off(policy, n, Loaded(dice)) for n in range(1, len(bounds) + 1)]
        assert pauses == pytest.approx([share * bound for bound in bounds])


def test_the_thousandth_pause_is_the_longest() -> None:
    policy = RetryPolicy(frozenset(), base_interval=0.025, max_interval=0.25)
    assert back_off(policy, 1000, Loaded(0.5)) == 0.125


BASE = RetryPolicy(
    frozenset((RetryOn.RESET,)), 2, 0.5, frozenset((503,)), (b"x-a",), 0.1, 1.0, avoid_previous_hosts=True
)
TWO = frozenset((RetryOn.RESET, RetryOn.FIVE_XX))


@pytest.mark.parametrize("head", [asking(), asking(most="3"), asking(on=""), asking(on="5XX", grpc_on="5xx")])
def test_who_names_no_condition_gets_no_retry(head: RequestHead) -> None:
    assert effective(None, head) is None
    assert effective(RetryPolicy(frozenset(), 7), head) is None


def test_a_request_without_wishes_has_the_policy_of_its_route() -> None:
    assert effective(BASE, asking()) == BASE


def test_wishes_are_added_to_the_policy() -> None:
    made = effective(BASE, asking(on="5xx", codes="418,503", names="X-B, x-c"))
    assert made == RetryPolicy(
        TWO, 2, 0.5, frozenset((503, 418)), (b"x-a", b"x-b", b"x-c"), 0.1, 1.0, avoid_previous_hosts=True
    )


def test_a_request_with_wishes_alone_is_tried_once_again() -> None:
    assert effective(None, asking(on="5xx")) == RetryPolicy(frozenset((RetryOn.FIVE_XX,)), 1)


def test_the_number_of_a_policy_without_conditions_counts() -> None:
    assert effective(RetryPolicy(frozenset(), 7), asking(on="5xx")) == RetryPolicy(
        frozenset((RetryOn.FIVE_XX,)), 7
    )


@pytest.mark.parametrize(
    ("said", "named"),
    [
        ("5xx,reset", {"5xx", "reset"}),
        (" 5xx ,, x,gateway-error", {"5xx", "gateway-error"}),
        ("5xx reset", set()),
        ("unavailable,5xx", {"5xx"}),
    ],
)
def test_words_of_retry_on(said: str, named: set[str]) -> None:
    made = effective(None, asking(on=said))
    assert (set() if made is None else {each.value for each in made.retry_on}) == named


@pytest.mark.parametrize(
    ("said", "named"),
    [("unavailable, cancelled", {"unavailable", "cancelled"}), ("5xx,internal", {"internal"}), ("", set())],
)
def test_words_of_retry_grpc_on(said: str, named: set[str]) -> None:
    made = effective(None, asking(grpc_on=said))
    assert (set() if made is None else {each.value for each in made.retry_on}) == named


@pytest.mark.parametrize(
    ("said", "retries"),
    [
        *(("0", 0), ("5", 5), ("+5", 5), (" 5 ", 5), ("0005", 5)),
        *(("", 2), ("x", 2), ("-5", 2), ("5,6", 2), ("5.0", 2), ("++5", 2), ("5_0", 2)),
        # Envoy reads 64 bits and keeps 32.
        *(
            (str(2**32), 0),
            (str(2**32 + 5), 5),
            (str(2**64 - 1), 2**32 - 1),
            (str(2**64), 2),
            ("9" * 5000, 2),
        ),
    ],
)
def test_max_retries(said: str, retries: int) -> None:
    made = effective(BASE, asking(most=said))
    assert made is not None
    assert made.retries == retries


@pytest.mark.parametrize(
    ("said", "codes"),
    [
        ("418", {418}),
        ("418, 429", {418, 429}),
        ("+418,x, 0429 ,,-1", {418, 429}),
        ("418;429", set()),
        ("4294967714", set()),
    ],
)
def test_retriable_status_codes(said: str, codes: set[int]) -> None:
    made = effective(BASE, asking(codes=said))
    assert made is not None
    assert made.status_codes == {503} | codes


@pytest.mark.parametrize("condition", RetryOn)
@pytest.mark.parametrize("status", [200, 204, 503])
def test_a_call_that_went_well_is_judged_as_one_that_says_so_in_other_letters(
    condition: RetryOn, status: int
) -> None:
    well, spelled = (ResponseHead(status, ((name, b"0"),)) for name in (b"grpc-status", b"Grpc-Status"))
    policy = policy_of(condition)
    assert wants_retry(policy, well) is wants_retry(policy, spelled) is (status in policy.statuses)


def test_the_first_of_several_headers_counts() -> None:
    head = ResponseHead(200, ((b"grpc-status", b"0"), (b"grpc-status", b"14")))
    assert not wants_retry(policy_of(RetryOn.UNAVAILABLE), head)
