"""What an inbound request hands on to outbound calls: headers, time, caller."""

import asyncio
import contextvars

import pytest

from meshlib.core.request import Header, RequestHead
from meshlib.dataplane.context import current, entered, hand_on, handed, time_left


def head(*headers: Header) -> RequestHead:
    return RequestHead("GET", "http", "reviews", "/", list(headers))


def test_outside_of_a_request_nothing_is_handed_on() -> None:
    asked = head((b"a", b"1"))
    hand_on(asked, inside=True)
    assert (asked.headers, current(), time_left()) == ([(b"a", b"1")], None, None)


def test_traces_and_named_headers_and_nothing_else() -> None:
    what = handed(
        head(
            (b"TraceParent", b"00-1-2-01"),
            (b"baggage", b"k=v"),
            (b"end-user", b"jason"),
            (b"authorization", b"secret"),
            (b"cookie", b"secret"),
            (b"x-request-id", b"7"),
        ),
        None,
        frozenset((b"end-user",)),
    )
    assert what.headers == (
        (b"traceparent", b"00-1-2-01"),
        (b"baggage", b"k=v"),
        (b"end-user", b"jason"),
        (b"x-request-id", b"7"),
    )
    assert handed(head((b"end-user", b"jason")), None).headers == ()


def test_what_the_application_sets_stays_as_it_set_it() -> None:
    with entered(handed(head((b"b3", b"0"), (b"x-request-id", b"7")), None)):
        asked = head((b"X-Request-Id", b"mine"))
        hand_on(asked, inside=True)
    assert asked.headers == [(b"X-Request-Id", b"mine"), (b"b3", b"0")]
    assert asked.header(b"b3") == b"0"


def test_several_of_one_name_become_one() -> None:
    with entered(handed(head((b"tracestate", b"a=1"), (b"tracestate", b"b=2")), None)):
        asked = head()
        hand_on(asked, inside=True)
    assert asked.headers == [(b"tracestate", b"a=1,b=2")]


def test_it_is_bounded() -> None:
    many = [(b"baggage", b"x" * 4000)] * 10
    assert len(handed(head(*many), None).headers) == 4


@pytest.mark.parametrize(
    ("name", "value", "seconds"),
    [
        (b"x-envoy-expected-rq-timeout-ms", b"1500", 1.5),
        (b"x-envoy-expected-rq-timeout-ms", b"0", None),
        (b"x-envoy-expected-rq-timeout-ms", b"-5", None),
        (b"x-envoy-expected-rq-timeout-ms", b"soon", None),
        (b"x-envoy-expected-rq-timeout-ms", b"1" * 12, None),
        (b"grpc-timeout", b"2S", 2.0),
        (b"grpc-timeout", b"250m", 0.25),
        (b"grpc-timeout", b"1H", 3600.0),
        (b"grpc-timeout", b"99999999H", 365 * 86400.0),
        (b"grpc-timeout", b"123456789S", None),
        (b"grpc-timeout", b"S", None),
        (b"grpc-timeout", b"5x", None),
    ],
)
def test_the_time_that_the_caller_waits(name: bytes, value: bytes, seconds: float | None) -> None:
    what = handed(head((name, value)), None, clock=lambda: 100.0)
    assert what.deadline == (None if seconds is None else 100.0 + seconds)


def test_time_runs_and_does_not_run_out_below_a_millisecond() -> None:
    with entered(handed(head((b"grpc-timeout", b"2S")), None, clock=lambda: 100.0)):
        assert time_left(lambda: 100.5) == 1.5
        assert time_left(lambda: 200.0) == 0.001


def test_a_request_within_a_request_gives_back_the_outer_one() -> None:
    outer, inner = (handed(head((b"b3", value)), None) for value in (b"0", b"1"))
    with entered(outer):
        with entered(inner):
            assert current() is inner
        assert current() is outer
    assert current() is None


async def test_tasks_and_copied_contexts_have_it_and_neighbours_do_not() -> None:
    seen: list[bytes] = []

    async def serve(value: bytes) -> None:
        with entered(handed(head((b"x-request-id", value)), None)):
            await asyncio.sleep(0)
            task = asyncio.create_task(call())
            await asyncio.get_running_loop().run_in_executor(None, contextvars.copy_context().run, note)
            await task

    async def call() -> None:
        await asyncio.sleep(0)
        note()

    def note() -> None:
        asked = head()
        hand_on(asked, inside=True)
        seen.append(asked.headers[0][1])

    await asyncio.gather(serve(b"1"), serve(b"2"))
    assert sorted(seen) == [b"1", b"1", b"2", b"2"]
    assert current() is None
