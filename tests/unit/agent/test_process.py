"""How an Envoy is kept running; a shell stands in for it."""

import asyncio
import contextlib
import os
from pathlib import Path

import pytest

from meshlib.agent.admin import Admin
from meshlib.agent.process import LONGEST_PAUSE, Envoy, pause


def test_pauses_grow() -> None:
    assert [pause(failures) for failures in range(1, 6)] == [0.0, 0.1, 0.2, 0.4, 0.8]
    assert pause(1000) == LONGEST_PAUSE


async def test_what_ends_is_started_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 4:
            await asyncio.Event().wait()

    envoy = Envoy(["/bin/sh", "-c", "kill -9 $$"], Admin(tmp_path / "none"), sleep=sleep)
    running = asyncio.create_task(envoy.run())
    while len(slept) < 4:
        await asyncio.sleep(0.001)
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running
    assert envoy.starts == 4
    assert slept == [0.0, 0.1, 0.2, 0.4]
    assert "Envoy ended (signal 9); it is started again in 0.1 s" in caplog.text


async def test_it_is_stopped_with_its_keeper(tmp_path: Path) -> None:
    envoy = Envoy(["/bin/sh", "-c", "sleep 1000"], Admin(tmp_path / "none"))
    running = asyncio.create_task(envoy.run())
    while envoy.process_id is None:
        await asyncio.sleep(0.001)
    found = envoy.process_id
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running
    assert envoy.process_id is None
    with pytest.raises(ProcessLookupError):
        os.kill(found, 0)


async def test_nobody_to_drain_is_no_error(tmp_path: Path) -> None:
    await Envoy(["/bin/true"], Admin(tmp_path / "none")).drain()
