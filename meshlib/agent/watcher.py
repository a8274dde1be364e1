"""What ends the program of `meshlib node run` and all that it started, however that ends, also by `kill -9`.

It reads a pipe, whose other end `node run` holds. When the pipe closes it tells the program's processes to
end, makes those that do not after a while, and removes the namespace.

- Of a namespace they are all who live in it. The watcher lives in it itself: so it is not left over.
- Without one they are all who descend from the program: the watcher starts it, see `reap.py`.
- Where that can't be (macOS), those of the program's process group.
"""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from meshlib.agent.command import executable
from meshlib.agent.netns import Namespace, number

PROGRAM, REAPER = Path(__file__).with_name("watch.py"), Path(__file__).with_name("reap.py")
_PYTHON = (sys.executable, "-I", "-S")


class Watcher:
    """One that watches. It can be told of one program only."""

    def __init__(self, namespace: Namespace | None, grace: float = 5.0) -> None:
        """Starts it; `grace` is how many seconds a process has to end by itself."""
        self._namespace, self._grace = namespace, grace
        self._watched, self._pipe = os.pipe()
        self._process = None if self.starts else self._begin()

    @property
    def starts(self) -> bool:
        """Whether it starts the program itself."""
        return self._namespace is None and sys.platform == "linux"

    def settle(self) -> None:
        """Waits until it lives in the namespace, or nowhere any more."""
        of, process = self._namespace, self._process
        if of is not None and process is not None:
            while number(f"/proc/{process.pid}/ns/net") != number(of.path) and process.poll() is None:
                time.sleep(0.005)

    def command(self, program: Sequence[str]) -> tuple[list[str], tuple[int, ...]]:
        """What is to be run instead of the program, and the descriptors that this needs."""
        if self.starts:
            return [*_PYTHON, str(REAPER), str(self._grace), str(self._watched), *program], (self._watched,)
        if self._namespace is not None:
            return [executable("nsenter"), f"--net={self._namespace.path}", "--", *program], ()
        return list(program), ()

    def watch(self, group: int) -> None:
        """The process group of the program, which runs now."""
        if self._process is not None:
            os.write(self._pipe, f"{group}\n".encode())

    def end(self, seconds: float = 15.0) -> None:
        """Has it do its work; waits for that, unless it started the program itself."""
        os.close(self._pipe)
        if self._process is None:
            os.close(self._watched)
        else:
            self._process.wait(seconds)

    def _begin(self) -> "subprocess.Popen[bytes]":
        of = self._namespace
        try:
            enter, name = ([], []) if of is None else ([executable("nsenter"), f"--net={of.path}"], [of.name])
            return subprocess.Popen(  # noqa: S603
                [*enter, *_PYTHON, str(PROGRAM), str(self._grace), *name],
                stdin=self._watched,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                start_new_session=True,
            )
        finally:
            os.close(self._watched)
