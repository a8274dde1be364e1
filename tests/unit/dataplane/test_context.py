"""What an inbound request hands on to outbound calls: headers, time, caller."""

import asyncio
import contextvars
import threading

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
    assert (None if what.wait is None else what.wait.until) == (None if seconds is None else 100.0 + seconds)


def test_time_runs_and_runs_out() -> None:
    with entered(handed(head((b"grpc-timeout", b"2S")), None, clock=lambda: 100.0)):
        assert time_left(lambda: 100.5) == 1.5
        assert time_left(lambda: 102.0) == 0.0
        assert time_left(lambda: 200.0) == -98.0


def test_nobody_waits_for_what_goes_on_after_the_response() -> None:
    what = handed(head((b"grpc-timeout", b"2S"), (b"x-request-id", b"7")), None, clock=lambda: 100.0)
    with entered(what):
        copied = contextvars.copy_context()
        assert copied.run(time_left, lambda: 100.5) == 1.5
        what.served()
        assert time_left(lambda: 100.5) is None
    assert copied.run(time_left, lambda: 200.0) is None
    assert copied.run(out) == {b"x-request-id": b"7"}


def test_who_did_not_say_how_long_it_waits_is_served_too() -> None:
    what = handed(head(), None)
    what.served()
    with entered(what):
        assert time_left() is None


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
        ([(b"x-envoy-expected-rq-timeout-ms", b"1500"), (b"grpc-timeout", b"9S")], 1.5),
        ([(b"x-envoy-expected-rq-timeout-ms", b"9" * 20)], None),
        ([(b"grpc-timeout", b"100m")], 0.1),
        ([(b"grpc-timeout", b"1x")], None),
        ([(b"x-envoy-expected-rq-timeout-ms", b"-1")], None),
        ([], None),
    ],
)
def test_the_shortest_time_counts(headers: list[Header], left: float | None) -> None:
    with entered(handed(head(*headers), None, clock=lambda: 100.0)):
        found = time_left(lambda: 100.0)
        assert found == pytest.approx(left) if left is not None else found is None
