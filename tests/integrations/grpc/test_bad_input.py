"""What an application should not ask for: told as gRPC's own channel tells it."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from support.fake_mesh import fake_mesh
from support.grpc_server import PATH, Seen

import meshlib_grpc

INTERNAL = grpc.StatusCode.INTERNAL
CASES: dict[str, Callable[[Any], Any]] = {
    "a name that is empty": lambda call: call(b"1", metadata=[("", "v")]),
    "a name with capitals": lambda call: call(b"1", metadata=[("K", "v")]),
    "a binary value that is a text": lambda call: call(b"1", metadata=[("k-bin", "text")]),
    "a value that is a number": lambda call: call(b"1", metadata=[("k", 5)]),
    "no message": lambda call: call(None),
    "a time that is no number": lambda call: call(b"1", timeout=float("nan")),
    "a time that is over": lambda call: call(b"1", timeout=-1),
}
names = pytest.mark.parametrize("name", CASES)


@pytest.fixture
def channels(server: Seen) -> Iterator[list[Any]]:
    mesh: Any = fake_mesh([server.port])
    with (
        grpc.insecure_channel(f"127.0.0.1:{server.port}") as theirs,
        meshlib_grpc.channel("reviews:9080", mesh) as ours,
    ):
        yield [theirs, ours]


def came_of(call: Callable[[], Any]) -> Any:
    """A result, a code, or an error that is no status."""
    try:
        return call()
    except grpc.RpcError as error:
        return error.code()
    except Exception as error:
        return type(error)


@names
def test_threads_are_told_the_same(name: str, channels: list[Any]) -> None:
    ask = CASES[name]
    for asked in (
        lambda channel: ask(channel.unary_unary(PATH + "who")),
        lambda channel: ask(channel.unary_unary(PATH + "who").future).result(60),
        lambda channel: list(ask(channel.unary_stream(PATH + "count"))),
    ):
        theirs, ours = (came_of(lambda: asked(channel)) for channel in channels)  # noqa: B023
        assert ours == theirs


@pytest.mark.parametrize("bad", [None, 5])
def test_a_message_of_a_stream_that_is_none(bad: Any, channels: list[Any]) -> None:
    encode = {None: None, 5: str.encode}[bad]
    for channel in channels:
        with pytest.raises(grpc.RpcError) as raised:
            channel.stream_unary(PATH + "total", encode)(iter([bad]))
        assert (raised.value.code(), raised.value.details()) == (INTERNAL, "Exception serializing request!")


def test_tasks_are_told_so(server: Seen) -> None:
    mesh: Any = fake_mesh([server.port])

    async def run() -> None:
        async with (
            grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as theirs,
            meshlib_grpc.aio_channel("reviews:9080", mesh) as ours,
        ):
            for name in ("a binary value that is a text", "a time that is no number", "a time that is over"):
                found = []
                for channel in (theirs, ours):
                    try:
                        await CASES[name](channel.unary_unary(PATH + "who"))
                    except grpc.RpcError as error:
                        found.append(error.code())
                    except TypeError as error:
                        found.append(str(error))
                assert found[0] == found[1]
            # gRPC's own says these in errors that are none of the public ones, or sends something.
            for name in ("a name that is empty", "no message"):
                with pytest.raises(grpc.RpcError) as raised:
                    await CASES[name](ours.unary_unary(PATH + "who"))
                assert raised.value.code() is INTERNAL
            for channel in (theirs, ours):
                call = channel.stream_stream(PATH + "nowhere")()
                with pytest.raises(grpc.RpcError):
                    await call.read()
                with pytest.raises(asyncio.InvalidStateError, match="already finished"):
                    await call.write(b"")

    asyncio.run(run())
