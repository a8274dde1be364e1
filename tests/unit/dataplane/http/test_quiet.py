"""Whether an idle socket is open and quiet, with and without poll(2)."""

import select
import socket

import pytest

from meshlib.dataplane.http.quiet import watch


@pytest.mark.parametrize("poll", [True, False])
def test_quiet_until_the_peer_speaks_or_leaves(poll: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not poll:
        monkeypatch.delattr(select, "poll")
    for loud in (lambda peer: peer.send(b"x"), lambda peer: peer.shutdown(socket.SHUT_WR)):
        ours, peer = socket.socketpair()
        with ours, peer:
            quiet = watch(ours.fileno())
            assert quiet()
            loud(peer)
            assert not quiet()
