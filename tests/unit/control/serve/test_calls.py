"""Calls that are ended from outside, or by clients that go."""

import asyncio
import gc
from typing import Any

import pytest

from meshlib.control.serve.callers import Caller, Denied
from meshlib.control.serve.calls import Calls
from meshlib.xds.server_stream import ProtocolError

WHO = Caller("127.0.0.1:1", None)


def watched() -> list[Any]:
    """What the loop is told of failures that nobody asked for."""
    found: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: found.append(context))
    return found


async def gone() -> None:
    """A client that leaves before it has asked for anything."""
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        raise ProtocolError("a request is missing") from None


async def test_how_a_call_ends_that_nobody_waits_for_is_no_news() -> None:
    lost = watched()
    calls = Calls()
    waiting = asyncio.ensure_future(calls.run("a", WHO, gone()))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait({waiting})
    assert waiting.cancelled()
    del waiting
    await asyncio.sleep(0)
    gc.collect()
    assert lost == []


async def test_a_call_that_is_ended_says_why_and_nothing_else() -> None:
    lost = watched()
    calls = Calls()
    waiting = asyncio.ensure_future(calls.run("a", WHO, gone()))
    await asyncio.sleep(0)
    calls.refused("b", "another connection holds too much")
    calls.refused("a", "it holds too much")
    with pytest.raises(Denied, match="it holds too much") as found:
        await waiting
    assert found.value.code == "RESOURCE_EXHAUSTED"
    gc.collect()
    assert lost == []


async def test_the_failure_of_a_call_is_its_callers() -> None:
    async def fails() -> None:
        raise ProtocolError("a request is missing")

    with pytest.raises(ProtocolError, match="missing"):
        await Calls().run("a", WHO, fails())
