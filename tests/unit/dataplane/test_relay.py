"""A pair of sockets with something between them and a connection: bytes, ends, and what breaks."""

import contextlib
import os
import socket
import threading

import pytest
from support.commands import wait_until

from meshlib.dataplane.tcp.relay import AsTheyAre, relayed
from meshlib.dataplane.tcp.tunnel import Posted

LARGE = bytes(range(256)) * 8192
"""2 MB: more than any buffer takes."""


def test_large_both_ways_at_once() -> None:
    far, there = socket.socketpair()
    with relayed(far) as near, there:
        found: dict[str, bytes] = {}

        def read(name: str, one: socket.socket) -> None:
            parts = b""
            while len(parts) < len(LARGE):
                parts += one.recv(65536)
            found[name] = parts

        threads = [threading.Thread(target=near.sendall, args=(LARGE,))]
        threads += [threading.Thread(target=there.sendall, args=(LARGE,))]
        threads += [threading.Thread(target=read, args=(n, one)) for n, one in (("n", near), ("t", there))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert found == {"n": LARGE, "t": LARGE}


def movers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "meshlib-relay"]


def test_one_thread_moves_all_and_ends_with_the_last() -> None:
    wait_until(lambda: not movers(), 60, "the end of those before")
    for _ in range(2):
        ends = []
        for _ in range(40):
            far, there = socket.socketpair()
            ends.append((relayed(far), there))
        for number, (near, there) in enumerate(ends):
            near.sendall(b"%d" % number)
            there.sendall(b"-%d" % number)
        assert [(near.recv(9), there.recv(9)) for near, there in ends] == [
            (b"-%d" % number, b"%d" % number) for number in range(40)
        ]
        assert len(movers()) == 1
        for near, there in ends:
            near.close()
            there.close()
        wait_until(lambda: not movers(), 60, "the end of the thread")


def test_one_that_nobody_reads_and_one_that_breaks_hold_up_no_other() -> None:
    class Broken(AsTheyAre):
        def decode(self, data: bytes) -> bytes:
            raise KeyError("a mistake of ours")

    pairs = [socket.socketpair() for _ in range(3)]
    stuck, broken, fine = (
        relayed(far, coding)
        for (far, _), coding in zip(pairs, (AsTheyAre(), Broken(), AsTheyAre()), strict=True)
    )
    stuck.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while stuck.send(LARGE):
            pass
    pairs[1][1].sendall(b"x")
    assert broken.recv(9) == b""
    pairs[2][1].sendall(b"x")
    assert fine.recv(9) == b"x"
    for one in (stuck, broken, fine, *(there for _, there in pairs)):
        one.close()


def test_in_the_child_of_a_fork_another_thread_moves_others() -> None:
    far, there = socket.socketpair()
    with relayed(far) as near, there:
        near.sendall(b"a")
        assert there.recv(9) == b"a"
        child = os.fork()
        if child == 0:
            code = 1
            with contextlib.suppress(BaseException):
                its_far, its_there = socket.socketpair()
                its_near = relayed(its_far)
                its_near.settimeout(60)
                its_there.sendall(b"c")
                code = int(its_near.recv(9) != b"c")
            os._exit(code)
        assert os.waitpid(child, 0)[1] == 0
        there.sendall(b"b")
        assert near.recv(9) == b"b"


def test_an_end_goes_on() -> None:
    far, there = socket.socketpair()
    near = relayed(far)
    with near, there:
        near.sendall(b"last words")
        near.shutdown(socket.SHUT_WR)
        assert there.makefile("rb").read() == b"last words"
        there.sendall(b"and mine")
        there.close()
        assert near.makefile("rb").read() == b"and mine"
    wait_until(lambda: far.fileno() == -1, 5, "the end of the relay")


def test_a_close_is_an_end() -> None:
    far, there = socket.socketpair()
    with there:
        relayed(far).close()
        assert there.recv(10) == b""


def test_chunks() -> None:
    far, there = socket.socketpair()
    with relayed(far, Posted(chunked=True)) as near, there:
        near.sendall(b"hello")
        assert there.recv(100) == b"5\r\nhello\r\n"
        there.sendall(b"3\r\nabc\r\n2;x=y\r\nde")
        assert near.recv(3) + near.recv(2) == b"abcde"
        there.sendall(b"\r\n0\r\n\r\n")
        assert near.recv(10) == b""
        near.shutdown(socket.SHUT_WR)
        assert there.recv(100) == b"0\r\n\r\n"


def test_an_answer_without_chunks_ends_with_its_connection() -> None:
    far, there = socket.socketpair()
    with relayed(far, Posted(chunked=False)) as near, there:
        there.sendall(b"3\r\nabc\r\n")
        assert near.recv(100) == b"3\r\nabc\r\n"


@pytest.mark.parametrize("said", [b"xyz\r\n", b"-1\r\n", b"3\r\nabcd"])
def test_chunks_that_are_none_end_the_connection(said: bytes) -> None:
    far, there = socket.socketpair()
    with relayed(far, Posted(chunked=True)) as near, there:
        there.sendall(said)
        near.settimeout(5)
        while near.recv(100):
            pass
        assert there.recv(10) == b""
