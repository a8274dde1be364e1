"""The clock and the dice of a test: time goes where somebody waits for it, in order; nothing hangs."""

import asyncio
import threading
from datetime import timedelta

import pytest

from meshlib.testing import Clock, Dice, Stuck, clock


def test_time_passes_only_when_it_is_told_to() -> None:
    time = Clock()
    assert (time(), repr(time)) == (0.0, "<Clock: 0 s>")
    time.advance(1)
    time.advance("1m30s")
    time.advance(timedelta(milliseconds=500))
    assert time() == 91.5
    time.reach(3)
    assert time() == 91.5
    time.sleep(8.5)
    assert time() == 100.0


@pytest.mark.parametrize("wrong", [-1, "5", "soon", float("inf"), float("nan"), "-3s"])
def test_a_duration_that_is_none_is_refused(wrong: float | str) -> None:
    with pytest.raises(ValueError, match="allowed is a"):
        Clock().advance(wrong)


async def test_tasks_wake_in_the_order_of_their_times() -> None:
    time, woken = Clock(), []

    async def wait(seconds: float) -> None:
        await time.asleep(seconds)
        woken.append((seconds, time()))

    await asyncio.gather(*map(wait, (5.0, 1.0, 3.0, 1.0)))
    assert woken == [(1.0, 1.0), (1.0, 1.0), (3.0, 3.0), (5.0, 5.0)]


async def test_a_task_that_was_given_up_holds_nobody_up() -> None:
    time = Clock()
    given_up = asyncio.create_task(time.asleep(1.0))
    await asyncio.sleep(0)
    given_up.cancel()
    await asyncio.gather(given_up, return_exceptions=True)
    await time.asleep(5.0)
    assert time() == 5.0


async def test_time_that_is_advanced_wakes_those_that_are_due() -> None:
    time = Clock()
    late = asyncio.create_task(time.asleep(2.0))
    await asyncio.sleep(0)
    time.advance(10)
    await late
    assert time() == 10.0


def test_threads_wait_side_by_side() -> None:
    time, woken, all_here = Clock(), [], threading.Barrier(4)

    def wait(seconds: float) -> None:
        with time.calling():
            all_here.wait()
            time.sleep(seconds)
            woken.append((seconds, time()))
            time.sleep(seconds)
            woken.append((seconds, time()))

    threads = [threading.Thread(target=wait, args=(seconds,)) for seconds in (5.0, 1.0, 3.0)]
    for thread in threads:
        thread.start()
    all_here.wait()
    for thread in threads:
        thread.join(10)
    assert woken == [(1.0, 1.0), (1.0, 2.0), (3.0, 3.0), (5.0, 5.0), (3.0, 6.0), (5.0, 10.0)]


def test_no_time_passes_while_a_thread_is_in_the_middle_of_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "LAG", 60.0)
    time, slept = Clock(), threading.Event()

    def wait() -> None:
        time.sleep(3.0)
        slept.set()

    thread = threading.Thread(target=wait)
    with time.calling(), time.calling():
        thread.start()
        assert not slept.wait(0.05)
        assert time() == 0.0
        time.sleep(2.0)
        assert time() == 2.0
        assert not slept.is_set()
    thread.join(10)
    assert time() == 3.0


def test_a_call_that_does_not_end_holds_nobody_up_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "LAG", 0.01)
    time = Clock()
    with time.calling():
        thread = threading.Thread(target=time.sleep, args=(3.0,))
        thread.start()
        thread.join(10)
        assert time() == 3.0


def test_a_thread_that_waits_for_somebody_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "LAG", 60.0)
    time = Clock()

    def wait() -> None:
        with time.calling():
            time.wait(lambda: time() >= 3.0, "three o'clock")

    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(3.0)
    thread.join(10)
    assert not thread.is_alive()


def test_who_waits_for_somebody_is_woken_by_every_step() -> None:
    time, seen = Clock(), []
    thread = threading.Thread(target=lambda: (time.wait(lambda: time() >= 2, "x"), seen.append(time())))
    thread.start()
    time.advance(1)
    time.advance(1)
    thread.join(5)
    assert seen == [2.0]


async def test_who_waits_for_nobody_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "PATIENCE", 0.001)
    with pytest.raises(Stuck, match=r"the egg boils, for 0\.001 s of real time"):
        Clock().wait(lambda: False, "the egg boils")
    with pytest.raises(Stuck, match="the egg boils"):
        await Clock().await_(lambda: False, "the egg boils")


def test_dice_fall_as_loaded_and_then_alike_in_every_run() -> None:
    one, other = Dice(), Dice()
    one.load(0.1, 0.9)
    assert repr(one) == "<Dice: 0.1, 0.9, then seed 0>"
    assert [one.random(), one.random()] == [0.1, 0.9]
    assert [one.random() for _ in range(5)] == [other.random() for _ in range(5)]
    assert one.loaded == ()
    assert Dice(1).random() != Dice(2).random()


@pytest.mark.parametrize("roll", [1, -0.1, float("nan")])
def test_a_roll_that_no_dice_show_is_refused(roll: float) -> None:
    with pytest.raises(ValueError, match="0 or more and less than 1"):
        Dice().load(roll)
