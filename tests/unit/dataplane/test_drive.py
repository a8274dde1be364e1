"""The two drivers do the same for the same outcomes, and every flow ends once."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshlib.core.actions import (
    Attempt,
    BodyEnded,
    Deliver,
    Discard,
    Event,
    Facts,
    Flow,
    Mirror,
    Raise,
    Reply,
    Sleep,
)
from meshlib.core.balance.cluster import Upstream
from meshlib.core.request import Failed, Failure, RequestHead, ResponseHead
from meshlib.dataplane.body import BodyBroken
from meshlib.dataplane.drive import AsyncBody, Body, FlightFailed, adrive, drive
from meshlib.dataplane.http.limits import Broken, TooSlow

HEAD = RequestHead("GET", "http", "a", "/")
FACTS = Facts(route="r")
MIRROR = Mirror("m", ("m", 1), HEAD, Upstream(), 1.0)
LOST = Failed(Failure.RESET, "lost")


class Response:
    """A response of both kinds: its body is `script`, exceptions are raised."""

    version = b"HTTP/1.1"
    whole: bytes | None = None
    reason = b"OK"

    def __init__(self, status: int, script: tuple[bytes | BaseException, ...], log: list[str]) -> None:
        self.head = ResponseHead(status)
        self.script = script
        self.log = log

    def __iter__(self) -> Iterator[bytes]:
        for part in self.script:
            if isinstance(part, BaseException):
                raise part
            yield part

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for part in self:
            yield part

    def close(self) -> None:
        self.log.append(f"closed {self.head.status}")


class Hands:
    """Does what a script says, and keeps what it was told."""

    def __init__(self, outcomes: list[Any], body: tuple[bytes | BaseException, ...], log: list[str]) -> None:
        self.outcomes = iter(outcomes)
        self.body = body
        self.log = log
        self.whole: bytes | None = None

    def send(self, attempt: Attempt) -> Any:
        outcome = next(self.outcomes)
        self.log.append(f"sent {attempt.number}")
        if isinstance(outcome, BaseException):
            raise outcome
        if isinstance(outcome, Failed):
            return outcome
        made = Response(outcome, self.body, self.log)
        made.whole = self.whole
        return made

    def mirror(self, mirror: Mirror) -> None:
        self.log.append("mirrored")

    def sleep(self, seconds: float) -> None:
        self.log.append(f"slept {seconds}")


class AsyncHands(Hands):
    async def send(self, attempt: Attempt) -> Any:
        return super().send(attempt)

    async def sleep(self, seconds: float) -> None:  # type: ignore[override]
        super().sleep(seconds)


def tries(log: list[str], most: int = 3, mirrors: bool = False) -> Flow:
    """A flow of `most` tries that keeps how it ended."""
    try:
        if mirrors:
            yield MIRROR
        for number in itertools.count(1):
            got = yield Attempt("c", ("a", 1), HEAD, Upstream(), None, None, number)
            if isinstance(got, ResponseHead) and got.status < 500:
                ended: Event = yield Deliver((), FACTS)
                log.append(f"ended {ended}")
                return
            if number == most:
                if isinstance(got, Failed):
                    yield Raise(got, FACTS)
                yield Reply(503, FACTS, (), b"none")
            if isinstance(got, ResponseHead):
                yield Discard()
            yield Sleep(number / 10)
    finally:
        log.append("given back")


def run(outcomes: list[Any], body: tuple[bytes | BaseException, ...], chunks: int | None) -> list[Any]:
    """What happened, by the blocking driver; `chunks`: how many are read before the body is closed."""
    log: list[Any] = []
    try:
        answer = drive(tries(log, mirrors=True), Hands(outcomes, body, log))  # type: ignore[arg-type]
        log.append(answer.status)
        if isinstance(answer.body, Body):
            try:
                iterator = iter(answer.body)
                log.extend(itertools.islice(iterator, chunks))
            finally:
                answer.body.close()
    except BaseException as error:
        log.append(repr(error))
    return log


async def arun(outcomes: list[Any], body: tuple[bytes | BaseException, ...], chunks: int | None) -> list[Any]:
    """As `run`, by the driver for tasks."""
    log: list[Any] = []
    try:
        answer = await adrive(tries(log, mirrors=True), AsyncHands(outcomes, body, log))  # type: ignore[arg-type]
        log.append(answer.status)
        if isinstance(answer.body, AsyncBody):
            try:
                iterator = aiter(answer.body)
                for _ in range(100 if chunks is None else chunks):
                    try:
                        log.append(await anext(iterator))
                    except StopAsyncIteration:
                        break
            finally:
                answer.body.close()
    except BaseException as error:
        log.append(repr(error))
    return log


OUTCOMES = st.sampled_from([200, 404, 500, 503, LOST, TooSlow("read", 1.0), KeyboardInterrupt()])
BODIES = st.lists(st.sampled_from([b"a", b"b", Broken(LOST), TooSlow("read", 1.0)]), max_size=4).map(tuple)


@settings(max_examples=300, deadline=None)
@given(st.lists(OUTCOMES, min_size=3, max_size=3), BODIES, st.sampled_from([None, 0, 1, 2]))
def test_both_drivers_do_the_same(
    outcomes: list[Any], body: tuple[bytes | BaseException, ...], chunks: int | None
) -> None:
    log = run(outcomes, body, chunks)
    assert log == asyncio.run(arun(outcomes, body, chunks))
    assert log.count("given back") == 1
    assert log[0] == "mirrored"


def test_a_body_read_to_its_end_is_complete() -> None:
    log = run([503, LOST, 200], (b"a", b"b"), None)
    told = f"ended {BodyEnded()}"
    assert log == [
        *("mirrored", "sent 1", "closed 503", "slept 0.1", "sent 2", "slept 0.2", "sent 3", 200),
        *(b"a", b"b", told, "given back", "closed 200"),
    ]


async def test_a_body_that_came_with_its_head_ends_the_flow_at_once() -> None:
    for whole in (b"body", b""):
        log: list[Any] = []
        hands, ahands = Hands([200], (), log), AsyncHands([200], (), log)
        hands.whole = ahands.whole = whole
        answers = [drive(tries(log), hands), await adrive(tries(log), ahands)]  # type: ignore[arg-type]
        assert [(answer.body, answer.own) for answer in answers] == [(whole, False)] * 2
        assert log == ["sent 1", f"ended {BodyEnded()}", "given back"] * 2


def test_a_body_that_broke_tells_the_flow_and_the_application() -> None:
    log = run([200], (b"a", Broken(LOST)), None)
    told = f"ended {BodyEnded(False, LOST)}"
    assert log[3:] == [b"a", told, "given back", "closed 200", "FlightFailed('lost')"]


def test_a_failure_carries_its_facts() -> None:
    log: list[str] = []
    with pytest.raises(FlightFailed) as raised:
        drive(tries(log, most=1), Hands([LOST], (), log))  # type: ignore[arg-type]
    assert (raised.value.failed, raised.value.facts, log) == (LOST, FACTS, ["sent 1", "given back"])


def test_the_applications_error_comes_up_as_it_was() -> None:
    own, why = FileNotFoundError("no more"), KeyError("why")
    own.__cause__ = why
    broken = BodyBroken()
    broken.__cause__ = own
    log: list[str] = []
    with pytest.raises(FileNotFoundError) as raised:
        drive(tries(log), Hands([broken], (), log))  # type: ignore[arg-type]
    assert raised.value is own
    assert own.__cause__ is why
    assert log == ["sent 1", "given back"]


async def test_a_cancelled_request_gives_its_slot_back() -> None:
    log: list[str] = []

    class Never(AsyncHands):
        async def send(self, attempt: Attempt) -> Any:
            await asyncio.Event().wait()

    task = asyncio.create_task(adrive(tries(log), Never([], (), log)))  # type: ignore[arg-type]
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert log == ["given back"]
