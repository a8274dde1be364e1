"""Clients on another event loop than asyncio's own, and in the child of a fork."""

import asyncio
import contextlib
import os
import warnings

import pytest
import uvloop
from support.clients import CALLERS, calling
from support.fake_mesh import fake_mesh
from support.raw_server import raw_server
from support.small_ca import SmallCa

from meshlib.core.mtls import ClientTls, InboundMode, SanMatch, ServerTls
from meshlib.dataplane.tls import Contexts

REVIEWS = "spiffe://cluster.local/ns/default/sa/reviews"


@pytest.mark.parametrize("kind", [kind for kind, made in CALLERS.items() if made.asynchronous])
@pytest.mark.parametrize("secured", [False, True], ids=["plain", "tls"])
def test_on_uvloop(kind: str, secured: bool) -> None:
    ca = SmallCa()
    contexts = Contexts(lambda: ca.held(REVIEWS))
    tls = ClientTls(sans=((SanMatch.EXACT, REVIEWS),), sni="x") if secured else None

    async def main() -> None:
        mesh = fake_mesh([server.port], tls=tls)
        mesh.contexts = contexts
        async with calling(kind, mesh) as caller:
            seen = await caller.call("/echo", "POST", body=[bytes(300_000)] * 3)
            assert seen.status == 200
            assert len((await caller.call("/big/1048576")).body) == 1048576
        await asyncio.sleep(0.01)

    with raw_server(contexts.server(ServerTls(InboundMode.STRICT)) if secured else None) as server:
        uvloop.run(main())
        assert server.connections == 1


@pytest.mark.parametrize("kind", [kind for kind, made in CALLERS.items() if not made.asynchronous])
def test_the_child_of_a_fork_has_connections_of_its_own(kind: str) -> None:
    with raw_server() as server:
        caller = CALLERS[kind](fake_mesh([server.port]))
        assert caller.send("/echo", "GET").status == 200  # type: ignore[attr-defined]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of forks in a process with threads
            child = os.fork()
        if not child:
            status = 1
            with contextlib.suppress(BaseException):
                fresh = caller.connections() is None
                answered = caller.send("/echo", "GET").status  # type: ignore[attr-defined]
                status = 0 if fresh and answered == 200 else 2
            os._exit(status)
        assert os.waitpid(child, 0)[1] == 0
        assert caller.send("/echo", "GET").status == 200  # type: ignore[attr-defined]
        assert server.connections == 2
        caller.shut()  # type: ignore[attr-defined]
