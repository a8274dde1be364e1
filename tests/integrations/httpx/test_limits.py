"""httpx's limits and certificates, on requests that the mesh routes: what bare httpx does, we do."""

import asyncio
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.fake_mesh import fake_mesh
from support.raw_server import RawServer, raw_server

import meshlib

LAST = {"connection": "close"}
ONE = httpx.Limits(max_connections=1)
SHORT = httpx.Timeout(5.0, pool=0.1)
URL = "http://reviews:9080/"


@pytest.fixture
def server() -> Iterator[RawServer]:
    with raw_server() as made:
        yield made


def both(server: RawServer, **arguments: Any) -> list[tuple[httpx.Client, str]]:
    """Ours and httpx's own, each with the URL that it asks."""
    mesh: Any = fake_mesh([server.port], ("reviews:9080",))
    return [
        (meshlib.Client(mesh=mesh, **arguments), URL),
        (httpx.Client(trust_env=False, **arguments), f"http://127.0.0.1:{server.port}/"),
    ]


def test_an_open_response_holds_its_place(server: RawServer) -> None:
    for client, url in both(server, limits=ONE, timeout=SHORT):
        with client:
            with client.stream("GET", url) as held:
                with pytest.raises(httpx.PoolTimeout) as caught:
                    client.get(url)
                assert caught.value.request.url == url
                held.read()
            assert client.get(url).status_code == 200
            with pytest.raises(httpx.UnsupportedProtocol):  # a failure gives its place back
                client.get("ftp://x/")
            with client.stream("GET", url) as unread:
                assert unread.status_code == 200
            assert client.get(url).status_code == 200


def test_who_waits_is_served_as_soon_as_there_is_a_place(server: RawServer) -> None:
    for client, url in both(server, limits=ONE, timeout=5.0):
        answers: list[int] = []
        with client:
            with client.stream("GET", url):
                waiting = threading.Thread(target=lambda: answers.append(client.get(url).status_code))  # noqa: B023
                waiting.start()
                waiting.join(0.1)
                assert answers == []
            waiting.join(5)
        assert answers == [200]


async def test_on_asyncio(server: RawServer) -> None:
    mesh: Any = fake_mesh([server.port], ("reviews:9080",))
    bare = httpx.AsyncClient(trust_env=False, limits=ONE, timeout=SHORT)
    for client, url in (
        (meshlib.AsyncClient(mesh=mesh, limits=ONE, timeout=SHORT), URL),
        (bare, f"http://127.0.0.1:{server.port}/"),
    ):
        async with client:
            async with client.stream("GET", url):
                with pytest.raises(httpx.PoolTimeout):
                    await client.get(url)
                given_up = asyncio.create_task(client.get(url, timeout=5.0))
                await asyncio.sleep(0)
                given_up.cancel()
                await asyncio.wait({given_up})
            found = await asyncio.gather(*(client.get(url, timeout=5.0) for _ in range(10)))
            assert [one.status_code for one in found] == [200] * 10


def test_an_async_client_in_one_loop_after_the_other(server: RawServer) -> None:
    mesh: Any = fake_mesh([server.port], ("reviews:9080",))
    client = meshlib.AsyncClient(mesh=mesh, limits=ONE, timeout=SHORT)

    async def two() -> list[int]:
        return [
            one.status_code for one in await asyncio.gather(*(client.get(URL, headers=LAST) for _ in "ab"))
        ]

    assert asyncio.run(two()) == [200, 200]
    assert asyncio.run(two()) == [200, 200]


@pytest.mark.parametrize(
    ("limits", "connections"),
    [
        (httpx.Limits(keepalive_expiry=0.05), 2),
        (httpx.Limits(max_keepalive_connections=0), 2),
        (httpx.Limits(keepalive_expiry=5), 1),
        (httpx.Limits(keepalive_expiry=None), 1),
    ],
)
def test_how_long_an_idle_connection_is_kept(
    server: RawServer, limits: httpx.Limits, connections: int
) -> None:
    for client, url in both(server, limits=limits):
        before = server.connections
        with client:
            client.get(url)
            time.sleep(0.1)
            client.get(url)
        assert server.connections - before == connections


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("arguments", [{"verify": "missing.pem"}, {"cert": "missing.pem"}])
def test_a_certificate_that_is_not_there_is_told_at_once(arguments: Any) -> None:
    raised = []
    for made in (httpx.Client, httpx.AsyncClient, meshlib.Client, meshlib.AsyncClient):
        with refused() as caught:
            made(**arguments)
        raised.append(type(caught.value))
    assert len(set(raised)) == 1


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_certificate_that_is_none_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "none.pem").write_text("none")
    raised = []
    for made in (httpx.Client, meshlib.Client):
        with refused() as caught:
            made(cert=str(tmp_path / "none.pem"))
        raised.append(type(caught.value))
    assert raised[0] is raised[1]


def refused() -> AbstractContextManager[pytest.ExceptionInfo[OSError]]:
    return pytest.raises((FileNotFoundError, ssl.SSLError))
