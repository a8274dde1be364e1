"""requests' own API in the mesh: what the contract of all clients does not ask."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from support.fake_mesh import FakeMesh, fake_mesh
from support.raw_server import RawServer, raw_server

import meshlib_requests

URL = "http://reviews:9080"


@pytest.fixture(scope="module")
def server() -> Iterator[RawServer]:
    with raw_server() as made:
        yield made


@pytest.fixture
def mesh(server: RawServer) -> FakeMesh:
    return fake_mesh([server.port])


@pytest.fixture
def session(mesh: FakeMesh) -> Iterator[requests.Session]:
    with meshlib_requests.Session(mesh=mesh) as made:  # type: ignore[arg-type]
        yield made
        assert mesh.in_flight() == 0


def test_a_session_of_ones_own(mesh: FakeMesh) -> None:
    with requests.Session() as session:
        session.mount("http://", meshlib_requests.Adapter(mesh))  # type: ignore[arg-type]
        answer = session.get(f"{URL}/echo", params={"a": "1 2"})
    found = meshlib_requests.facts(answer)
    assert found is not None
    assert (answer.status_code, answer.reason, found.cluster) == (200, "OK", "c")
    assert answer.url == f"{URL}/echo?a=1+2"


def test_bodies_of_all_kinds(session: requests.Session, tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("text" * 20_000)
    with file.open("rb") as opened:
        assert session.post(f"{URL}/echo", data=opened).json()["size"] == 80_000
    assert session.post(f"{URL}/echo", data="ä").json()["body"] == "c3a4"
    assert session.post(f"{URL}/echo", json={"a": 1}).json()["body"] == b'{"a": 1}'.hex()
    sent = session.post(f"{URL}/echo", files={"f": b"x"}).json()
    assert dict(sent["headers"])["Content-Type"].startswith("multipart/form-data; boundary=")


def test_an_error_of_a_file_is_requests_own(session: requests.Session) -> None:
    def broken() -> Iterator[bytes]:
        yield b"first"
        raise FileNotFoundError("no more")

    with pytest.raises(requests.ConnectionError, match="no more"):
        session.post(f"{URL}/echo", data=broken())


def test_a_response_is_read_as_it_comes(session: requests.Session, server: RawServer) -> None:
    assert session.get(f"{URL}/echo").ok  # whoever connected before is counted once this is answered
    before = server.connections
    with session.get(f"{URL}/chunks/30", stream=True) as answer:
        assert [line for line in answer.iter_lines(delimiter=b";") if line] == [
            b"chunk %d" % number for number in range(30)
        ]
    with session.get(f"{URL}/big/1048576", stream=True) as answer:
        assert sum(len(part) for part in answer.iter_content(1000)) == 1048576
    with session.get(f"{URL}/big/1048576", stream=True) as answer:
        assert answer.raw.read(10) == b"0123456789"
        assert len(answer.raw.read()) == 1048566
    with session.get(f"{URL}/echo", stream=True) as answer:
        assert answer.ok  # all of it has come: not read, and its connection goes on
    assert session.get(f"{URL}/echo").ok
    assert server.connections == before


def test_digest_hooks_and_raise_for_status(session: requests.Session) -> None:
    seen: list[int] = []

    def note(answer: requests.Response, **_: object) -> None:
        seen.append(answer.status_code)

    answer = session.get(
        f"{URL}/digest", auth=requests.auth.HTTPDigestAuth("u", "p"), hooks={"response": note}
    )
    assert (answer.text, [r.status_code for r in answer.history]) == ("welcome", [401])
    assert seen
    with pytest.raises(requests.HTTPError, match="404 Client Error: As Asked"):
        session.get(f"{URL}/status/404").raise_for_status()


@pytest.mark.parametrize("timeout", [0.05, (1, 0.05), requests.adapters.TimeoutSauce(total=0.05)])
def test_time_outs_as_requests_says_them(session: requests.Session, timeout: object) -> None:
    with pytest.raises(requests.ReadTimeout):
        session.get(f"{URL}/slow/5", timeout=timeout)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Invalid timeout"):
        session.get(f"{URL}/echo", timeout=(1, 2, 3))  # type: ignore[arg-type]


def test_a_header_that_is_none_is_refused(session: requests.Session) -> None:
    with pytest.raises(requests.exceptions.InvalidHeader):
        session.get(f"{URL}/echo", headers={"a b": "1"})


def test_a_mesh_and_settings_are_too_much(mesh: FakeMesh) -> None:
    with pytest.raises(TypeError, match="both"):
        meshlib_requests.Session(mesh=mesh, namespace="default")  # type: ignore[arg-type]
