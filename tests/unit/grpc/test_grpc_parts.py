"""gRPC's metadata, messages to be sent again, what statuses mean, the pool of channels: without I/O."""

import asyncio
import itertools
import math
import pickle
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.fake_mesh import fake_mesh

import meshlib
from meshlib.core.actions import Attempt, Facts
from meshlib.core.balance.cluster import Upstream
from meshlib.core.request import Failed, Failure, RequestHead, ResponseHead
from meshlib.dataplane.drive import FlightFailed
from meshlib_grpc.bodies import AsyncMessages, Message, Messages, framed, messages
from meshlib_grpc.errors import FLAGS, of_failure
from meshlib_grpc.metadata import sendable, status_of, to_metadata, to_request
from meshlib_grpc.options import target_of
from meshlib_grpc.outcome import Begun, Ended, doubt_of, failure, of_status
from meshlib_grpc.pool import READY, Carrier, Pool

HEAD = RequestHead("POST", "http", "reviews:9080", "/a.B/C")
ATTEMPT = Attempt("c", ("127.0.0.1", 1), HEAD, Upstream(), None, None)


@given(st.lists(st.binary(max_size=20), max_size=8))
def test_messages_are_framed_and_read_back(found: list[bytes]) -> None:
    assert list(messages(b"".join(map(framed, found)))) == found


@given(st.binary())
def test_bytes_of_metadata_survive(value: bytes) -> None:
    headers = to_request((("key-bin", value),), None)
    assert sendable(headers) == [("key-bin", value)]
    assert to_metadata(headers) == (("key-bin", value),)


def test_what_is_no_base64_stays_as_it_is() -> None:
    assert to_metadata([(b"key-bin", b"%%%")]) == (("key-bin", b"%%%"),)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(1.5, b"1500m"), (0.0, b"0m"), (-1.0, b"0m"), (10**6, b"1000000S"), (1e12, b"99999999S")],
)
def test_time_is_said_in_grpcs_words(seconds: float, said: bytes) -> None:
    assert dict(to_request(None, seconds))[b"grpc-timeout"] == said


def test_what_grpc_writes_itself_is_not_sent_twice() -> None:
    assert sendable(to_request((("x", "1"),), 3.0)) == [("x", b"1")]


@pytest.mark.parametrize(("value", "number"), [(b"14", 14), (b"0", 0), (b"", 2), (b"abc", 2), (b"-1", 2)])
def test_a_status_in_headers(value: bytes, number: int) -> None:
    assert status_of([(b"grpc-status", value), (b"grpc-message", b"a%20b")]) == (number, "a b")


def ended(code: str, words: str, *trailing: tuple[str, str]) -> Ended:
    return Ended(getattr(grpc.StatusCode, code), words, trailing)


REFUSED = "failed to connect to all addresses; last error: UNKNOWN: x: refused"


@pytest.mark.parametrize(
    ("words", "how"),
    [
        (REFUSED, Failure.CONNECT_FAILED),
        ("failed to connect to all addresses; Trying to connect an http1.x server", Failure.PROTOCOL),
        ("Socket closed", Failure.RESET),
        ("Stream removed (recvmsg:Connection reset by peer (104))", Failure.RESET),
        ("GOAWAY received; Error code: 2", Failure.RESET),
    ],
)
def test_what_happened_to_the_connection(words: str, how: Failure) -> None:
    one = ended("UNAVAILABLE", words)
    doubt = doubt_of(one)
    found = of_status(one, (), ATTEMPT, lambda: 0.0, doubt)
    assert isinstance(found, Failed)
    assert found.how is how
    assert found.connected is (how is not Failure.CONNECT_FAILED)
    # The connection did not confirm it.
    assert of_status(one, (), ATTEMPT, lambda: 0.0) == ResponseHead(200, ((b"grpc-status", b"14"),))


@pytest.mark.parametrize(
    "one",
    [
        ended("UNAVAILABLE", REFUSED, ("t", "1")),
        ended("UNAVAILABLE", "Socket closed", ("t", "1")),
        ended("INTERNAL", "Socket closed"),
        ended("UNAVAILABLE", "db: " + REFUSED),
        ended("UNAVAILABLE", "db: Connection reset by peer"),
        ended("UNAVAILABLE", "Stream removed (RST_STREAM (Received RST_STREAM with error code 7))"),
        ended("UNAVAILABLE", "no such luck"),
        ended("UNAVAILABLE", "Failed parsing HTTP/2"),
        ended("INTERNAL", "db: Failed parsing HTTP/2"),
        ended("INTERNAL", "Failed parsing HTTP/2", ("t", "1")),
    ],
)
def test_what_says_nothing_of_the_connection(one: Ended) -> None:
    assert doubt_of(one) is None


@pytest.mark.parametrize("code", ["UNKNOWN", "INTERNAL"])
def test_a_peer_that_breaks_the_connection_by_what_it_says(code: str) -> None:
    one = ended(code, "Stream removed (Failed parsing HTTP/2 (Frame size 16777215 is larger))")
    doubt = doubt_of(one)
    found = of_status(one, (), ATTEMPT, lambda: 0.0, doubt)
    assert isinstance(found, Failed)
    assert found.how is Failure.PROTOCOL
    after = of_status(one, (), ATTEMPT, lambda: 0.0, doubt, message=True)
    assert isinstance(after, Begun)
    assert after.failed is not None
    assert after.failed.how is Failure.BROKEN_OFF
    assert isinstance(of_status(one, (), ATTEMPT, lambda: 0.0), ResponseHead)


def test_a_head_that_is_too_long() -> None:
    words = "Stream removed (received metadata size exceeds hard limit (18170 vs. 16384);  k0:9034B)"
    found = of_status(ended("RESOURCE_EXHAUSTED", words), (("k0", "x"),), ATTEMPT, lambda: 0.0)
    assert isinstance(found, Failed)
    assert found.how is Failure.PROTOCOL
    for one in (
        ended("RESOURCE_EXHAUSTED", words, ("t", "1")),
        ended("RESOURCE_EXHAUSTED", f"db: {words}"),
        ended("UNAVAILABLE", words),
    ):
        assert isinstance(of_status(one, (), ATTEMPT, lambda: 0.0), ResponseHead)


@pytest.mark.parametrize(
    ("code", "number", "how"),
    [
        ("UNAVAILABLE", 7, Failure.REFUSED_STREAM),
        ("INTERNAL", 2, Failure.REMOTE_RESET),
        ("CANCELLED", 8, Failure.REMOTE_RESET),
        ("RESOURCE_EXHAUSTED", 11, Failure.REMOTE_RESET),
        ("INTERNAL", 7, None),
        ("UNAVAILABLE", 2, None),
    ],
)
def test_a_stream_that_was_reset(code: str, number: int, how: Failure | None) -> None:
    words = f"Received RST_STREAM with error code {number}"
    for said in (words, f"Stream removed (RST_STREAM ({words}))"):
        found = failure(ended(code, said), ATTEMPT, lambda: 0.0)
        assert (None if found is None else found.how) is how
    others = (ended(code, words, ("t", "1")), ended(code, f"db: {words}"), ended(code, f"{words}, he said"))
    assert [failure(one, ATTEMPT, lambda: 0.0) for one in others] == [None] * 3


@pytest.mark.parametrize("code", [one for one in grpc.StatusCode if one is not grpc.StatusCode.OK])
def test_a_servers_own_status_is_a_response(code: grpc.StatusCode) -> None:
    one = Ended(code, "words", (("t", "1"),))
    number = b"%d" % code.value[0]
    found = of_status(one, (), ATTEMPT, lambda: 0.0)
    assert found == ResponseHead(200, ((b"t", b"1"), (b"grpc-status", number)))
    # After a head of its own it is no part of that.
    found = of_status(one, (("i", "2"),), ATTEMPT, lambda: 0.0)
    assert found == Begun(ResponseHead(200, ((b"i", b"2"),)), None)
    found = of_status(one, (), ATTEMPT, lambda: 0.0, message=True)
    assert found == Begun(ResponseHead(200, ()), None)


def test_a_response_that_is_not_grpcs_is_its_http_status() -> None:
    words = "Received http2 header with status: "
    assert of_status(ended("UNAVAILABLE", words + "503"), (), ATTEMPT, lambda: 0.0) == ResponseHead(503)
    for one in (ended("UNAVAILABLE", words + "403"), ended("UNAVAILABLE", words + "503", ("t", "1"))):
        found = of_status(one, (), ATTEMPT, lambda: 0.0)
        assert isinstance(found, ResponseHead)
        assert found.status == 200


@pytest.mark.parametrize(
    ("one", "whole", "now", "how"),
    [
        (1.0, 9.0, 1.0, Failure.TRY_TIMED_OUT),
        (1.0, 9.0, 9.0, Failure.TIMED_OUT),
        (None, 9.0, 9.0, Failure.TIMED_OUT),
        (9.0, 9.0, 9.0, Failure.TIMED_OUT),
        (1.0, 9.0, 0.5, None),
        (None, None, 0.5, None),
    ],
)
def test_time_that_ran_out_here(one: Any, whole: Any, now: float, how: Failure | None) -> None:
    attempt = ATTEMPT._replace(try_deadline=one, deadline=whole)
    found = failure(Ended(grpc.StatusCode.DEADLINE_EXCEEDED), attempt, lambda: now)
    assert (None if found is None else found.how) is how


def test_an_error_can_be_pickled() -> None:
    failed, facts = Failed(Failure.TIMED_OUT, "late"), Facts("r", cluster="c", flag="UT")
    again = pickle.loads(pickle.dumps(of_failure(FlightFailed(failed, facts))))
    assert isinstance(again, meshlib.UpstreamTimedOut)
    assert (again.code(), again.trailing_metadata()) == (grpc.StatusCode.DEADLINE_EXCEEDED, ((FLAGS, "UT"),))


@pytest.mark.parametrize(
    ("address", "target"),
    [
        (("10.0.0.1", 80), "ipv4:10.0.0.1:80"),
        (("::1", 80), "ipv6:[::1]:80"),
        (("db.example", 80), "dns:///db.example:80"),
        (("/run/x.sock", 0), "unix:/run/x.sock"),
        (("@name", 0), "unix-abstract:name"),
    ],
)
def test_where_a_channel_leads(address: tuple[str, int], target: str) -> None:
    assert target_of(ATTEMPT._replace(address=address)) == target


# Messages


def test_messages_are_given_to_each_try() -> None:
    body = Messages(iter([b"a", b"", b"c"]))
    first = body.each()
    assert next(first) == b"a"
    assert body.replayable()
    assert list(body.each()) == [b"a", b"", b"c"]
    assert list(first) == [b"", b"c"]
    known: list[bytes | None] = []
    body.when_known(known.append)
    assert list(messages(known[0] or b"")) == [b"a", b"", b"c"]


def test_what_one_try_has_taken_is_kept_for_another() -> None:
    body = Messages(iter([b"a", b"b", b"c"]))
    first, second = body.reading(), body.reading()
    ahead, behind = first.each(), second.each()
    assert [next(ahead), next(ahead), next(behind)] == [b"a", b"b", b"a"]
    body.once()
    assert (next(behind), len(body._kept_messages)) == (b"b", 1)
    first.leave()
    assert list(behind) == [b"c"]
    body.drop()
    assert (body._kept_messages, list(ahead)) == ([], [])


async def test_nothing_goes_between_two_tries() -> None:
    body = AsyncMessages(None)
    body.limit = 10
    first = body.reading()
    body._add(b"a")
    assert await anext(first.each()) == b"a"
    first.leave()
    body._add(b"too long")
    assert body.replayable()
    each = body.reading().each()
    assert [await anext(each), await anext(each)] == [b"a", b"too long"]
    body._add(b"c")
    assert (body.replayable(), body._kept_messages) == (False, [b"c"])


def test_a_try_that_was_given_up_shares_what_it_waits_for() -> None:
    inside, go = threading.Event(), threading.Event()

    def slowly() -> Iterator[bytes]:
        inside.set()
        assert go.wait(60)
        yield b"a"
        yield b"b"

    body = Messages(slowly())
    old = threading.Thread(target=lambda: next(body.each()))
    old.start()
    assert inside.wait(60)
    found: list[bytes] = []
    new = threading.Thread(target=lambda: found.extend(body.each()))
    new.start()
    go.set()
    old.join(60)
    new.join(60)
    assert found == [b"a", b"b"]


def test_too_many_messages_are_not_kept() -> None:
    body = Messages(itertools.repeat(b"x" * 1000, 3000))
    known: list[bytes | None] = []
    body.when_known(known.append)
    each = body.each()
    for _ in range(1500):
        next(each)
    assert not body.replayable()
    assert known == [None]
    assert len(body._kept_messages) < 3
    assert sum(1 for _ in each) == 1500


def test_an_iterator_that_raises_raises_in_each_try() -> None:
    def broken() -> Iterator[bytes]:
        yield b"a"
        raise KeyError("mine")

    body = Messages(broken())
    for each in (body.each(), body.each()):
        assert next(each) == b"a"
        with pytest.raises(KeyError, match="mine"):
            next(each)
    assert not body.replayable()


async def test_a_try_that_is_cancelled_leaves_the_iterator_alone() -> None:
    go = asyncio.Event()

    async def slowly() -> AsyncIterator[bytes]:
        await go.wait()
        yield b"a"
        yield b"b"

    body = AsyncMessages(slowly())
    old = asyncio.ensure_future(anext(body.each()))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    old.cancel()
    await asyncio.wait({old})
    go.set()
    assert [one async for one in body.each()] == [b"a", b"b"]


async def test_who_writes_waits_until_a_try_has_taken_it() -> None:
    body = AsyncMessages(None)
    writing = asyncio.ensure_future(body.write(b"a"))
    await asyncio.sleep(0)
    assert not writing.done()
    each = body.each()
    assert await anext(each) == b"a"
    await writing
    body.end()
    assert [one async for one in each] == []
    assert [one async for one in body.each()] == [b"a"]


def test_one_message() -> None:
    body, known = Message(b"hello"), list[bytes | None]()
    body.when_known(known.append)
    assert (known, body.size, body.replayable()) == ([framed(b"hello")], 10, True)


# The pool


class Closing:
    """A pool of names, whose end is noted, as is when it is to be looked after."""

    def __init__(self, most_idle: int = 9) -> None:
        self.now = 0.0
        self.closed: list[str] = []
        self.expected: list[float] = []
        self.states: dict[str, int] = {}
        self.view = fake_mesh([1, 2]).view
        self.pool: Pool[str] = Pool(
            lambda: self.now,
            lambda: self.view,
            self.closed.append,
            self.expected.append,
            most_idle,
            state=lambda name: self.states.get(name, READY),
        )

    def taken(self, name: str, attempt: Attempt = ATTEMPT, secured: object = None) -> Carrier[str]:
        return self.pool.find(attempt, self.now) or self.pool.add(attempt, name, secured)

    def used(self, name: str, attempt: Attempt = ATTEMPT, secured: object = None) -> str:
        found = self.taken(name, attempt, secured)
        self.pool.release(found)
        return found.channel

    def look(self, now: float) -> list[str]:
        """What is closed then."""
        self.now = now
        self.closed.clear()
        self.expected.clear()
        self.pool.look()
        return self.closed


def to(port: int, **upstream: float) -> Attempt:
    return ATTEMPT._replace(address=("127.0.0.1", port), upstream=Upstream(**upstream))  # type: ignore[arg-type]


def test_a_channel_is_used_again() -> None:
    one = Closing()
    assert one.used("a") == one.used("b") == "a"
    other = RequestHead("POST", "http", "other:1", "/")
    assert one.used("b", ATTEMPT._replace(head=other)) == "b"
    assert one.used("c", to(2)) == "c"
    assert (len(one.pool), one.closed) == (3, [])
    one.pool.close()
    assert sorted(one.closed) == ["a", "b", "c"]


def test_a_channel_that_is_in_use_is_closed_after_its_last_call() -> None:
    one = Closing()
    found = one.pool.add(ATTEMPT, "a", None)
    again = one.pool.find(ATTEMPT, 0.0)
    assert again is found
    one.pool.release(found, broken=True)
    assert (len(one.pool), one.closed) == (0, [])
    one.pool.release(found)
    assert one.closed == ["a"]


def test_what_ends_a_channel() -> None:
    one = Closing()
    limited = ATTEMPT._replace(upstream=Upstream(max_requests_per_connection=2))
    assert [one.used(name, limited) for name in "abcd"] == ["a", "a", "c", "c"]
    assert one.closed == ["a", "c"]
    short = ATTEMPT._replace(upstream=Upstream(idle_timeout=5.0))
    one = Closing()
    one.used("a", short)
    one.now = 6.0
    assert one.used("b", short) == "b"
    old = ATTEMPT._replace(upstream=Upstream(max_connection_duration=5.0))
    one = Closing()
    one.used("a", old)
    one.now = 5.0
    assert one.used("b", old) == "b"


def test_one_that_was_made_with_an_older_certificate_serves_until_there_is_another() -> None:
    one = Closing()
    one.used("a", secured="first")
    held = one.taken("b", secured="second")
    assert (held.channel, one.closed) == ("a", [])
    assert one.pool.add(ATTEMPT, "b", "second", idle=True).active == 0
    assert (one.used("c"), one.closed) == ("b", [])
    one.pool.release(held)
    assert one.closed == ["a"]
    one.pool.leave(one.taken("c"))
    assert (one.used("d"), one.closed) == ("d", ["a"])


def test_a_channel_is_one_connection() -> None:
    idle, connecting, failing = 0, 1, 3
    one = Closing()
    one.states["a"] = connecting
    assert one.used("a") == one.used("b") == "a"
    one.states["a"] = READY
    assert one.used("b") == "a"
    for number, state in enumerate((idle, connecting, failing)):
        one.states[str(number)] = READY
        one.used("x")
        one.states["a" if number == 0 else str(number - 1)] = state
        assert one.used(str(number)) == str(number)
    one = Closing()
    one.states["a"] = failing
    one.used("a")
    assert (one.used("b"), one.closed) == ("b", ["a"])


def test_all_channels_may_be_closed_at_once() -> None:
    one = Closing()
    one.taken("worn", to(1, max_requests_per_connection=1))
    one.taken("used", to(2))
    one.pool.close(now=True)
    assert sorted(one.closed) == ["used", "worn"]


def test_what_is_made_after_the_end_ends_with_it() -> None:
    one = Closing()
    one.pool.close()
    one.pool.add(to(1), "late", None)
    one.pool.close(now=True)
    assert one.closed == ["late"]
    one.pool.add(to(2), "later", None)
    assert (one.closed, len(one.pool)) == (["late", "later"], 0)


def test_what_was_not_listed_when_it_was_made_ends_with_the_rest() -> None:
    one = Closing()
    one.view = fake_mesh([2]).view
    one.taken("gone", to(1))
    one.pool.close(now=True)
    assert one.closed == ["gone"]


def test_channels_end_when_they_are_due_though_nobody_calls() -> None:
    one = Closing()
    one.used("long", to(1, idle_timeout=60.0))
    one.used("short", to(2, idle_timeout=5.0))
    assert (one.expected, one.pool.looks_at) == ([60.0, 5.0], 5.0)
    one.now = 4.0
    one.used("short", to(2, idle_timeout=5.0))
    assert (one.look(5.0), one.expected) == ([], [4.0])
    assert (one.look(9.0), one.expected) == (["short"], [51.0])
    held = one.taken("long", to(1, idle_timeout=60.0))
    assert (one.look(60.0), one.expected) == ([], [])
    one.pool.release(held)
    assert one.expected == [60.0]
    assert (one.look(120.0), len(one.pool)) == (["long"], 0)
    assert one.pool.looks_at == math.inf


def test_one_that_is_old_enough_is_left_and_closed_after_its_last_call() -> None:
    one = Closing()
    held = one.taken("a", to(1, max_connection_duration=5.0, idle_timeout=60.0))
    assert one.expected == [5.0]
    assert (one.look(5.0), len(one.pool)) == ([], 0)
    one.pool.release(held)
    assert (one.closed, one.pool.looks_at) == (["a"], math.inf)


def test_a_channel_goes_with_its_endpoint() -> None:
    one = Closing()
    one.used("a")
    one.used("m", ATTEMPT._replace(cluster="mirror|c"))
    held = one.taken("h", ATTEMPT._replace(head=RequestHead("POST", "http", "other:1", "/")))
    one.view = fake_mesh([1]).view
    one.pool.keep_to(one.view, ["c", "m"])
    assert (one.closed, len(one.pool)) == ([], 3)
    one.view = fake_mesh([2]).view
    one.pool.keep_to(one.view, ["m"])
    assert one.closed == []
    one.pool.keep_to(one.view, iter(["c"]))
    assert (one.closed, len(one.pool)) == (["a", "m"], 0)
    one.pool.release(held)
    assert one.closed == ["a", "m", "h"]
    # One that was made meanwhile, by who saw an older view.
    assert (one.used("b"), one.closed[3:], len(one.pool)) == ("b", ["b"], 0)
    one.used("c", to(2))
    one.view.clusters.pop("c")  # type: ignore[attr-defined]
    one.pool.keep_to(one.view, ["c"])
    assert one.closed[4:] == ["c"]


def test_idle_channels_are_bounded_where_another_is_made() -> None:
    one = Closing(most_idle=3)
    heads = [RequestHead("POST", "http", f"h{number}:1", "/") for number in range(6)]
    held = one.taken("held")
    for number, head in enumerate(heads):
        one.now = float(number)
        one.used(str(number), ATTEMPT._replace(head=head))
    assert (one.closed, len(one.pool)) == (["0", "1"], 5)
    one.pool.release(held)
    assert one.used("again") == "held"


def test_metadata_are_the_same_whether_their_names_were_seen_before() -> None:
    headers = [
        (b"te", b"trailers"),
        (b"X-Seen", b"1"),
        (b"x-bin", b"YQ"),
        (b"content-type", b"application/grpc"),
    ]
    assert [sendable(headers) for _ in range(2)] == [[("x-seen", b"1"), ("x-bin", b"a")]] * 2
    plain = [one for one in headers if one[0] != b"x-bin"]
    assert [sendable(plain) for _ in range(2)] == [[("x-seen", b"1")]] * 2
    for number in range(2500):
        assert sendable([(b"x-%d" % number, b"")]) == [(f"x-{number}", b"")]
