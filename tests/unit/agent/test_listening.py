"""At which ports a program listens."""

import os
import socket
from pathlib import Path

import pytest

from meshlib.agent import listening as module
from meshlib.agent.listening import listed, listening

TABLE = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:2378 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0
   1: 0100007F:1F90 0100007F:C000 01 00000000:00000000 00:00000000 00000000     0        0 2 1 0 20 4 30 10 -1
   2: 00000000000000000000000001000000:0050 00000000000000000000000000000000:0000 0A 00000000:00000000 00:0
   3: 00
"""


def test_only_what_listens_is_listed() -> None:
    assert listed(TABLE) == {9080, 80}
    assert listed("") == set()


def test_those_that_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        ports = {made.getsockname()[1] for made in (one, two)}
        closed = socket.socket()
        closed.bind(("127.0.0.1", 0))
        with closed:
            wanted = ports | {closed.getsockname()[1]}
            assert listening(wanted, os.getpid()) == ports
            assert listening(wanted, os.getpid(), "/proc/self/ns/net") == ports
            monkeypatch.setattr(module.Path, "exists", lambda _: False)
            assert listening(wanted, os.getpid()) == ports


def test_who_is_gone_or_not_where_it_will_be_does_not_listen(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as one:
        port = one.getsockname()[1]
        assert listening({port}, 2**30) == frozenset()
        assert listening({port}, os.getpid(), str(tmp_path)) == frozenset()
        assert listening({port}, os.getpid(), str(tmp_path / "none")) == frozenset()
