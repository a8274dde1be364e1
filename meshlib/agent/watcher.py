"""A process that ends what `meshlib node run` started, however that ends, `kill -9` included.

It reads a pipe, whose other end `node run` holds. When the pipe closes it tells the program's processes to
end, makes those that do not after a while, and removes the namespace.

Of a namespace they are all who live in it, without one those of the program's process group. The watcher
lives in the namespace itself: so it is not left over.
"""

import subprocess
import sys
from pathlib import Path

from meshlib.agent.netns import Namespace

PROGRAM = Path(__file__).with_name("watch.py")


class Watcher:
    """One that watches. It can be told of one program only."""

    def __init__(self, namespace: Namespace | None, grace: float = 5.0) -> None:
        """Starts it; `grace` is how many seconds a process has to end by itself."""
        enter = [] if namespace is None else ["nsenter", f"--net={namespace.path}"]
        name = [] if namespace is None else [namespace.name]
        self._process = subprocess.Popen(  # noqa: S603
            [*enter, sys.executable, "-I", "-S", str(PROGRAM), str(grace), *name],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        )

    def watch(self, group: int) -> None:
        """The process group of the program, which runs now."""
        assert self._process.stdin is not None  # noqa: S101 - a pipe was asked for
        self._process.stdin.write(f"{group}\n".encode())
        self._process.stdin.flush()

    def end(self, seconds: float = 15.0) -> None:
        """Has it do its work, and waits for that."""
        self._process.communicate(timeout=seconds)
