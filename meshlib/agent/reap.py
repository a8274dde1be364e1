"""Runs a program that has no namespace of its own, and ends all that it started. Linux.

`reap.py GRACE PIPE PROGRAM [ARGUMENTS]…`; GRACE in seconds, PIPE the descriptor of a pipe. It stands alone:
run as a file, it loads next to nothing.

Rules:

- What the program started is found wherever it hid: those whose parent is gone become children of this
  process (PR_SET_CHILD_SUBREAPER), also with a session of their own.
- When the program ends, or the pipe closes because whoever started this is gone, they are told to end; those
  that do not after a while are made to.
- Its exit status is the program's; of one that can't be run 127 or 126, as a shell has it.
- Signals are passed on, but for those that a whole process group is told of: they reach the program anyway.
"""

import contextlib
import ctypes
import errno
import os
import select
import signal
import sys
import time

_SUBREAPER = 36
_ONE = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_ALL = (signal.SIGINT, signal.SIGQUIT)
_OF_PYTHON = (signal.SIGPIPE, signal.SIGXFSZ)
"""Which Python ignores, and a program would go on to."""
_STUBBORN_SECONDS = 5.0
"""For those that are made to end: after that they can't be, being somebody else's."""


def main(grace: float, pipe: int, command: list[str]) -> int:
    """The exit status."""
    ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)
    os.set_inheritable(pipe, False)
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    told = {*_ONE, *_ALL, signal.SIGCHLD}
    signal.pthread_sigmask(signal.SIG_BLOCK, told)
    try:
        child = os.posix_spawnp(command[0], command, os.environ, setsigmask=(), setsigdef=_OF_PYTHON)
    except OSError as error:
        print(f"meshlib: {command[0]}: {error.strerror}", file=sys.stderr)
        return 127 if error.errno == errno.ENOENT else 126
    for number in told:
        signal.signal(number, lambda number, _: _tell(child, number) if number in _ONE else None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, told)
    status = None
    while status is None:
        ready, _, _ = select.select((pipe, woken), (), ())
        if woken in ready:
            os.read(woken, 4096)
        status = _reaped(child)
        if pipe in ready:
            break
    _end(grace)
    return status if status is not None and status >= 0 else 128 - (status or 0)


def _end(grace: float) -> None:
    """Of all that there are still."""
    until = time.monotonic() + grace
    for one in _offspring():
        _tell(one, signal.SIGTERM)
    while (left := _offspring()) and time.monotonic() < until + _STUBBORN_SECONDS:
        if time.monotonic() > until:
            for one in left:
                _tell(one, signal.SIGKILL)
        time.sleep(0.02)
        _reaped(0)


def _reaped(child: int) -> int | None:
    """The exit status of that child if it has ended; of others it is forgotten."""
    found = None
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG)) != (0, 0):
            if ended[0] == child:
                found = os.waitstatus_to_exitcode(ended[1])
    return found


def _offspring() -> list[int]:
    """All who descend from this process."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):  # noqa: PTH208
        if name.isdecimal():
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:  # noqa: PTH123
                parent = int(file.read().rpartition(b")")[2].split()[1])
                children.setdefault(parent, []).append(int(name))
    found = list(children.get(os.getpid(), ()))
    for one in found:
        found += children.get(one, ())
    return found


def _tell(process: int, number: int) -> None:
    with contextlib.suppress(OSError):
        os.kill(process, number)


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]))
