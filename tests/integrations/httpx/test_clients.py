"""What a client is made of: names, https, proxies, errors, arguments, and what an import costs."""

import asyncio
import gc
import socket
import ssl
import subprocess
import sys
import weakref
from collections.abc import Iterator
from http.cookiejar import CookieJar
from pathlib import Path

import httpx
import pytest
from support.fake_mesh import FakeMesh, fake_mesh
from support.raw_server import RawServer, raw_server
from support.tls_server import tls_server

import meshlib
from meshlib.core.actions import Facts
from meshlib.core.request import Failed, Failure
from meshlib.core.view import View
from meshlib.dataplane.decode.routes import decode_routes
from meshlib.dataplane.drive import FlightFailed
from meshlib.errors import Closed, ControlUnavailable, RefusedResource
from meshlib.xds import pb
from meshlib_httpx.errors import of_failure

PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


@pytest.fixture
def server() -> Iterator[RawServer]:
    with raw_server() as made:
        yield made


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


def client(mesh: FakeMesh, **arguments: object) -> httpx.Client:
    return meshlib.Client(mesh=mesh, **arguments)  # type: ignore[arg-type]


# Names


def test_the_host_header_is_the_applications_authority(server: RawServer) -> None:
    names = ("reviews:9080", "reviews:80", "ratings:9080", "[::1]:8080")
    with client(fake_mesh([server.port], names)) as c:
        for url, headers, sent in (
            ("http://reviews:9080/", {}, "reviews:9080"),
            ("http://reviews/", {}, "reviews"),
            ("http://REVIEWS/", {}, "reviews"),
            ("http://127.0.0.1:9080/", {"host": "ratings"}, "ratings"),
            ("http://127.0.0.1:9080/", {"host": "reviews:9080"}, "reviews:9080"),
            ("http://[::1]:8080/", {}, "[::1]:8080"),
        ):
            assert ["Host", sent] in c.get(url, headers=headers).json()["headers"]


def test_facts_are_told_with_the_response(server: RawServer) -> None:
    with client(fake_mesh([server.port])) as c:
        response = c.get("http://reviews:9080/echo")
        unknown = c.get("http://nobody:1/echo")
    facts = response.extensions["meshlib"]
    assert isinstance(facts, Facts)
    assert (facts.route, facts.cluster, facts.endpoint) == ("x", "c", f"127.0.0.1:{server.port}")
    assert (unknown.status_code, unknown.extensions["meshlib"].flag) == (404, "NR")


async def test_the_api_of_httpx_goes_on_working(server: RawServer) -> None:
    seen: list[str] = []
    hooks = {
        "request": [lambda request: seen.append(request.method)],
        "response": [lambda response: seen.append(str(response.status_code))],
    }
    base = {"base_url": "http://reviews:9080/status/", "params": {"q": "1"}, "headers": {"x-mine": "1"}}
    with client(fake_mesh([server.port]), event_hooks=hooks, **base) as c:
        assert c.get("201").status_code == 201
        c.cookies.set("a", "b")
        c.get("/../../echo")
    assert seen == ["GET", "201", "GET", "200"]
    assert b"GET /status/201?q=1 HTTP/1.1" in server.heads[0]
    assert b"x-mine: 1" in server.heads[0]
    assert b"Cookie: a=b" in server.heads[1]


@pytest.mark.parametrize(
    "url", ["http://a/?b=c#d", f"http://a/{'x' * 300}", "/relative", httpx.URL("http://b/")]
)
def test_a_url_that_is_asked_for_again_is_the_same(url: str | httpx.URL) -> None:
    base, always = "http://base/under", {"p": "1"}
    bare = httpx.Client(base_url=base, params=always, trust_env=False)
    with bare, client(fake_mesh([1]), base_url=base, params=always) as c:
        for params in (None, {"q": "2"}, None):
            asked = c.build_request("GET", url, params=params)
            assert asked.url == bare.build_request("GET", url, params=params).url


async def test_a_response_goes_when_nobody_holds_it(server: RawServer) -> None:
    mesh, url = fake_mesh([server.port]), "http://reviews:9080/echo"
    gc.disable()
    try:
        async with meshlib.AsyncClient(mesh=mesh) as a:  # type: ignore[arg-type]
            answer = await a.get(url)
            assert answer.content == answer.read() == await answer.aread()
            assert answer.elapsed.total_seconds() > 0
            await answer.aclose()
            gone = weakref.ref(answer)
            del answer
            assert gone() is None
        with client(mesh) as c:
            answer = c.get(url)
            assert answer.content == answer.read() == b"".join(answer.iter_bytes())
            answer.close()
            gone = weakref.ref(answer)
            del answer
            assert gone() is None
    finally:
        gc.enable()


def test_a_url_that_is_wrong_is_wrong_each_time() -> None:
    with client(fake_mesh([1])) as c:
        for _ in range(2):
            with pytest.raises(httpx.InvalidURL):
                c.build_request("GET", "http://a:port/")


async def test_cookies_are_kept_as_httpx_keeps_them_and_a_jar_of_ones_own_stays(server: RawServer) -> None:
    async with meshlib.AsyncClient(mesh=fake_mesh([server.port])) as a:  # type: ignore[arg-type]
        await a.get("http://reviews:9080/echo")
        assert dict(a.cookies) == {}
        await a.get("http://reviews:9080/cookie")
        kept = dict(a.cookies)
    jar = CookieJar()
    with client(fake_mesh([server.port]), cookies=jar) as c:
        c.get("http://reviews:9080/cookie")
        c.get("http://reviews:9080/echo")
    assert {cookie.name: cookie.value for cookie in jar} == kept != {}
    assert b"Cookie: " in server.heads[-1]


def test_a_client_of_ones_own(server: RawServer) -> None:
    transport = meshlib.Client(mesh=fake_mesh([server.port]))._transport  # type: ignore[arg-type]
    with httpx.Client(transport=transport) as c:
        assert c.get("http://reviews:9080/echo").status_code == 200
    mock = httpx.MockTransport(lambda request: httpx.Response(299))
    with client(fake_mesh([]), transport=mock) as c:
        assert c.get("http://reviews:9080/").status_code == 299
    with client(fake_mesh([server.port]), mounts={"http://mocked": mock}) as c:
        assert c.get("http://mocked/").status_code == 299
        assert c.get("http://reviews:9080/echo").status_code == 200


def test_a_mesh_and_settings_of_one_are_too_much() -> None:
    with pytest.raises(TypeError, match="mesh and namespace can't be given both"):
        client(fake_mesh([]), namespace="n")


# https


async def test_https_goes_out_as_httpx_sends_it(tmp_path: Path) -> None:
    with tls_server(tmp_path) as (port, trusted):
        url = f"https://localhost:{port}/"
        with client(fake_mesh([]), verify=ssl.create_default_context(cafile=trusted)) as c:
            assert [c.get(url).text for _ in range(2)] == ["secret"] * 2
        with client(fake_mesh([])) as c, pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            c.get(url)
        async with meshlib.AsyncClient(mesh=fake_mesh([]), verify=False) as a:  # type: ignore[arg-type]
            assert (await a.get(url)).text == "secret"


async def test_https_to_unknown_hosts_is_refused_where_only_known_ones_are_allowed() -> None:
    block = {
        "name": "r",
        "virtual_hosts": [
            {
                "name": "block_all",
                "domains": ["*"],
                "routes": [
                    {"name": "block_all", "match": {"prefix": "/"}, "direct_response": {"status": 502}}
                ],
            }
        ],
    }
    table = decode_routes(pb.from_dict(pb.RouteConfiguration, block))
    mesh = FakeMesh(View("1", {"elsewhere:443": table, "elsewhere:80": table}))
    with client(mesh) as c:
        with pytest.raises(meshlib.ConnectFailed, match="REGISTRY_ONLY") as raised:
            c.get("https://elsewhere/")
        assert isinstance(raised.value, httpx.ConnectError)
        assert raised.value.request.url == "https://elsewhere/"
        refused = c.get("http://elsewhere/")
    assert refused.status_code == 502
    assert refused.extensions["meshlib"].detail == (
        "outboundTrafficPolicy REGISTRY_ONLY: elsewhere is not in the mesh"
    )
    async with meshlib.AsyncClient(mesh=mesh) as a:  # type: ignore[arg-type]
        with pytest.raises(meshlib.ConnectFailed, match="REGISTRY_ONLY"):
            await a.get("https://elsewhere/")


# Errors


@pytest.mark.parametrize(
    ("how", "meshs", "httpxs"),
    [
        (Failure.CONNECT_FAILED, meshlib.ConnectFailed, httpx.ConnectError),
        (Failure.CONNECT_TIMED_OUT, meshlib.ConnectTimedOut, httpx.ConnectTimeout),
        (Failure.RESET_BEFORE_REQUEST, meshlib.UpstreamReset, httpx.ReadError),
        (Failure.RESET, meshlib.UpstreamReset, httpx.RemoteProtocolError),
        (Failure.BROKEN_OFF, meshlib.UpstreamReset, httpx.RemoteProtocolError),
        (Failure.REFUSED_STREAM, meshlib.UpstreamReset, httpx.RemoteProtocolError),
        (Failure.REMOTE_RESET, meshlib.UpstreamReset, httpx.RemoteProtocolError),
        (Failure.TRY_TIMED_OUT, meshlib.UpstreamTimedOut, httpx.ReadTimeout),
        (Failure.TIMED_OUT, meshlib.UpstreamTimedOut, httpx.ReadTimeout),
        (Failure.PROTOCOL, meshlib.UpstreamProtocolError, httpx.RemoteProtocolError),
    ],
)
def test_each_failure_is_an_error_of_both(
    how: Failure, meshs: type[meshlib.RequestError], httpxs: type[httpx.TransportError]
) -> None:
    request = httpx.Request("GET", "http://reviews:9080/")
    facts = Facts("route", "VirtualService a/b", "f.yaml:3", "c", "10.0.0.1:80", 2, "-", "", "7")
    error = of_failure(FlightFailed(Failed(how, "in other words"), facts), request)
    assert isinstance(error, meshs)
    assert isinstance(error, httpxs)
    assert error.request is request
    assert error.flight == meshlib.Flight("route", "c", "10.0.0.1:80", 2, "7", "f.yaml:3")
    flight = "route route, cluster c, endpoint 10.0.0.1:80, 2 attempts, config 7, from f.yaml:3"
    assert str(error) == f"{how.value}: in other words [{meshs.flag}] ({flight})"


@pytest.mark.parametrize("url", ["reviews/", "ftp://reviews/", "http:///x", "//reviews/x"])
async def test_a_url_that_can_be_asked_of_nobody(url: str) -> None:
    with httpx.Client(trust_env=False) as bare, pytest.raises(httpx.RequestError) as expected:
        bare.get(url)
    mesh = fake_mesh([])
    mesh.failure = AssertionError("the mesh is not asked")
    with client(mesh) as c, pytest.raises(type(expected.value)) as raised:
        c.get(url)
    assert str(raised.value) == str(expected.value)
    async with meshlib.AsyncClient(mesh=mesh) as a:  # type: ignore[arg-type]
        with pytest.raises(type(expected.value)):
            await a.get(url)


@pytest.mark.parametrize("kind", [ControlUnavailable, RefusedResource])
async def test_a_host_of_which_nothing_is_known(kind: type[meshlib.ControlError]) -> None:
    mesh = fake_mesh([])
    mesh.failure = kind("no control")
    with client(mesh) as c, pytest.raises(kind, match=r"^no control$") as raised:
        c.get("http://reviews:9080/")
    assert isinstance(raised.value, httpx.ConnectError)
    assert raised.value.request.url == "http://reviews:9080/"
    async with meshlib.AsyncClient(mesh=mesh) as a:  # type: ignore[arg-type]
        with pytest.raises(httpx.ConnectError):
            await a.get("https://reviews/")


async def test_a_closed_mesh_is_told_as_it_is() -> None:
    mesh = fake_mesh([])
    mesh.failure = Closed("the mesh is closed")
    with client(mesh) as c, pytest.raises(Closed):
        c.get("http://reviews:9080/")


async def test_a_connection_that_takes_too_long() -> None:
    """A listener that never accepts, its queue full: the kernel leaves a connection pending."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        port = full.getsockname()[1]
        fillers = []
        for _ in range(2):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", port))
            fillers.append(filler)
        await asyncio.sleep(0.02)
        mesh = fake_mesh([port], connect_timeout=0.05)
        with client(mesh) as c, pytest.raises(meshlib.ConnectTimedOut) as raised:
            c.get("http://reviews:9080/")
        assert isinstance(raised.value, httpx.ConnectTimeout)
        slow = fake_mesh([port], connect_timeout=9.0)
        async with meshlib.AsyncClient(mesh=slow) as a:  # type: ignore[arg-type]
            with pytest.raises(httpx.ConnectTimeout):
                await a.get("http://reviews:9080/", timeout=httpx.Timeout(5, connect=0.05))
            assert slow.in_flight() == 0
        for filler in fillers:
            filler.close()


# Imports


def test_the_integration_loads_little_more_than_httpx() -> None:
    """What httpx itself loads only when it connects stays unloaded; so does all that control needs."""
    heavy = (
        "httpcore",
        "anyio",
        "grpc",
        "yaml",
        "pydantic",
        "typer",
        "rich",
        "cryptography",
        "opentelemetry",
    )
    code = (
        "import sys, httpx\n"
        f"heavy = set({heavy!r}) - set(sys.modules)\n"
        "import meshlib_httpx\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
