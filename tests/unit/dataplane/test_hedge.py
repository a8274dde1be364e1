"""The tries of a hedged request that are in flight: begun, awaited, given up."""

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from meshlib.core.actions import Attempt, Await, Begin, Ended
from meshlib.core.balance.cluster import Upstream
from meshlib.core.request import Failed, Failure, RequestHead, ResponseHead
from meshlib.dataplane.body import BodyBroken, RequestBody
from meshlib.dataplane.hedge import AsyncTries
from meshlib.dataplane.hedge_blocking import Feed, Threads, Tries
from meshlib.dataplane.http.cut import Cut
from meshlib.dataplane.http.limits import Broken

HEAD = RequestHead("GET", "http", "a", "/")
LOST = Failed(Failure.RESET, "lost")


def begin(number: int) -> Begin:
    return Begin(Attempt("c", ("a", 1), HEAD, Upstream(), None, None, number))


class Response:
    def __init__(self, closed: list[int], number: int) -> None:
        self.head = ResponseHead(200)
        self.closed, self.number = closed, number

    def close(self) -> None:
        self.closed.append(self.number)


class Sender:
    """Tries end when the test says so; then `closed` has those whose response was dropped."""

    def __init__(self) -> None:
        self.closed: list[int] = []
        self.threads: dict[int, threading.Thread] = {}
        self.cuts: dict[int, Cut | None] = {}
        self.go = {number: threading.Event() for number in (1, 2, 3)}
        self.outcomes: dict[int, Any] = {}

    def send(self, attempt: Attempt, cut: Cut | None, feed: Feed | None) -> Any:
        self.threads[attempt.number], self.cuts[attempt.number] = threading.current_thread(), cut
        assert self.go[attempt.number].wait(60)
        outcome = self.outcomes.get(attempt.number, Response(self.closed, attempt.number))
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    def join(self) -> None:
        for thread in self.threads.values():
            thread.join(60)


def test_threads_are_awaited_in_the_order_in_which_they_end() -> None:
    sender = Sender()
    sender.outcomes[2] = LOST
    tries = Tries(sender.send, Threads(), lambda: None)
    assert [tries.do(begin(number)) for number in (1, 2)] == [(None, None)] * 2
    assert tries.do(Await(0.001)) == (None, None)
    sender.go[2].set()
    assert tries.do(Await(60)) == (None, Ended(2, LOST))
    sender.go[1].set()
    response, event = tries.do(Await(None))
    assert isinstance(response, Response)
    assert event == Ended(1, ResponseHead(200))
    tries.close()
    assert sender.closed == []


def test_what_is_given_up_is_cut_off_and_a_late_response_is_closed() -> None:
    sender = Sender()
    tries = Tries(sender.send, Threads(), lambda: None)
    for number in (1, 2, 3):
        tries.do(begin(number))
    sender.go[1].set()
    response, _ = tries.do(Await(60))
    assert response is not None
    sender.go[2].set()
    tries.close()
    assert {number: cut is not None and cut.done for number, cut in sender.cuts.items() if number == 3}[3]
    sender.go[3].set()
    sender.join()
    assert sorted(sender.closed) == [2, 3]


def test_the_callers_thread_makes_the_try_when_too_many_others_are_at_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("meshlib.dataplane.hedge_blocking.MOST", 1)
    threads, sender = Threads(), Sender()
    busy = Tries(sender.send, threads, lambda: None)
    busy.do(begin(3))
    sender.go[1].set()
    tries = Tries(sender.send, threads, RequestBody(iter([b"a"])).unread)
    tries.do(begin(1))
    assert sender.threads[1] is threading.current_thread()
    assert sender.cuts[1] is None
    assert tries.do(Await(0.0))[1] == Ended(1, ResponseHead(200))
    sender.go[3].set()
    sender.threads.pop(1)
    sender.join()


def test_an_error_of_a_try_comes_out_of_the_wait() -> None:
    sender = Sender()
    sender.outcomes[1] = error = KeyError("own")
    tries = Tries(sender.send, Threads(), lambda: None)
    tries.do(begin(1))
    sender.go[1].set()
    with pytest.raises(KeyError) as raised:
        tries.do(Await(60))
    assert raised.value is error
    tries.close()


class Reader(Sender):
    """Reads what it is fed, as far as the test lets it."""

    def __init__(self) -> None:
        super().__init__()
        self.read: dict[int, list[bytes]] = {}
        self.most: dict[int, int] = {}
        self.failed: list[Failed] = []

    def send(self, attempt: Attempt, cut: Cut | None, feed: Feed | None) -> Any:
        read = self.read[attempt.number] = list[bytes]()
        assert feed is not None
        try:
            for part in feed:
                read.append(part)
                if len(read) == self.most.get(attempt.number):
                    return LOST
        except Broken as error:
            self.failed.append(error.failed)
            raise
        return super().send(attempt, cut, feed)


def test_a_body_is_read_by_the_caller_for_a_try_on_another_thread() -> None:
    reader, readers = Reader(), list[threading.Thread]()

    def source() -> Iterator[bytes]:
        for part in (b"a", b"", b"b", b"c"):
            readers.append(threading.current_thread())
            yield part

    body = RequestBody(source())
    tries = Tries(reader.send, Threads(), body.unread)
    reader.most[1] = 2
    tries.do(begin(1))
    assert tries.do(Await(60)) == (None, Ended(1, LOST))
    assert (reader.read[1], body.whole()) == ([b"a", b"b"], False)
    tries.do(begin(2))
    assert tries.do(Await(0.01)) == (None, None)
    assert (reader.read[2], body.whole()) == ([b"a", b"b", b"c"], True)
    reader.go[2].set()
    assert tries.do(Await(60))[1] == Ended(2, ResponseHead(200))
    assert set(readers) == {threading.current_thread()}
    assert threading.current_thread() is not reader.threads[2]
    tries.close()


def test_a_try_whose_caller_gives_up_is_not_left_waiting_for_the_body() -> None:
    def broken() -> Iterator[bytes]:
        yield b"a"
        raise KeyError("own")

    reader = Reader()
    tries = Tries(reader.send, Threads(), RequestBody(broken()).unread)
    tries.do(begin(1))
    with pytest.raises(BodyBroken):
        tries.do(Await(60))
    before = threading.enumerate()
    tries.close()
    for thread in before:
        if thread.name == "meshlib-hedge":
            thread.join(60)
    assert (reader.read[1], reader.failed) == ([b"a"], [Failed(Failure.RESET, "given up")])


class AsyncSender:
    """As `Sender`; a cancelled try says so, or ends all the same."""

    def __init__(self) -> None:
        self.closed: list[int] = []
        self.cancelled: list[int] = []
        self.go = {number: asyncio.Event() for number in (1, 2, 3)}
        self.outcomes: dict[int, Any] = {}
        self.slept: list[float] = []

    async def send(self, attempt: Attempt) -> Any:
        number = attempt.number
        try:
            await self.go[number].wait()
        except asyncio.CancelledError:
            self.cancelled.append(number)
            if number != 3:
                raise
        outcome = self.outcomes.get(number, Response(self.closed, number))
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)


async def test_tasks_are_awaited_and_what_is_given_up_is_cancelled_or_closed() -> None:
    sender = AsyncSender()
    tries = AsyncTries(sender.send, sender.sleep)
    for number in (1, 2, 3):
        assert await tries.do(begin(number)) == (None, None)
    assert await tries.do(Await(5.0)) == (None, None)
    assert sender.slept == [5.0]
    sender.go[1].set()
    response, event = await tries.do(Await(None))
    assert isinstance(response, Response)
    assert event == Ended(1, ResponseHead(200))
    tries.close()
    while len(asyncio.all_tasks()) > 1:
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert sender.cancelled == [2, 3]
    assert sender.closed == [3]


async def test_an_error_of_a_task_comes_out_of_the_wait_and_one_nobody_awaits_is_lost() -> None:
    sender = AsyncSender()
    sender.outcomes = {1: KeyError("own"), 2: KeyError("nobody's")}
    tries = AsyncTries(sender.send, sender.sleep)
    for number in (1, 2):
        await tries.do(begin(number))
        sender.go[number].set()
    with pytest.raises(KeyError, match="own"):
        await tries.do(Await(None))
    tries.close()
    await asyncio.sleep(0)


async def test_who_is_cancelled_while_it_waits_gives_up_what_is_in_flight() -> None:
    sender = AsyncSender()
    tries = AsyncTries(sender.send, asyncio.sleep)

    async def wait() -> None:
        await tries.do(begin(1))
        try:
            await tries.do(Await(60.0))
        finally:
            tries.close()

    task = asyncio.create_task(wait())
    while not task.get_coro().cr_await:  # type: ignore[union-attr]
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    while len(asyncio.all_tasks()) > 1:
        await asyncio.sleep(0)
    assert sender.cancelled == [1]


def test_where_no_thread_is_to_be_had_the_caller_makes_the_try(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_more(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("meshlib.dataplane.hedge_blocking.MOST", 1)
    monkeypatch.setattr(threading.Thread, "start", no_more)
    threads, sender = Threads(), Sender()
    for number in (1, 2):
        sender.go[number].set()
        Tries(sender.send, threads, lambda: None).do(begin(number))
        assert sender.threads[number] is threading.current_thread()
