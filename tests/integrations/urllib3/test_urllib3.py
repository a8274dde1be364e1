"""urllib3's own API in the mesh: what the contract of all clients does not ask."""

import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import urllib3
from support.fake_mesh import FakeMesh, fake_mesh
from support.raw_server import RawServer, raw_server
from support.tls_server import tls_server

import meshlib_urllib3

URL = "http://reviews:9080"


@pytest.fixture(scope="module")
def server() -> Iterator[RawServer]:
    with raw_server() as made:
        yield made


@pytest.fixture
def mesh(server: RawServer) -> FakeMesh:
    return fake_mesh([server.port])


@pytest.fixture
def http(mesh: FakeMesh) -> Iterator[urllib3.PoolManager]:
    with meshlib_urllib3.PoolManager(mesh=mesh) as made:  # type: ignore[arg-type]
        yield made
        assert mesh.in_flight() == 0


def test_a_response_is_urllib3s(http: urllib3.PoolManager) -> None:
    answer = http.request("GET", f"{URL}/echo", fields={"a": "1"})
    found = meshlib_urllib3.facts(answer)
    assert found is not None
    assert (answer.status, answer.reason, answer.version_string) == (200, "OK", "HTTP/1.1")
    assert (answer.json()["method"], answer.headers["x-a"], found.cluster) == ("GET", "1", "c")
    sent = dict(answer.json()["headers"])
    assert sent["User-Agent"] == f"python-urllib3/{urllib3.__version__}"


def test_a_response_is_read_as_it_comes(http: urllib3.PoolManager, server: RawServer) -> None:
    before = server.connections
    answer = http.request("GET", f"{URL}/chunks/30", preload_content=False)
    assert b"".join(answer.stream(7)) == b"".join(b"chunk %d;" % number for number in range(30))
    answer = http.request("GET", f"{URL}/big/1048576", preload_content=False)
    assert len(io.BufferedReader(answer, 1000).read()) == 1048576  # type: ignore[type-var, arg-type]
    answer = http.request("GET", f"{URL}/echo", preload_content=False)
    answer.drain_conn()
    assert http.request("GET", f"{URL}/echo").status == 200
    assert server.connections == before + 1


def test_retry_is_for_statuses_and_own_time_outs(http: urllib3.PoolManager, server: RawServer) -> None:
    server.tries.clear()
    retries = urllib3.Retry(3, status_forcelist=[503], backoff_factor=0)
    assert http.request("GET", f"{URL}/script/503,503,200/x", retries=retries).status == 200
    assert server.tries["x"] == 3
    with pytest.raises(urllib3.exceptions.MaxRetryError) as raised:
        http.request("GET", f"{URL}/slow/5", timeout=0.02, retries=1)
    assert isinstance(raised.value.reason, urllib3.exceptions.ReadTimeoutError)
    with pytest.raises(urllib3.exceptions.ReadTimeoutError):
        http.request("GET", f"{URL}/slow/5", timeout=urllib3.Timeout(total=0.02), retries=False)
    with pytest.raises(urllib3.exceptions.ProtocolError):
        http.request("GET", f"{URL}/script/reset/y", retries=retries)
    assert server.tries["y"] == 1


def test_redirects_are_followed_and_bounded(http: urllib3.PoolManager) -> None:
    answer = http.request("POST", f"{URL}/redirect/303", body=b"x")
    assert answer.json()["method"] == "GET"
    assert http.request("GET", f"{URL}/redirect/302", redirect=False).status == 302
    with pytest.raises(urllib3.exceptions.MaxRetryError, match="too many redirects"):
        http.request("GET", f"{URL}/redirect/302", retries=urllib3.Retry(redirect=0))


def test_a_pool_that_blocks_has_so_many_places(mesh: FakeMesh, server: RawServer) -> None:
    before = server.connections
    with meshlib_urllib3.PoolManager(mesh=mesh, block=True, maxsize=2) as http:  # type: ignore[arg-type]
        with ThreadPoolExecutor(8) as threads:
            asked = [f"{URL}/slow/0.01"] * 16
            assert {a.status for a in threads.map(lambda url: http.request("GET", url), asked)} == {200}
        kept = [http.request("GET", f"{URL}/drip", preload_content=False) for _ in range(2)]
        with pytest.raises(urllib3.exceptions.EmptyPoolError):
            http.request("GET", f"{URL}/echo", pool_timeout=0.02)
        for answer in kept:
            answer.close()
            answer.release_conn()
        assert http.request("GET", f"{URL}/echo").status == 200
    assert server.connections - before <= 2 + 2 + 1


@pytest.mark.parametrize(
    "headers",
    [{"User-Agent": urllib3.util.SKIP_HEADER}, {"Accept-Encoding": urllib3.util.SKIP_HEADER}],
    ids=["agent", "encoding"],
)
def test_headers_that_urllib3_shall_not_add(http: urllib3.PoolManager, headers: dict[str, str]) -> None:
    sent = http.request("GET", f"{URL}/echo", headers=headers).json()["headers"]
    assert not {name for name, _ in sent} & set(headers)


def test_what_is_not_http_is_refused(http: urllib3.PoolManager) -> None:
    with pytest.raises(urllib3.exceptions.HTTPError, match="illegal"):
        http.request("GET", f"{URL}/echo", headers={"x": "a\r\nb: c"})
    with pytest.raises(TypeError):
        http.request("POST", f"{URL}/echo", body=7)  # type: ignore[arg-type]


def test_https_goes_out_as_urllib3_sends_it(mesh: FakeMesh, tmp_path: Path) -> None:
    with (
        tls_server(tmp_path) as (port, trusted),
        meshlib_urllib3.PoolManager(mesh=mesh, ca_certs=str(trusted)) as http,  # type: ignore[arg-type]
    ):
        answer = http.request("GET", f"https://localhost:{port}/")
        assert (answer.data, meshlib_urllib3.facts(answer)) == (b"secret", None)


def test_a_manager_that_was_cleared_goes_on(http: urllib3.PoolManager) -> None:
    assert http.request("GET", f"{URL}/echo").status == 200
    http.clear()
    assert http.request("GET", f"{URL}/echo").status == 200
