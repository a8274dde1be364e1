"""What an inbound request hands on to the calls that are made for it."""

import asyncio
import threading

import pytest

from meshlib.core.request import RequestHead
from meshlib.dataplane.context import current, entered, hand_on, handed, time_left


def head(*headers: tuple[bytes, bytes]) -> RequestHead:
    return RequestHead("GET", "http", "a", "/", list(headers))


IN = head(
    (b"X-Request-Id", b"1"),
    (b"traceparent", b"00-a-b-01"),
    (b"baggage", b"a=1"),
    (b"baggage", b"b=2"),
    (b"end-user", b"jason"),
    (b"cookie", b"secret"),
)
FORWARD = frozenset({b"end-user"})


def out(inside: bool = True, *own: tuple[bytes, bytes]) -> dict[bytes, bytes]:
    made = head(*own)
    hand_on(made, inside)
    return dict(made.index)


def test_traces_baggage_and_what_is_configured_travel_on_and_nothing_else() -> None:
    with entered(handed(IN, None, FORWARD)):
        assert out() == {
            b"x-request-id": b"1",
            b"traceparent": b"00-a-b-01",
            b"baggage": b"a=1,b=2",
            b"end-user": b"jason",
        }
    assert out() == {}


def test_what_the_application_sets_stays() -> None:
    with entered(handed(IN, None, FORWARD)):
        assert out(True, (b"End-User", b"maria"))[b"end-user"] == b"maria"


def test_a_host_outside_is_told_what_joins_traces() -> None:
    with entered(handed(IN, None, FORWARD)):
        assert out(inside=False) == {b"x-request-id": b"1", b"traceparent": b"00-a-b-01"}


def test_there_is_an_end_to_what_is_handed_on() -> None:
    with entered(handed(head((b"baggage", b"x" * 20_000), (b"end-user", b"jason")), None, FORWARD)):
        assert out() == {}


async def test_a_task_has_it_and_a_thread_of_its_own_has_not() -> None:
    seen: list[object] = []
    with entered(handed(IN, None)):
        task = asyncio.create_task(asyncio.to_thread(current))
        thread = threading.Thread(target=lambda: seen.append(current()))
        thread.start()
        thread.join()
    found = await task
    assert found is not None
    assert seen == [None]


@pytest.mark.parametrize(
    ("headers", "left"),
    [
        ([(b"x-envoy-expected-rq-timeout-ms", b"1500")], 1.5),
        ([(b"grpc-timeout", b"2S")], 2.0),
        ([(b"grpc-timeout", b"100m")], 0.1),
        ([(b"x-envoy-expected-rq-timeout-ms", b"1500"), (b"grpc-timeout", b"9S")], 1.5),
        ([(b"x-envoy-expected-rq-timeout-ms", b"0")], None),
        ([(b"x-envoy-expected-rq-timeout-ms", b"-1")], None),
        ([(b"x-envoy-expected-rq-timeout-ms", b"9" * 20)], None),
        ([(b"grpc-timeout", b"123456789S")], None),
        ([(b"grpc-timeout", b"S")], None),
        ([(b"grpc-timeout", b"1x")], None),
        ([], None),
    ],
)
def test_the_callers_time_bounds_the_calls(headers: list[tuple[bytes, bytes]], left: float | None) -> None:
    with entered(handed(head(*headers), None, clock=lambda: 100.0)):
        found = time_left(lambda: 100.0)
        assert found == pytest.approx(left) if left is not None else found is None


def test_a_caller_that_waits_no_more_leaves_a_millisecond() -> None:
    with entered(handed(head((b"grpc-timeout", b"1S")), None, clock=lambda: 100.0)):
        assert time_left(lambda: 200.0) == 0.001
