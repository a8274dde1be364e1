"""What a Session in the mesh prepares and answers is what requests would; it only takes less."""

import gzip
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st
from support.fake_mesh import FakeMesh, fake_mesh
from support.raw_server import RawServer, raw_server

import meshlib_requests
from meshlib.core.actions import Facts
from meshlib.dataplane.drive import Answer
from meshlib_requests.prepare import NORMAL, prepared
from meshlib_requests.response import Response
from meshlib_urllib3.response import Received

URL = "http://reviews:9080"
PARTS = st.text(st.sampled_from("aZ0.-_~/=;,:@!$&'()*+?%#[]\\ ä"), max_size=12)
ADDRESSES = st.sampled_from(
    [
        "reviews:9080",
        "reviews",
        "Reviews:80",
        "127.0.0.1:0",
        "r.default.svc:080",
        "a@b:1",
        "[::1]:80",
        "ä:70000",
    ]
)


def whole(request: requests.PreparedRequest) -> tuple[Any, ...]:
    """All that is sent of a request, and what the session does with it."""
    jar: Any = request._cookies  # type: ignore[attr-defined]
    headers = list(request.headers.items())
    return request.method, request.url, headers, request.body, request.hooks, sorted(jar.items())


def outcome(make: Any, request: requests.Request, session: requests.Session) -> Any:
    try:
        return whole(make(request, session))
    except (requests.RequestException, ValueError, AttributeError, TypeError) as error:
        return type(error), str(error)


def same(request: requests.Request, session: requests.Session) -> None:
    plain = outcome(lambda r, s: requests.Session.prepare_request(s, r), request, session)
    assert outcome(prepared, request, session) == plain


@given(address=ADDRESSES, path=PARTS, query=PARTS)
def test_urls_are_prepared_as_requests_does(address: str, path: str, query: str) -> None:
    session = requests.Session()
    session.trust_env = False
    for url in (f"http://{address}/{path}", f"http://{address}/{path}?{query}", f"http://{address}"):
        same(requests.Request("GET", url), session)


def test_a_normal_url_and_some_that_are_none() -> None:
    found = NORMAL.fullmatch("http://reviews:9080/a/b.c?d=e.f")
    assert found is not None
    assert found.groups() == ("reviews", "9080", "/a/b.c?d=e.f")
    for url in (
        "http://reviews",
        "http://a:080/",
        "http://a/../b",
        "http://a/%41",
        "http://a/?",
        "http://a:0/",
    ):
        assert NORMAL.fullmatch(url) is None


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"headers": {"a": "1", "User-Agent": None}},
        {"headers": {b"a": b"1"}},
        {"headers": {"a": " 1"}},
        {"headers": {"a": "ä\t"}},
        {"headers": {"a": "1\r\nb: 2"}},
        {"headers": {"a:": "1"}},
        {"headers": {"a": 1}},
        {"headers": [("a", "1")]},
        {"headers": requests.structures.CaseInsensitiveDict(ACCEPT="x")},
        {"params": {"b": [1, 2], "s": None}},
        {"params": "raw=1"},
        {"cookies": {"c": "1"}},
        {"auth": ("u", "p")},
        {"json": {"a": 1}},
        {"data": {"a": "1"}},
        {"data": b"x", "hooks": {"response": [print]}},
        {"method": "post"},
        {"url": "http://u:p%40@reviews/"},
        {"url": b"http://reviews/"},
        {"url": "mailto:me"},
        {"url": "reviews/"},
    ],
    ids=repr,
)
@pytest.mark.parametrize("kind", ["plain", "full", "odd"])
def test_requests_are_prepared_as_requests_does(said: dict[str, Any], kind: str) -> None:
    session = requests.Session()
    if kind == "full":
        session.headers.update({"S": "1", "a": "0"})
        session.params = {"s": "1"}
        session.auth = ("s", "t")
        session.cookies.set("k", "v")
        session.hooks["response"] = [repr]
    elif kind == "odd":
        session.headers = {"Only": "1"}  # type: ignore[assignment]
        session.cookies = {}  # type: ignore[assignment]
    same(requests.Request(**{"method": "GET", "url": URL + "/", **said}), session)


def test_the_sessions_headers_are_not_the_requests() -> None:
    session = requests.Session()
    prepared(requests.Request("GET", URL + "/", headers={"a": "1"}), session).headers["b"] = "2"
    assert session.headers == requests.Session().headers


@pytest.fixture(scope="module")
def server() -> Iterator[RawServer]:
    with raw_server() as made:
        yield made


@pytest.fixture
def mesh(server: RawServer) -> FakeMesh:
    return fake_mesh([server.port])


def answered(headers: list[tuple[bytes, bytes]], body: bytes = b"hello") -> Response:
    answer = Answer(200, tuple(headers), Facts(), body, reason=b"OK")
    raw = Received(answer, decode_content=False, request_method="GET", request_url=URL)
    request = requests.Request("GET", URL + "/").prepare()
    return Response(request, raw, meshlib_requests.Adapter())


def test_a_response_has_what_requests_has() -> None:
    made = answered([(b"Content-Type", b"text/plain"), (b"A", b"1"), (b"a", b"2"), (b"Set-Cookie", b"c=1")])
    theirs = requests.adapters.HTTPAdapter().build_response(made.request, made.raw)
    names = (set(vars(theirs)) - {"cookies"}) | {"_jar"}
    assert set(vars(made)) == names
    assert made.headers == theirs.headers
    assert list(made.headers) == list(theirs.headers)
    assert (made.headers["a"], made.encoding, made.reason) == ("1, 2", theirs.encoding, "OK")
    assert dict(made.cookies) == dict(theirs.cookies) == {"c": "1"}
    assert dict(answered([]).cookies) == {}


def test_a_response_can_be_pickled() -> None:
    again = pickle.loads(pickle.dumps(answered([(b"Set-Cookie", b"c=1")])))
    assert (again.content, again.status_code, dict(again.cookies)) == (b"hello", 200, {"c": "1"})


def test_a_whole_body_is_read_once_whoever_asks_first() -> None:
    length = (b"Content-Length", b"5")
    made = answered([length])
    assert made.content == made.content == b"hello"
    assert list(made.iter_content(2)) == [b"he", b"ll", b"o"]
    assert (made.raw.read(), made.raw.read(10), made.raw.tell(), made.raw.closed) == (b"", b"", 5, True)
    made = answered([length])
    assert (made.raw.read(2), made.content, made.raw.read()) == (b"he", b"llo", b"")
    made = answered([length])
    assert list(made.iter_content(4)) == [b"hell", b"o"]
    with pytest.raises(RuntimeError, match="consumed"):
        _ = made.content
    made = answered([length])
    made.raw.decode_content = True  # before anything of it was asked for
    assert (made.raw.decode_content, made.raw.status, made.content) == (True, 200, b"hello")
    with pytest.raises(AttributeError, match="nothing_such"):
        _ = made.raw.nothing_such


def test_an_encoded_body_is_decoded() -> None:
    made = answered([(b"Content-Encoding", b"gzip")], gzip.compress(b"hello"))
    assert made.content == b"hello"
    with pytest.raises(requests.exceptions.ContentDecodingError):
        _ = answered([(b"content-encoding", b"gzip")]).content


def test_redirects_carry_cookies_of_a_session_that_had_none(mesh: FakeMesh) -> None:
    with meshlib_requests.Session(mesh=mesh) as session:  # type: ignore[arg-type]
        assert dict(session.get(f"{URL}/cookie").cookies) == {"a": "1", "b": "2"}
        assert dict(session.cookies) == {"a": "1", "b": "2"}
        assert [one.status_code for one in session.get(f"{URL}/redirect/302").history] == [302]
        assert session.get(f"{URL}/redirect/302", allow_redirects=False).next is not None
