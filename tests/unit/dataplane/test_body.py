"""Bodies that can be sent again, for as long as their beginning is kept."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from meshlib.dataplane.body import BodyBroken, RequestBody


def counted(chunks: list[bytes]) -> Iterator[bytes]:
    yield from chunks


async def acounted(chunks: list[bytes]) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


class Both:
    """As httpx's multipart streams."""

    def __iter__(self) -> Iterator[bytes]:
        return iter([b"sync"])

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield b"async"


def read(body: RequestBody) -> list[bytes]:
    content = body.content()
    return [content] if isinstance(content, bytes) else list(content)


async def aread(body: RequestBody) -> list[bytes]:
    content = body.acontent()
    return [content] if isinstance(content, bytes) else [chunk async for chunk in content]


async def test_bytes_can_always_be_sent_again() -> None:
    body = RequestBody(b"x" * 9, limit=1)
    assert (body.replayable(), read(body), await aread(body), body.replayable()) == (
        True,
        [b"x" * 9],
        [b"x" * 9],
        True,
    )


@pytest.mark.parametrize("kind", [counted, acounted])
async def test_a_stream_is_sent_again_from_what_was_kept(kind: type) -> None:
    body = RequestBody(kind([b"ab", b"", b"c"]), limit=3)
    assert [await aread(body) for _ in range(3)] == [[b"ab", b"c"]] * 3
    assert body.replayable()


async def test_a_second_try_begins_again_where_the_first_was_broken_off() -> None:
    body = RequestBody(counted([b"a", b"b", b"c"]))
    first = body.content()
    assert not isinstance(first, bytes)
    assert [next(first), next(first)] == [b"a", b"b"]
    assert read(body) == [b"a", b"b", b"c"]
    later = RequestBody(acounted([b"a", b"b", b"c"]))
    begun = later.acontent()
    assert not isinstance(begun, bytes)
    assert await anext(begun) == b"a"
    await begun.aclose()
    assert await aread(later) == [b"a", b"b", b"c"]


@pytest.mark.parametrize("kind", [counted, acounted])
async def test_beyond_the_limit_it_is_sent_once(kind: type) -> None:
    body = RequestBody(kind([b"ab", b"cd"]), limit=3)
    assert body.replayable()
    assert await aread(body) == [b"ab", b"cd"]
    assert not body.replayable()
    with pytest.raises(RuntimeError, match="can't be sent again"):
        await aread(body)


async def test_an_error_of_the_application_is_its_cause() -> None:
    def broken() -> Iterator[bytes]:
        yield b"a"
        raise FileNotFoundError

    async def abroken() -> AsyncIterator[bytes]:
        yield b"a"
        raise FileNotFoundError

    for source in (broken(), abroken()):
        body = RequestBody(source)
        told: list[bytes | None] = []
        body.when_known(told.append)
        with pytest.raises(BodyBroken) as raised:
            await aread(body)
        assert isinstance(raised.value.__cause__, FileNotFoundError)
        assert (body.replayable(), told) == (False, [None])
        body.when_known(told.append)
        assert told == [None, None]


async def test_a_try_that_is_cut_off_while_the_application_is_asked_takes_the_body_with_it() -> None:
    """A generator that is cancelled is at its end: what is kept is not the whole."""
    asked = asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield b"a"
        asked.set()
        await asyncio.Event().wait()
        yield b"b"

    def interrupted() -> Iterator[bytes]:
        yield b"a"
        raise KeyboardInterrupt

    told: list[bytes | None] = []
    later, body = RequestBody(slow()), RequestBody(interrupted())
    for one in (later, body):
        one.when_known(told.append)
    reading = asyncio.create_task(aread(later))
    await asked.wait()
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    with pytest.raises(KeyboardInterrupt):
        read(body)
    for one in (later, body):
        assert (one.replayable(), one.whole()) == (False, False)
        with pytest.raises(RuntimeError, match="can't be sent again"):
            await aread(one)
    assert told == [None, None]


async def test_an_asynchronous_body_is_not_for_threads_and_one_of_both_kinds_is_for_all() -> None:
    with pytest.raises(TypeError, match="asynchronous body"):
        read(RequestBody(acounted([b"a"])))
    assert read(RequestBody(Both())) == [b"sync"]
    assert await aread(RequestBody(Both())) == [b"async"]


def test_it_is_known_when_it_was_sent_whole() -> None:
    told: list[bytes | None] = []
    RequestBody(b"ab").when_known(told.append)
    body = RequestBody(counted([b"a", b"b"]))
    body.when_known(told.append)
    assert told == [b"ab"]
    read(body)
    body.when_known(told.append)
    assert told == [b"ab"] * 3
    long = RequestBody(counted([b"a", b"b"]), limit=1)
    long.when_known(told.append)
    read(long)
    long.when_known(told.append)
    assert told[3:] == [None, None]
