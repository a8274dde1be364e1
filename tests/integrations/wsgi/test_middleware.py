"""WSGI: who is let in, what the application is told, and what is handed on."""

import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from wsgiref.util import FileWrapper

import pytest
from support.oracle_policies import Signers
from support.policed import PAGE, POLICY, STRANGER, gate, peer

import meshlib
from meshlib.core.request import RequestHead
from meshlib.dataplane import context
from meshlib.dataplane.gate import Gate
from meshlib_wsgi import CALLER, PEER, MeshMiddleware
from meshlib_wsgi.environ import write, write_headers


@pytest.fixture
def reviews(tmp_path: Path) -> Iterator[Gate]:
    found = gate(tmp_path)
    with found.mesh:
        yield found


def environ(principal: str, target: str = "/r%2Fs?a=1", **more: str) -> dict[str, Any]:
    path, _, query = target.partition("?")
    return {
        "REQUEST_METHOD": "GET",
        "RAW_URI": target,
        "PATH_INFO": path.replace("%2F", "/"),
        "QUERY_STRING": query,
        "SERVER_PORT": "9080",
        "HTTP_HOST": "reviews:9080",
        "wsgi.url_scheme": "http",
        "wsgi.file_wrapper": FileWrapper,
        PEER: peer(principal),
        **more,
    }


class Start:
    def __init__(self) -> None:
        self.status = ""
        self.headers: dict[str, str] = {}

    def __call__(self, status: str, headers: list[tuple[str, str]], *_: Any) -> None:
        self.status, self.headers = status, dict(headers)


def ask(app: MeshMiddleware, given: dict[str, Any]) -> tuple[str, bytes]:
    start = Start()
    body = app(given, start)
    try:
        return start.status, b"".join(body)
    finally:
        getattr(body, "close", lambda: None)()


def unasked(*_: Any) -> list[bytes]:
    raise AssertionError("the application was asked")


def test_the_caller_is_told(reviews: Gate) -> None:
    def app(given: dict[str, Any], start: Any) -> list[bytes]:
        start("200 OK", [])
        caller = given[CALLER]
        said = caller.service_account, caller.namespace, given["HTTP_X_FORWARDED_CLIENT_CERT"]
        return ["|".join(said).encode()]

    status, body = ask(MeshMiddleware(app, reviews), environ(PAGE))
    assert (status, body) == ("200 OK", f'productpage|default|Subject="";URI={PAGE}'.encode())


@pytest.mark.parametrize(
    ("principal", "target"),
    [(STRANGER, "/"), ("", "/"), (PAGE, "/admin"), (PAGE, "/x/../admin"), (PAGE, "/%61dmin")],
)
def test_who_is_refused(reviews: Gate, principal: str, target: str) -> None:
    refused = ask(MeshMiddleware(unasked, reviews), environ(principal, target))
    assert refused == ("403 Forbidden", b"RBAC: access denied")


def test_the_application_sees_the_path_that_was_judged(reviews: Gate) -> None:
    seen: list[str] = []

    def app(given: dict[str, Any], start: Any) -> list[bytes]:
        seen.extend((given["PATH_INFO"], given["RAW_URI"], given["QUERY_STRING"]))
        start("200 OK", [])
        return []

    assert ask(MeshMiddleware(app, reviews), environ(PAGE, "/admin/../r?a=1"))[0] == "200 OK"
    assert seen == ["/r", "/r?a=1", "a=1"]


def test_a_path_that_leads_out_of_the_application_is_none_of_its_paths(reviews: Gate) -> None:
    mounted = {"SCRIPT_NAME": "/app", "PATH_INFO": "/../r"}
    answer = ask(MeshMiddleware(unasked, reviews), environ(PAGE, "/app/../r") | mounted)
    assert answer == ("404 Not Found", b"")


@pytest.mark.parametrize(
    ("target", "info"), [("/app/a/../r%20s", "/r s"), ("/app", ""), ("/app/%61?b=1", "/a")]
)
def test_a_path_is_told_from_where_the_application_begins(reviews: Gate, target: str, info: str) -> None:
    seen: list[str] = []

    def app(given: dict[str, Any], start: Any) -> list[bytes]:
        seen.extend((given["SCRIPT_NAME"], given["PATH_INFO"]))
        start("200 OK", [])
        return []

    came = {"SCRIPT_NAME": "/app", "PATH_INFO": target.partition("?")[0].removeprefix("/app")}
    assert ask(MeshMiddleware(app, reviews), environ(PAGE, target) | came)[0] == "200 OK"
    assert seen == ["/app", info]


def test_cookies_stay_cookies() -> None:
    came = RequestHead("GET", "http", "reviews", "/", [(b"cookie", b"a=1"), (b"cookie", b"b=2")])
    admitted = RequestHead("GET", "http", "reviews", "/", [*came.headers, (b"x-a", b"1"), (b"x-a", b"2")])
    given: dict[str, Any] = {"HTTP_COOKIE": "a=1;b=2"}
    assert write(given, admitted, came)
    assert given == {"HTTP_HOST": "reviews", "HTTP_COOKIE": "a=1; b=2", "HTTP_X_A": "1,2"}


TOKENS = """
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: tokens}
spec:
  selector: {matchLabels: {app: reviews}}
  jwtRules: [{issuer: me, jwks: '%s', fromParams: [token]}]
"""


@pytest.mark.parametrize("raw", ["RAW_URI", "REQUEST_URI", ""])
def test_a_token_is_taken_out_of_each_place_of_the_query(tmp_path: Path, raw: str) -> None:
    signer = Signers()
    found = gate(tmp_path, POLICY.split("---")[0] + "---" + TOKENS % signer.jwks)
    claims = {"iss": "me", "sub": "jason", "exp": int(time.time()) + 60}
    token = signer.token({"alg": "RS256", "kid": "r"}, claims)
    given = environ("", f"/r?a=1&token={token}&b=2")
    target = given.pop("RAW_URI")
    given |= {raw: target} if raw else {}
    seen: dict[str, Any] = {}

    def app(environ: dict[str, Any], start: Any) -> list[bytes]:
        seen.update(environ)
        start("200 OK", [])
        return []

    with found.mesh:
        assert ask(MeshMiddleware(app, found), given)[0] == "200 OK"
    assert seen[CALLER].claims["sub"] == "jason"
    assert (seen["PATH_INFO"], seen["QUERY_STRING"]) == ("/r", "a=1&b=2")
    assert seen.get(raw or "RAW_URI") == ("/r?a=1&b=2" if raw else None)
    assert [key for key, value in seen.items() if token in str(value)] == []


def test_a_request_without_an_id_is_given_one(reviews: Gate) -> None:
    seen: list[str] = []

    def app(given: dict[str, Any], start: Any) -> list[bytes]:
        seen.append(given["HTTP_X_REQUEST_ID"])
        start("200 OK", [])
        return []

    ask(MeshMiddleware(app, reviews), environ(PAGE))
    ask(MeshMiddleware(app, reviews), environ(PAGE, HTTP_X_REQUEST_ID="r1"))
    assert len(seen[0]) == 36
    assert seen[1] == "r1"


def test_without_a_raw_path_the_decoded_one_is_judged(reviews: Gate) -> None:
    given = environ(PAGE, "/")
    del given["RAW_URI"]
    assert (
        ask(MeshMiddleware(unasked, reviews), given | {"PATH_INFO": "/admin\xc3\xa4"})[0] == "403 Forbidden"
    )


def test_a_caller_does_not_say_where_the_application_begins(reviews: Gate) -> None:
    seen: list[str] = []

    def app(given: dict[str, Any], start: Any) -> list[bytes]:
        seen.extend((given["SCRIPT_NAME"], given["PATH_INFO"], str(given.get("HTTP_SCRIPT_NAME"))))
        start("200 OK", [])
        return []

    # As gunicorn makes it of a header SCRIPT_NAME of a caller on the same host.
    forged = {"HTTP_SCRIPT_NAME": "/x", "SCRIPT_NAME": "/x", "PATH_INFO": "/admin"}
    assert ask(MeshMiddleware(app, reviews), environ(PAGE, "/x/admin") | forged)[0] == "200 OK"
    assert seen == ["", "/x/admin", "None"]


def test_claims_of_outsiders_are_removed(tmp_path: Path) -> None:
    found = gate(tmp_path, "")
    seen: dict[str, Any] = {}

    def app(given: dict[str, Any], start: Any) -> list[bytes]:
        seen.update(given)
        start("200 OK", [])
        return []

    claims = {
        "HTTP_X_FORWARDED_CLIENT_CERT": "URI=spiffe://evil",
        "HTTP_X_ENVOY_ATTEMPT_COUNT": "9",
        "HTTP_X_MINE": "1",
        "CONTENT_TYPE": "text/plain",
    }
    with found.mesh:
        assert ask(MeshMiddleware(app, found), environ("", **claims))[0] == "200 OK"
    assert seen[CALLER].principal == ""
    assert sorted(key for key in seen if key.startswith("HTTP_")) == [
        "HTTP_HOST",
        "HTTP_X_MINE",
        "HTTP_X_REQUEST_ID",
    ]
    assert seen["CONTENT_TYPE"] == "text/plain"


def test_only_what_the_mesh_has_changed_is_written() -> None:
    came = RequestHead("GET", "http", "r", "/", [(b"a", b"1"), (b"x-gone", b"2"), (b"cookie", b"3")])
    now = RequestHead(
        "GET", "http", "s", "/", [(b"a", b"4"), (b"cookie", b"3"), (b"x-new", b"5"), (b"y_z", b"6")]
    )
    given = {"HTTP_A": "1", "HTTP_X_GONE": "2", "HTTP_COOKIE": "3", "HTTP_HOST": "r", "wsgi.input": None}
    write_headers(given, now, came)
    left = {"HTTP_A": "4", "HTTP_COOKIE": "3", "HTTP_HOST": "s", "HTTP_X_NEW": "5", "wsgi.input": None}
    assert given == left
    write_headers(given, RequestHead("GET", "http", "", "/"), now)
    assert given == {"wsgi.input": None}


def test_what_an_underscore_has_become_is_written_anew() -> None:
    came = RequestHead("GET", "http", "r", "/", [(b"x_a", b"forged"), (b"x-a", b"1"), (b"b", b"2")])
    given = {"HTTP_X_A": "forged,1", "HTTP_B": "2", "HTTP_HOST": "r"}
    write_headers(given, came.plus([(b"c", b"3")]), came)
    assert given == {"HTTP_X_A": "1", "HTTP_B": "2", "HTTP_C": "3", "HTTP_HOST": "r"}


def test_what_is_handed_on_is_there_while_the_body_is_made(reviews: Gate) -> None:
    closed: list[bool] = []

    def now() -> bytes:
        handed = context.current()
        return b"nothing" if handed is None else dict(handed.headers)[b"end-user"]

    def body() -> Iterator[bytes]:
        try:
            yield now()
            yield now()
        finally:
            closed.append(context.current() is not None)

    def app(given: dict[str, Any], start: Any) -> Iterable[bytes]:
        start("200 OK", [])
        return body()

    given = environ(PAGE, HTTP_END_USER="jason")
    assert ask(MeshMiddleware(app, reviews), given) == ("200 OK", b"jasonjason")
    assert closed == [True]
    assert context.current() is None


def test_a_body_that_is_left_early_is_closed_within_the_request(reviews: Gate) -> None:
    closed: list[bool] = []

    def body() -> Iterator[bytes]:
        try:
            yield b"1"
            yield b"2"
        finally:
            closed.append(context.current() is not None)

    found: Any = MeshMiddleware(lambda *_: body(), reviews)(environ(PAGE), Start())
    assert next(found) == b"1"
    found.close()
    assert closed == [True]


def test_a_servers_files_stay_the_servers(reviews: Gate, tmp_path: Path) -> None:
    with (tmp_path / "mesh.yaml").open("rb") as file:
        wrapped = FileWrapper(file)
        assert MeshMiddleware(lambda *_: wrapped, reviews)(environ(PAGE), Start()) is wrapped


def test_twice_is_once(reviews: Gate) -> None:
    def app(given: dict[str, Any], start: Any) -> list[bytes]:
        start("200 OK", [])
        return [given["HTTP_X_FORWARDED_CLIENT_CERT"].encode()]

    twice = MeshMiddleware(MeshMiddleware(app, reviews), reviews)
    assert ask(twice, environ(PAGE))[1] == f'Subject="";URI={PAGE}'.encode()


def test_a_port_that_is_not_known_is_an_error() -> None:
    given = environ("") | {"SERVER_PORT": ""}
    del given[PEER]
    with pytest.raises(meshlib.ConfigError, match="port: the server does not say"):
        ask(MeshMiddleware(unasked), given)
