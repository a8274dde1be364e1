"""Who connected to a Unix socket, and what becomes of it when that process ends."""

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from meshlib.agent import callers
from meshlib.agent.callers import Enrolled, Process, namespace
from meshlib.identity.spiffe import SpiffeId

CART, TILL = (SpiffeId("cluster.local", "shop", name) for name in ("cart", "till"))
CONNECT = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); sys.stdin.read()"


@contextmanager
def child() -> Iterator[tuple["subprocess.Popen[bytes]", socket.socket]]:
    """A process that connected, and the end that was accepted."""
    with tempfile.TemporaryDirectory() as folder, closing(socket.socket(socket.AF_UNIX)) as listening:
        path = str(Path(folder) / "s")
        listening.bind(path)
        listening.listen()
        command = [sys.executable, "-S", "-c", CONNECT, path]
        with subprocess.Popen(command, stdin=subprocess.PIPE) as made:
            accepted, _ = listening.accept()
            with accepted:
                yield made, accepted


@pytest.mark.parametrize("option", [callers._PEERPIDFD, 9999])
def test_a_process_is_the_one_that_connected_until_it_ends(
    option: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(callers, "_PEERPIDFD", option)  # 9999: a kernel that does not know it
    with child() as (made, accepted), closing(Process(accepted)) as found:
        assert (found.pid, found.uid, found.alive) == (made.pid, os.geteuid(), True)
        assert repr(found) == f"<Process {made.pid} of user {os.geteuid()}>"
        enrolled = [Enrolled(CART, pid=made.pid), Enrolled(TILL, pid=os.getpid()), Enrolled(TILL, pid=1)]
        assert found.among(enrolled) == (CART, TILL)
        assert found.among(enrolled[:1]) == (CART,)
        assert found.among(enrolled[2:]) == ()
        assert found.among([Enrolled(CART), Enrolled(CART, pid=made.pid + 1)]) == ()
        made.communicate()
        assert (found.alive, found.among(enrolled)) == (False, ())


def test_of_one_that_has_ended_before_it_was_taken_nothing_is_said() -> None:
    with child() as (made, accepted):
        made.communicate()
        try:
            found = Process(accepted)
        except OSError:
            return
        with closing(found):
            assert found.among([Enrolled(CART, pid=os.getpid())]) == ()


def test_files_that_are_no_namespace() -> None:
    assert namespace("/no/such/file") is None
    assert namespace("a\0b") is None
    assert namespace("/proc/self/ns/net") is not None
