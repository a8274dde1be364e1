"""Keys of issuers: what is due when, and fetching from a real server."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import pytest
from joserfc.jwk import ECKey

from meshlib.control.fetch import MAX_BYTES, Unfetched
from meshlib.control.graph.policies import KeySource
from meshlib.control.jwks import REFRESH_SECONDS, KeyFetcher, KeySets, fetch_keys

ONE, TWO = KeySource("https://one.example/keys", ""), KeySource("", "https://two.example")
KEYS = {"keys": [ECKey.generate_key("P-256", {"kid": "a"}).as_dict(private=False)]}


def test_what_is_wanted_is_due_at_once_and_once() -> None:
    sets = KeySets()
    assert sets.want({ONE: 5.0, TWO: 2.0}, 100.0) == {}
    assert sets.next_due() == 100.0
    assert sorted(sets.start(100.0)) == sorted([(ONE, 5.0), (TWO, 2.0)])
    assert sets.start(100.0) == []
    assert sets.next_due() is None


def test_keys_are_fetched_again_and_only_changes_count() -> None:
    sets = KeySets()
    sets.want({ONE: 5.0}, 0.0)
    sets.start(0.0)
    assert sets.fetched(ONE, "a", 1.0)
    assert sets.want({ONE: 5.0}, 2.0) == {ONE: "a"}
    assert sets.next_due() == 1.0 + REFRESH_SECONDS
    assert sets.start(REFRESH_SECONDS) == []
    assert sets.start(1.0 + REFRESH_SECONDS) == [(ONE, 5.0)]
    assert not sets.fetched(ONE, "a", 2000.0)
    sets.start(2000.0 + REFRESH_SECONDS)
    assert sets.fetched(ONE, "b", 4000.0)


def test_a_failure_keeps_what_is_known_and_is_tried_again_ever_later() -> None:
    sets, now = KeySets(), 0.0
    sets.want({ONE: 5.0}, now)
    sets.start(now)
    sets.fetched(ONE, "a", now)
    waits = []
    for _ in range(11):
        due = sets.next_due()
        assert due is not None
        assert sets.start(due) == [(ONE, 5.0)]
        waits.append(sets.failed(ONE, due))
        assert sets.want({ONE: 5.0}, due) == {ONE: "a"}
    assert waits == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 300.0, 300.0]


def test_what_is_no_longer_wanted_is_forgotten() -> None:
    sets = KeySets()
    sets.want({ONE: 5.0}, 0.0)
    sets.start(0.0)
    sets.want({}, 1.0)
    assert not sets.fetched(ONE, "late", 2.0)
    assert sets.failed(ONE, 2.0) == 0.0
    assert sets.want({ONE: 5.0}, 3.0) == {}


# A real server

Answer = Callable[[str], bytes]


@asynccontextmanager
async def server(answer: Answer) -> AsyncIterator[str]:
    """Answers each path with the bytes that `answer` says, or never with none; gives its URL."""

    talks: list[asyncio.Task[None]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        talk = asyncio.current_task()
        assert talk is not None
        talks.append(talk)
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            path = (await reader.readuntil(b"\r\n\r\n")).split()[1].decode()
            if made := answer(path):
                writer.write(made)
                await writer.drain()
            else:
                await reader.read()
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with listening:
        yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
        await asyncio.gather(*talks)


def response(body: bytes, status: str = "200 OK", *more: str) -> bytes:
    head = "\r\n".join((f"HTTP/1.1 {status}", f"content-length: {len(body)}", *more))
    return head.encode() + b"\r\n\r\n" + body


async def refused(answer: Answer, path: str = "/keys", seconds: float = 5.0) -> str:
    async with server(answer) as url:
        with pytest.raises(Unfetched) as found:
            await fetch_keys(KeySource(url + path, ""), seconds)
        return str(found.value).replace(url, "")


async def test_keys_come_in_one_spelling() -> None:
    text = json.dumps(KEYS, indent=4).encode()
    async with server(lambda _: response(text)) as url:
        found = await fetch_keys(KeySource(f"{url}/keys?a=b", ""), 5.0)
    assert found == json.dumps(KEYS, separators=(",", ":"), sort_keys=True)


async def test_an_issuer_tells_where_its_keys_are() -> None:
    asked: list[str] = []

    def answer(path: str) -> bytes:
        asked.append(path)
        if path == "/realm/.well-known/openid-configuration":
            return response(json.dumps({"jwks_uri": f"{base[0]}/the-keys"}).encode())
        return response(json.dumps(KEYS).encode())

    base: list[str] = []
    async with server(answer) as url:
        base.append(url)
        assert json.loads(await fetch_keys(KeySource("", f"{url}/realm/"), 5.0)) == KEYS
    assert asked == ["/realm/.well-known/openid-configuration", "/the-keys"]


async def test_a_redirect_is_followed_but_not_for_ever() -> None:
    def answer(path: str) -> bytes:
        if path == "/once":
            return response(b"", "302 Found", "location: /keys")
        if path == "/loop":
            return response(b"", "302 Found", "location: /loop")
        return response(json.dumps(KEYS).encode())

    async with server(answer) as url:
        assert json.loads(await fetch_keys(KeySource(f"{url}/once", ""), 5.0)) == KEYS
    assert await refused(answer, "/loop") == "/loop: more than 5 redirects"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (response(b"", "503 Busy"), "/keys answers 503"),
        (response(b"", "302 Found"), "/keys answers 302"),
        (response(b"<html>"), "/keys is no JSON"),
        (response(b"[" * 100_000), "/keys is no JSON"),
        (response(b"[]"), "/keys is no JSON object"),
        (response(b"{}"), "/keys is no key set with a key that can be used"),
        (response(b'{"keys":[{"kty":"RSA"}]}'), "/keys is no key set with a key that can be used"),
        (response(b"x" * (MAX_BYTES + 1)), f"/keys is larger than {MAX_BYTES} bytes"),
        (response(b"", "302 Found", "location: ftp://x"), "'ftp://x' is no URL of http or https"),
        (response(b"", "302 Found", "location: http://[x"), "/keys leads to 'http://[x', which is no URL"),
    ],
    ids=range(10),
)
async def test_what_is_no_key_set_says_why(answer: bytes, reason: str) -> None:
    assert await refused(lambda _: answer) == reason


async def test_half_an_answer_is_none() -> None:
    assert "/keys" in await refused(lambda _: response(b"x" * 100)[:-50])
    assert "/keys" in await refused(lambda _: b"nonsense\r\n\r\n")


async def test_a_fetch_ends_in_time() -> None:
    async with server(lambda _: b"") as url:
        with pytest.raises(TimeoutError):
            await fetch_keys(KeySource(f"{url}/keys", ""), 0.05)


async def test_an_issuer_that_is_no_url_has_no_keys() -> None:
    with pytest.raises(Unfetched, match="is no URL; give jwksUri or jwks"):
        await fetch_keys(KeySource("", "someone"), 5.0)


async def test_changes_are_told_and_failures_are_not() -> None:
    answers = ["a", Unfetched("no"), "a", "b"]
    told: asyncio.Queue[None] = asyncio.Queue()
    asked: asyncio.Queue[float] = asyncio.Queue()
    now = [0.0]

    async def fetch(_: KeySource, seconds: float) -> str:
        asked.put_nowait(seconds)
        found = answers.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    fetcher = KeyFetcher(fetch, lambda: now[0])
    assert fetcher.want({ONE: 7.0}) == {}
    running = asyncio.create_task(fetcher.run(lambda: told.put_nowait(None)))
    try:
        await asyncio.wait_for(told.get(), 60)
        assert await asyncio.wait_for(asked.get(), 60) == 7.0
        assert fetcher.want({ONE: 7.0}) == {ONE: "a"}
        for expected in ("a", "a", "b"):
            now[0] += REFRESH_SECONDS
            known = fetcher.want({ONE: 7.0})
            await asyncio.wait_for(asked.get(), 60)
            if expected == "b":
                await asyncio.wait_for(told.get(), 60)
                known = fetcher.want({ONE: 7.0})
            assert known == {ONE: expected}
            assert told.empty()
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running
