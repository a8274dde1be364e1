"""How an Envoy is kept running; a shell stands in for it."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from meshlib.agent import process
from meshlib.agent.admin import Admin
from meshlib.agent.process import LONGEST_PAUSE, Envoy, pause
from meshlib.errors import ConfigError


@contextlib.asynccontextmanager
async def supervised(envoy: Envoy) -> AsyncIterator[None]:
    running = asyncio.create_task(envoy.run())
    try:
        yield
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running


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


async def test_one_that_can_not_be_run(tmp_path: Path) -> None:
    envoy = Envoy([str(tmp_path / "none")], Admin(tmp_path / "none"))
    with pytest.raises(ConfigError, match="Envoy can't be run"):
        await envoy.start()


async def test_one_that_can_not_be_run_any_more_is_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    program = tmp_path / "envoy"
    program.write_text("#!/bin/sh\nexit 3\n")
    program.chmod(0o700)
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 1:
            program.rename(tmp_path / "away")
        elif len(slept) == 3:
            (tmp_path / "away").rename(program)
        elif len(slept) == 4:
            await asyncio.Event().wait()

    envoy = Envoy([str(program)], Admin(tmp_path / "none"), sleep=sleep)
    await envoy.start()
    async with supervised(envoy):
        while len(slept) < 4:
            await asyncio.sleep(0.001)
    assert slept == [0.0, 0.1, 0.2, 0.4]
    assert [record.message.partition(" (")[0] for record in caplog.records] == [
        "Envoy ended",
        "Envoy can't be started",
        "Envoy can't be started",
        "Envoy ended",
    ]
    assert envoy.starts == 2


async def test_it_is_in_no_group_of_its_keeper_and_is_not_told_its_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MESHLIB_TOKEN", "secret")
    monkeypatch.setenv("HTTP_WORD", "kept")
    said = tmp_path / "said"
    envoy = Envoy(
        ["/bin/sh", "-c", f"env > {said}.new; mv {said}.new {said}; sleep 1000"], Admin(tmp_path / "n")
    )
    await envoy.start()
    async with supervised(envoy):
        while not said.exists():
            await asyncio.sleep(0.001)
        assert envoy.process_id is not None
        assert os.getsid(envoy.process_id) == os.getpgid(envoy.process_id) == envoy.process_id
    assert "MESHLIB_" not in said.read_text()
    assert "HTTP_WORD=kept" in said.read_text()


async def test_what_it_leaves_in_shared_memory_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "SHARED", tmp_path)
    left, others, base_id = tmp_path / "envoy_shared_memory_120", tmp_path / "envoy_shared_memory_130", "12"
    others.touch()
    script = f'[ "$1" = --use-dynamic-base-id ] && touch {left} && echo {base_id} > "$3"'
    ended = asyncio.Event()

    async def sleep(_: float) -> None:
        ended.set()
        await asyncio.Event().wait()

    command = ["/bin/sh", "-c", script, "envoy"]
    envoy = Envoy(command, Admin(tmp_path / "n"), base_id=tmp_path / "base-id", sleep=sleep)
    await envoy.start()
    async with supervised(envoy):
        await ended.wait()
    assert [path.name for path in tmp_path.iterdir()] == [others.name]


async def test_nobody_to_drain_is_no_error(tmp_path: Path) -> None:
    await Envoy(["/bin/true"], Admin(tmp_path / "none")).drain()


class Epochs(Admin):
    """An admin interface of which process is said."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / "none")
        self.of = -1
        self.found = b'{"listener_statuses": [{"name": "a"}]}'

    async def epoch(self) -> int:
        return self.of

    async def ready(self) -> bool:
        return True

    async def ask(self, method: str, path: str) -> tuple[int, bytes]:
        return 200, self.found


async def until_told(path: Path) -> str:
    while not path.exists() or not path.read_text().endswith("\n"):
        await asyncio.sleep(0.001)
    return path.read_text()


@contextlib.asynccontextmanager
async def kept(folder: Path, script: str) -> AsyncIterator[tuple[Envoy, Epochs]]:
    """A shell that is kept running; it knows with which arguments it was started."""
    (folder / "base").write_text("17\n")
    admin = Epochs(folder)
    envoy = Envoy(["/bin/sh", "-c", script, "x"], admin, base_id=folder / "base")
    running = asyncio.create_task(envoy.run())
    try:
        while envoy.process_id is None:
            await asyncio.sleep(0.001)
        yield envoy, admin
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_another_takes_over_and_the_old_one_ends_by_itself(tmp_path: Path) -> None:
    script = f'echo "$@" > {tmp_path}/said.$$; exec sleep 1000'
    async with kept(tmp_path, script) as (envoy, admin):
        old = envoy.process_id
        first = await until_told(tmp_path / f"said.{old}")
        assert first == f"--use-dynamic-base-id --base-id-path {tmp_path}/base\n"
        admin.of = 1
        assert await envoy.restart()
        new = envoy.process_id
        assert new != old
        assert await until_told(tmp_path / f"said.{new}") == "--base-id 17 --restart-epoch 1\n"
        assert old is not None
        os.kill(old, 0)  # its connections may go on
        assert envoy.starts == 2
    for one in (old, new):
        assert one is not None
        with pytest.raises(ProcessLookupError):
            os.kill(one, 0)


async def test_one_that_took_over_and_crashed_is_started_again(
    tmp_path: Path,
) -> None:
    async with kept(tmp_path, "exec sleep 1000") as (envoy, admin):
        old = envoy.process_id
        admin.of = 1
        assert await envoy.restart()
        new = envoy.process_id
        assert old is not None
        assert new is not None
        os.kill(new, signal.SIGKILL)
        while envoy.process_id in (None, new):
            await asyncio.sleep(0.001)
        os.kill(old, 0)
        assert envoy.starts == 3


async def test_a_third_waits_until_the_first_has_ended_by_itself(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "go")
    script = f'case "$*" in *epoch*) exec sleep 1000;; *) read -r _ < {tmp_path}/go;; esac'
    async with kept(tmp_path, script) as (envoy, admin):
        admin.of = 1
        assert await envoy.restart()
        second = envoy.process_id
        admin.of = 2
        third = asyncio.create_task(envoy.restart())
        await asyncio.sleep(0.01)
        assert (envoy.process_id, envoy.starts, third.done()) == (second, 2, False)
        (tmp_path / "go").write_text("\n")
        assert await third
        assert envoy.starts == 3


async def test_until_another_serves_the_listeners_are_those_of_the_one_before(tmp_path: Path) -> None:
    async with kept(tmp_path, "exec sleep 1000") as (envoy, admin):
        restarting = asyncio.create_task(envoy.restart())
        while envoy.starts < 2:
            await asyncio.sleep(0.001)
        admin.found = b'{"listener_statuses": []}'
        assert [one.name for one in await admin.listening()] == ["a"]
        admin.of = 1
        assert await restarting
        assert await admin.listening() == ()


async def test_if_the_new_one_fails_the_old_one_stays(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    script = 'case "$*" in *epoch*) exit 1;; esac; exec sleep 1000'
    async with kept(tmp_path, script) as (envoy, _):
        old = envoy.process_id
        assert not await envoy.restart()
        assert envoy.process_id == old
        assert "the one that runs stays" in caplog.text


async def test_without_a_base_id_none_takes_over(tmp_path: Path) -> None:
    assert not await Envoy(["/bin/true"], Admin(tmp_path / "none")).restart()
