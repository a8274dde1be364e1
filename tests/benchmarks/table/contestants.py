"""Who is compared: each is one way to send requests, in a process of its own (`worker.py`).

To add one: a class of `Asks` (tasks) or `Calls` (threads), and its name in `CONTESTANTS`. What is not
installed is left out of the table, and the table says so.
"""

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Protocol

CHUNK = bytes(2**16)


class Asks(Protocol):
    """For tasks of one event loop."""

    async def ask(self) -> None:
        """One small request, its body read."""

    async def close(self) -> None:
        """Closes its connections."""


class Calls(Protocol):
    """For threads."""

    def call(self) -> None:
        """One small request, its body read."""

    def close(self) -> None:
        """Closes its connections."""


def pieces(size: int) -> Iterator[bytes]:
    """A body of so many bytes."""
    for _ in range(size // len(CHUNK)):
        yield CHUNK


async def apieces(size: int) -> AsyncIterator[bytes]:
    """The same."""
    for piece in pieces(size):
        yield piece


class _AsyncOfHttpx:
    """Any AsyncClient with httpx's API."""

    def __init__(self, client: Any, url: str) -> None:
        self._client, self._url = client, url

    async def ask(self) -> None:
        answer = await self._client.get(self._url)
        assert answer.status_code == 200, answer.text
        assert answer.content

    async def download(self, size: int) -> None:
        """A large response, as it comes."""
        async with self._client.stream("GET", f"{self._url}{size}") as answer:
            async for piece in answer.aiter_raw():
                size -= len(piece)
        assert not size

    async def upload(self, size: int) -> None:
        """A large request of a stream."""
        headers = {"content-length": str(size)}
        answer = await self._client.post(self._url, content=apieces(size), headers=headers)
        assert answer.status_code == 200

    async def close(self) -> None:
        await self._client.aclose()


class _OfHttpx:
    """Any Client with httpx's API, or a Session of requests."""

    def __init__(self, client: Any, url: str) -> None:
        self._client, self._url = client, url

    def call(self) -> None:
        answer = self._client.get(self._url)
        assert answer.status_code == 200, answer.text
        assert answer.content

    def close(self) -> None:
        self._client.close()


class _OfAiohttp:
    """An aiohttp session."""

    def __init__(self, session: Any, url: str) -> None:
        self._session, self._url = session, url

    async def ask(self) -> None:
        async with self._session.get(self._url) as answer:
            assert answer.status == 200
            assert await answer.read()

    async def download(self, size: int) -> None:
        """A large response, as it comes."""
        async with self._session.get(f"{self._url}{size}") as answer:
            async for piece in answer.content.iter_any():
                size -= len(piece)
        assert not size

    async def upload(self, size: int) -> None:
        """A large request of a stream."""
        headers = {"content-length": str(size)}
        async with self._session.post(self._url, data=apieces(size), headers=headers) as answer:
            assert answer.status == 200

    async def close(self) -> None:
        await self._session.close()


def _httpx(url: str, **_: Any) -> Asks:
    import httpx

    return _AsyncOfHttpx(httpx.AsyncClient(trust_env=False), url)


def _httpx2(url: str, **_: Any) -> Asks:
    import httpx2

    return _AsyncOfHttpx(httpx2.AsyncClient(trust_env=False), url)


def _aiohttp(url: str, **_: Any) -> Asks:
    import aiohttp

    return _OfAiohttp(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)), url)


def _mesh(url: str, settings: dict[str, Any], **_: Any) -> Asks:
    import meshlib

    _count()
    return _AsyncOfHttpx(meshlib.AsyncClient(**settings), url)


def _mesh_counted_by_the_sdk(url: str, settings: dict[str, Any], **_: Any) -> Asks:
    import meshlib

    _count(by_the_sdk=True)
    return _AsyncOfHttpx(meshlib.AsyncClient(**settings), url)


def _mesh_without_metrics(url: str, settings: dict[str, Any], **_: Any) -> Asks:
    import meshlib

    return _AsyncOfHttpx(meshlib.AsyncClient(**settings), url)


def _lean(url: str, **_: Any) -> Asks:
    """The mesh's client and connections, and nothing decided."""
    from benchmarks.table.lean import LeanTransport

    import meshlib

    return _AsyncOfHttpx(meshlib.AsyncClient(transport=LeanTransport()), url)


def _httpx_sync(url: str, **_: Any) -> Calls:
    import httpx

    return _OfHttpx(httpx.Client(trust_env=False), url)


def _httpx2_sync(url: str, **_: Any) -> Calls:
    import httpx2

    return _OfHttpx(httpx2.Client(trust_env=False), url)


def _requests(url: str, **_: Any) -> Calls:
    import requests

    session = requests.Session()
    session.trust_env = False
    session.mount("http://", requests.adapters.HTTPAdapter(pool_maxsize=64))
    return _OfHttpx(session, url)


def _mesh_sync(url: str, settings: dict[str, Any], **_: Any) -> Calls:
    import meshlib

    _count()
    return _OfHttpx(meshlib.Client(**settings), url)


def _mesh_requests(url: str, settings: dict[str, Any], **_: Any) -> Calls:
    import meshlib_requests

    _count()
    session = meshlib_requests.Session(**settings)
    session.trust_env = False  # as of the bare one: neither looks for a netrc
    return _OfHttpx(session, url)


def _mesh_aiohttp(url: str, settings: dict[str, Any], **_: Any) -> Asks:
    import meshlib_aiohttp

    _count()
    return _OfAiohttp(meshlib_aiohttp.ClientSession(**settings), url)


def _count(*, by_the_sdk: bool = False) -> None:
    """Metrics are on: every second all of them are collected, and encoded as OTLP's exporter does it."""
    from opentelemetry import metrics
    from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import (
        MetricExporter,
        MetricExportResult,
        MetricsData,
        PeriodicExportingMetricReader,
    )

    import meshlib

    class Exporter(MetricExporter):
        def export(self, metrics_data: MetricsData, *_: Any, **__: Any) -> MetricExportResult:
            encode_metrics(metrics_data).SerializeToString()
            return MetricExportResult.SUCCESS

        def force_flush(self, *_: Any, **__: Any) -> bool:
            return True

        def shutdown(self, *_: Any, **__: Any) -> None:
            pass

    made = MeterProvider if by_the_sdk else meshlib.MeterProvider
    metrics.set_meter_provider(made([PeriodicExportingMetricReader(Exporter(), 1000)]))


CONTESTANTS: dict[str, Callable[..., Any]] = {
    "httpx": _httpx,
    "httpx2": _httpx2,
    "aiohttp": _aiohttp,
    "mesh": _mesh,
    "mesh counted by the SDK": _mesh_counted_by_the_sdk,
    "mesh without metrics": _mesh_without_metrics,
    "lean": _lean,
    "httpx sync": _httpx_sync,
    "httpx2 sync": _httpx2_sync,
    "requests": _requests,
    "mesh sync": _mesh_sync,
    "mesh requests": _mesh_requests,
    "mesh aiohttp": _mesh_aiohttp,
}
NEEDS = {"httpx2": "httpx2", "httpx2 sync": "httpx2", "aiohttp": "aiohttp", "requests": "requests"}
"""The package that a contestant is of, where it isn't meshlib's own."""
