"""A timer of an event loop."""

import asyncio

from meshlib.dataplane.http.alarm import Alarm


async def test_a_timer_rings_once_and_the_last_word_counts() -> None:
    rung: list[int] = []
    done = asyncio.Event()

    def ring() -> None:
        rung.append(1)
        done.set()

    alarm = Alarm(ring)
    alarm.set(3600)
    alarm.set(0.001)
    await asyncio.wait_for(done.wait(), 5)
    alarm.set(0.001)
    alarm.cancel()
    await asyncio.sleep(0.005)
    assert rung == [1]


def test_without_a_loop_there_is_no_timer() -> None:
    alarm = Alarm(lambda: None)
    alarm.set(1.0)
    alarm.cancel()
