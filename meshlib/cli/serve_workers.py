"""Several processes that serve one socket, and the one that watches them.

- The socket is bound and the server registered once, here; the workers accept from it.
- A worker that ends unasked is started again, later each time it happens at once.
- On a signal others are told first, then the workers, which finish what is in flight.
"""

import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any

import meshlib

READY = b"ready\n"
SHORT_LIFE = 10.0
"""Seconds: a worker that lived shorter failed to start."""
LONGEST_PAUSE = 30.0


@dataclass
class Worker:
    """One process."""

    process: subprocess.Popen[bytes]
    born: float
    ready: bool = False


class Workers:
    """Keeps `count` workers alive until it is told to stop."""

    def __init__(
        self,
        command: Sequence[str],
        listening: socket.socket,
        count: int,
        register: Callable[[], meshlib.Registration],
        graceful: float,
    ) -> None:
        """`command` serves the socket's descriptor, which is inherited, and says READY on its output."""
        self._command = list(command)
        self._listening = listening
        self._count = count
        self._register = register
        self._graceful = graceful
        self._workers: list[Worker] = []
        self._told = threading.Event()
        self._failures = 0

    def run(self) -> int:
        """Until a signal; the exit code."""
        before = {number: signal.signal(number, self._stop) for number in (signal.SIGTERM, signal.SIGINT)}
        registration: Any = None
        try:
            while not self._told.is_set():
                self._tend()
                if registration is None and any(worker.ready for worker in self._workers):
                    registration = self._register()
                self._told.wait(0.1)
            if registration is not None:
                registration.drain()
        finally:
            self._end()
            if registration is not None:
                registration.close()
            for number, handler in before.items():
                signal.signal(number, handler)
        return 0

    def _stop(self, *_: int | FrameType | None) -> None:
        self._told.set()

    def _tend(self) -> None:
        """Buries the dead and starts new ones."""
        for worker in list(self._workers):
            if worker.process.poll() is None:
                continue
            self._workers.remove(worker)
            lived = time.monotonic() - worker.born
            self._failures = self._failures + 1 if lived < SHORT_LIFE else 0
            ended = f"worker {worker.process.pid} ended with {worker.process.returncode}"
            print(f"meshlib: {ended} after {lived:.1f} s", file=sys.stderr)
            if self._failures:
                self._told.wait(min(LONGEST_PAUSE, 0.25 * 2 ** min(self._failures, 10)))
        while len(self._workers) < self._count and not self._told.is_set():
            self._workers.append(self._start())

    def _start(self) -> Worker:
        descriptor = self._listening.fileno()
        process = subprocess.Popen(  # noqa: S603 - our own module, and what the user named
            [sys.executable, "-m", "meshlib.cli.tether", *self._command, "--fd", str(descriptor)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=(descriptor,),
            start_new_session=True,  # a Ctrl-C is this process's, which tells the others first
        )
        worker = Worker(process, time.monotonic())
        threading.Thread(target=self._listen, args=(worker,), daemon=True).start()
        return worker

    def _listen(self, worker: Worker) -> None:
        """What a worker prints is passed on, but for its first word."""
        assert worker.process.stdout is not None  # noqa: S101 - a pipe was asked for
        for line in worker.process.stdout:
            if line == READY:
                worker.ready = True
            else:
                sys.stdout.buffer.write(line)
                sys.stdout.buffer.flush()

    def _end(self) -> None:
        for worker in self._workers:
            if worker.process.poll() is None:
                worker.process.terminate()
        deadline = time.monotonic() + self._graceful + 2.0
        for worker in self._workers:
            try:
                worker.process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()
            for pipe in (worker.process.stdin, worker.process.stdout):
                if pipe is not None:
                    pipe.close()
