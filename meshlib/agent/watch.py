"""The program of a watcher, see `watcher.py`. It stands alone: run as a file, it loads next to nothing.

`watch.py GRACE NAMESPACE`, in that namespace, or `watch.py GRACE` without one; GRACE in seconds.
"""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterable, Iterator

OWN = "/proc/self/ns/net"


def main(grace: float, name: str) -> None:
    """Reads until the pipe closes, and then ends what has to end."""
    os.environ["PATH"] = "/usr/sbin:/sbin:/usr/bin:/bin"
    group = 0
    while said := sys.stdin.buffer.readline():
        group = int(said)
    targets = _neighbours if name else lambda: _group(group)
    until = time.monotonic() + grace
    _tell(targets(), signal.SIGTERM)
    while time.monotonic() < until and any(True for _ in targets()):
        time.sleep(0.02)
    _tell(targets(), signal.SIGKILL)
    if name:
        os.spawnlp(os.P_WAIT, "ip", "ip", "link", "del", "eth0")  # noqa: S606
        os.spawnlp(os.P_WAIT, "ip", "ip", "netns", "del", name)  # noqa: S606


def _tell(processes: Iterable[int], number: int) -> None:
    for one in processes:
        with contextlib.suppress(OSError):
            os.kill(one, number)


def _neighbours() -> Iterator[int]:
    """All others in this namespace."""
    here, own = os.stat(OWN), os.getpid()  # noqa: PTH116
    for one in os.listdir("/proc"):  # noqa: PTH208
        with contextlib.suppress(OSError):
            if one.isdecimal() and int(one) != own:
                found = os.stat(f"/proc/{one}/ns/net")  # noqa: PTH116
                if (found.st_ino, found.st_dev) == (here.st_ino, here.st_dev):
                    yield int(one)


def _group(group: int) -> Iterator[int]:
    """A process group as `kill` knows it, if anybody is in it."""
    if group > 1:
        with contextlib.suppress(OSError):
            os.killpg(group, 0)
            yield -group


if __name__ == "__main__":
    main(float(sys.argv[1]), "".join(sys.argv[2:]))
