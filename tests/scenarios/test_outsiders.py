"""What a caller who is nobody tries: to say who it is, to get round a path policy, to smuggle a request.

Served by each server, in one process for all that is tried. The application tells what it got.

Where a server that is not the mesh's own reads a request in its own way before the middleware can look at it,
the test says what it does then; docs/how-to/serve.md says it, too.
"""

import json
import re
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from support.secure_mesh import MESHED, SERVERS, URL, SecureMesh, Served, secure_mesh

import meshlib

POLICIES = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-admin}
spec:
  action: DENY
  rules: [{to: [{operation: {paths: ["/admin", "/admin/*"]}}]}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: page-only}
spec:
  action: DENY
  rules:
  - from: [{source: {notPrincipals: ["cluster.local/ns/default/sa/productpage"]}}]
    to: [{operation: {paths: ["/page/*"]}}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-internal}
spec:
  action: DENY
  rules: [{to: [{operation: {hosts: ["internal.example"]}}]}]
"""
PAGE = "spiffe://cluster.local/ns/default/sa/productpage"
REVIEWS = "spiffe://cluster.local/ns/default/sa/reviews"
XFCC = f'By={REVIEWS};Hash=00;Subject="";URI={PAGE}'
A_MOMENT = 0.2
"""Seconds in which a second answer would come on a connection that goes on."""
SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture(scope="module")
def control(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureMesh]:
    with secure_mesh(tmp_path_factory.mktemp("mesh"), POLICIES) as made:
        yield made


@pytest.fixture(scope="module", params=SERVERS)
def app(control: SecureMesh, request: pytest.FixtureRequest) -> Iterator[Served]:
    with control.served(request.param) as served:
        yield served


ANSWER = re.compile(rb"HTTP/1\.[01] [145]\d\d|\]\]\}")
"""A status that stands alone, or the end of what the application tells."""


def talk(
    port: int, data: bytes, patience: float = 20, first: float = 20
) -> tuple[list[int], list[Any], bool]:
    """The status of each answer, what the application told, and whether the connection was closed.

    `patience`: seconds for more, once there was an answer; `first`: for that.
    """
    got, closed = b"", True
    with socket.create_connection(("127.0.0.1", port), 20) as made:
        made.sendall(data)
        made.settimeout(first)
        try:
            while more := made.recv(65536):
                got += more
                made.settimeout(patience if ANSWER.search(got) else first)
        except TimeoutError:
            closed = False
        except ConnectionError:
            pass
    statuses = [int(status) for status in re.findall(rb"HTTP/1\.[01] (\d{3})", got)]
    return statuses, [json.loads(told) for told in re.findall(rb"\{.*?\]\]\}", got)], closed


def ask(port: int, path: str, *lines: str) -> tuple[int, Any]:
    """Status, and what the application told, if it was asked."""
    head = "\r\n".join((f"GET {path} HTTP/1.1", "Host: reviews", *lines, "Connection: close", "", ""))
    (status,), told, closed = talk(port, head.encode("latin-1"))
    assert closed
    return status, told[0] if told else None


# Who it is


@pytest.mark.parametrize(
    "line",
    [
        f"X-Forwarded-Client-Cert: {XFCC}",
        f"x_forwarded_client_cert: {XFCC}",
        f"X-Forwarded_Client-Cert: {XFCC}",
        f"X-Envoy-Peer-Metadata: {PAGE}",
        "X-Envoy-Peer-Metadata-Id: sidecar~10.0.0.1~productpage",
        "x-envoy-internal: true",
        "x-envoy-external-address: 10.0.0.1",
        "x-envoy-attempt-count: 7",
        "X_Envoy_Attempt_Count: 7",
        "x-envoy-original-path: /page/1",
        "x-envoy-decorator-operation: page",
        "x-istio-attributes: c291cmNl",
    ],
)
def test_what_an_outsider_says_of_itself_is_removed(app: Served, line: str) -> None:
    status, told = ask(app.port, "/x", line)
    names = [name for name, _ in told["headers"]]
    assert (status, told["principal"]) == (200, "")
    assert sorted(names) == ["connection", "host", "x-request-id"]
    assert ask(app.port, "/page/1", line)[0] == 403


@pytest.mark.parametrize(
    "line",
    [
        f"principal: {PAGE}",
        f"x-mesh-principal: {PAGE}",
        f"x-ssl-client-s-dn: {PAGE}",
        "authorization: Bearer productpage",
        "x-forwarded-for: 127.0.0.1",
        "forwarded: for=productpage",
    ],
)
def test_other_headers_pass_and_prove_nothing(app: Served, line: str) -> None:
    status, told = ask(app.port, "/x", line)
    assert (status, told["principal"]) == (200, "")
    assert line.split(": ")[0] in [name for name, _ in told["headers"]]
    assert ask(app.port, "/page/1", line)[0] == 403


@pytest.mark.parametrize("app", MESHED, indirect=True)
def test_a_mesh_peer_is_known_by_its_certificate_alone(app: Served, control: SecureMesh) -> None:
    with control.joined("ratings") as mesh, meshlib.Client(mesh=mesh) as client:
        spoofed = client.get(f"{URL}/x", headers={"x-forwarded-client-cert": XFCC}).json()
        assert spoofed["principal"] == "spiffe://cluster.local/ns/default/sa/ratings"
        (said,) = [value for name, value in spoofed["headers"] if name == "x-forwarded-client-cert"]
        before, own = said.split(",")
        assert before == XFCC
        assert own.startswith(f"By={REVIEWS};Hash=")
        assert own.endswith("URI=spiffe://cluster.local/ns/default/sa/ratings;DNS=ratings.default.svc")
        assert client.get(f"{URL}/page/1", headers={"x-forwarded-client-cert": XFCC}).status_code == 403
    with control.joined("productpage") as mesh, meshlib.Client(mesh=mesh) as client:
        assert client.get(f"{URL}/page/1").json()["principal"] == PAGE


# Where it goes

DENIED = [
    *("/admin", "/admin/", "/admin/x", "/admin?x", "/admin/?", "/admin//x", "/admin/.", "/admin/./x"),
    *("/%61dmin", "/%61%64%6D%69%6e/x", "/./admin", "/.//../admin", "/x/../admin", "/x/%2e%2e/admin"),
    *("/x/.%2E/admin", "/x/y/../../admin/z", "/../../admin", "/.;/admin", "/x/..;a=b/admin", "/admin/x/.."),
    *("/.\\admin", "/x\\..\\admin", "/admin\\x"),
    *("//admin", "///admin/x", "/.//admin", "/x/..//admin", "/admin%0a", "//admin%0A"),
]
REFUSED = ["admin", "*", "/admin%00", "/adm\xefn", "http:/admin"]
ELSEWHERE = [
    *("/x//admin", "/ADMIN", "/Admin/x", "/admin;a=1", "/admin;/x", "/;/admin", "/admin%2fx"),
    *("/admin%2Fx", "/admin%5cx", "/x/..%2fadmin", "/x%2f..%2fadmin", "/%2fadmin", "/admin%23", "/admin%3f"),
    *(
        "/admin%3b",
        "/admin%20",
        "/admin%09",
        "/admin%0a%0a",
        "/%2561dmin",
        "/%252e%252e/admin",
        "/admin%252fx",
    ),
    *("/%c0%ae%c0%ae/admin", "/%ef%bc%8fadmin", "/admin%", "/admin%2", "/admin%zz", "/a%64min%2f"),
    *("/admin/../public", "/admin/x/../../public", "/admin/%2e%2e/public", "/x?/admin", "/x?y=/../admin"),
]
"""Other paths than the policy's, to the policy and to the application alike."""


@pytest.mark.parametrize("path", DENIED)
def test_another_spelling_of_a_path_is_denied(app: Served, path: str) -> None:
    status, told = ask(app.port, path)
    if app.name == "granian-wsgi" and "\\" in path:  # it decodes paths: the backslash may have been an escape
        assert (status, told["path"]) == (200, path.replace("\\", "%5C"))
    else:
        assert (status, told) == (403, None)


@pytest.mark.parametrize("path", REFUSED)
def test_what_is_no_path_is_refused(app: Served, path: str) -> None:
    status, told = ask(app.port, path)
    if (app.name, path) == ("granian-wsgi", "admin"):  # it takes it for a host's name, whose path is empty
        assert (status, told["path"]) == (200, "")
    else:
        assert (status in (400, 404), told) == (True, None)


@pytest.mark.parametrize("path", ELSEWHERE)
def test_the_application_sees_the_path_that_was_decided_on(app: Served, path: str) -> None:
    status, told = ask(app.port, path)
    if app.name == "granian-wsgi" and re.search("%2f", path, re.IGNORECASE) and status == 403:
        return  # it decodes paths: the escaped slash is one
    assert status == 200
    for seen in (told["path"], told["raw_path"]):
        assert seen != "/admin"
        assert not seen.startswith(("/admin/", "/../", "http"))
        assert "/../" not in seen


def test_a_whole_url_is_the_path_in_it(app: Served) -> None:
    assert ask(app.port, "http://other/admin")[0] == 403
    assert ask(app.port, "http://other/x/../admin")[0] == 403
    assert ask(app.port, "http://other/x")[1]["path"] == "/x"


# At which host


@pytest.mark.parametrize("version", ["0.9", "1.0", "1.1", "1.2", "1.7", "2.0", "3.0", "9.9"])
@pytest.mark.parametrize("hosts", [("internal.example", "public"), ("public", "internal.example")])
def test_of_two_hosts_none_is_served(app: Served, version: str, hosts: tuple[str, str]) -> None:
    head = f"GET /x HTTP/{version}\r\nHost: {hosts[0]}\r\nHost: {hosts[1]}\r\nConnection: close\r\n\r\n"
    statuses, told, closed = talk(app.port, head.encode())
    assert (set(statuses) <= {400, 505}, told, closed) == (True, [], True)


@pytest.mark.parametrize("version", ["0.9", "1.2", "1.7", "2.0", "3.0", "9.9"])
def test_of_an_odd_version_none_is_served(app: Served, version: str) -> None:
    statuses, told, closed = talk(app.port, f"GET /x HTTP/{version}\r\nHost: public\r\n\r\n".encode())
    assert (set(statuses) <= {400, 505}, told, closed) == (True, [], True)


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_a_denied_host_is_denied(app: Served, version: str) -> None:
    for host, status in (("internal.example", 403), ("INTERNAL.example", 403), ("public", 200)):
        head = f"GET /x HTTP/{version}\r\nHost: {host}\r\nConnection: close\r\n\r\n"
        assert talk(app.port, head.encode())[0] == [status]


@pytest.mark.parametrize("method", ["get", "Get", "gET"])
def test_a_method_in_small_letters_is_none(app: Served, method: str) -> None:
    statuses, told, _ = talk(
        app.port, f"{method} /x HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()
    )
    if app.name == "hypercorn":  # it makes capitals of them before anybody looks
        assert (statuses, [one["method"] for one in told]) == ([200], ["GET"])
    else:
        assert (statuses, told) == ([400], [])


# More than one request in one


@pytest.mark.parametrize(
    "lines",
    [
        "Content-Length: 41\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 41",
        "Transfer-Encoding:\r\n chunked\r\nContent-Length: 41",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
        "Transfer-Encoding: identity, chunked",
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding : chunked",
        "Content-Length: 5\r\nContent-Length: 0",
        "Content-Length: 0, 5",
        "Content-Length: +5",
        "Content-Length: -1",
        "Content-Length: 0x5",
        "Content-Length : 5",
        "X-A: a\rContent-Length: 5",
        "X-A: a\x00b",
        "Host: y",
    ],
)
def test_a_request_that_can_be_read_in_two_ways_is_refused(app: Served, lines: str) -> None:
    head = f"POST /a HTTP/1.1\r\nHost: x\r\n{lines}\r\n\r\n".encode("latin-1")
    # A known length lets the connection go on there, see below.
    goes_on = app.name == "granian-wsgi" and lines == "Transfer-Encoding: identity, chunked"
    statuses, told, closed = talk(app.port, head + b"0\r\n\r\n" + SMUGGLED, 1 if goes_on else 20)
    if app.name.startswith("granian") and "41" in lines and "\r\n " not in lines:
        # It takes the length away before anybody looks, and closes the connection.
        assert (statuses, [one["path"] for one in told], closed) == ([200], ["/a"], True)
    elif goes_on:
        # A length that it knows, so it reads on; WSGI has no word to end a connection.
        assert (statuses, [one["path"] for one in told]) == ([400, 200], ["/smuggled"])
    else:
        assert (statuses[0] in (400, 501), set(statuses[1:]) <= {400}, told, closed) == (True, True, [], True)


@pytest.mark.parametrize(
    "body",
    [
        b"5\r\nhelloXX0\r\n\r\n",
        b"0x5\r\nhello\r\n0\r\n\r\n",
        b"-5\r\nhello\r\n0\r\n\r\n",
        b"5;a\nhello\r\n0\r\n\r\n",
        b"ffffffffffffffffff\r\nhello\r\n0\r\n\r\n",
    ],
)
def test_chunks_that_are_none_end_the_connection(app: Served, body: bytes) -> None:
    head = b"POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    statuses, told, closed = talk(
        app.port, head + body + SMUGGLED, first=0.5 if body.startswith(b"f") else 20
    )
    if app.name == "granian-wsgi":  # its application is not told that the body broke off
        assert (statuses, [one["path"] for one in told], closed) == ([200], ["/a"], True)
        return
    broken = {400, 500} if app.name == "granian" else {400}
    assert (set(statuses) <= broken, told) == (True, [])
    assert closed or not statuses  # it may wait for the rest of a chunk


@pytest.mark.parametrize(
    "head",
    [
        b"GET /a HTTP/1.1\nHost: x\n\n",
        b"GET /a HTTP/1.1\r\nHost: x\nX-A: 1\r\n\r\n",
        b"GET /a HTTP/1.1\r\nHost: x\r\nX-A: 1\r\n X-B: 2\r\n\r\n",
    ],
    ids=["bare LF", "one bare LF", "folded line"],
)
def test_loose_line_ends_are_one_request_or_none(app: Served, head: bytes) -> None:
    statuses, told, _ = talk(app.port, head, A_MOMENT)
    assert statuses in ([200], [400])
    assert [one["path"] for one in told] == ["/a"] * (statuses == [200])


def test_without_a_host_nothing_is_served(app: Served) -> None:
    statuses, told, closed = talk(
        app.port, b"GET /a HTTP/1.1\r\n\r\n", A_MOMENT if app.name == "granian-wsgi" else 20
    )
    assert (statuses, told, closed) == ([400], [], app.name != "granian-wsgi")


def test_a_body_is_no_request(app: Served) -> None:
    length = f"Content-Length: {len(SMUGGLED)}\r\n".encode()
    statuses, told, _ = talk(
        app.port, b"GET /a HTTP/1.1\r\nHost: x\r\n" + length + b"\r\n" + SMUGGLED, A_MOMENT
    )
    assert (statuses, [(one["path"], one["size"]) for one in told]) == ([200], [("/a", len(SMUGGLED))])


def test_a_denied_requests_body_is_no_request(app: Served) -> None:
    length = f"Content-Length: {len(SMUGGLED)}\r\n".encode()
    statuses, told, _ = talk(
        app.port, b"POST /admin HTTP/1.1\r\nHost: x\r\n" + length + b"\r\n" + SMUGGLED, A_MOMENT
    )
    assert (statuses, told) == ([403], [])


def test_an_upgrade_is_not_taken_on_trust(app: Served) -> None:
    upgrade = (
        b"GET /a HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\n"
        b"Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n"
    )
    statuses, told, _ = talk(app.port, upgrade, A_MOMENT)
    # hypercorn speaks HTTP/2 from then on, of which the first answer is to this request.
    assert (statuses, [one["path"] for one in told]) == ([101 if app.name == "hypercorn" else 200], ["/a"])
    assert talk(app.port, upgrade.replace(b"/a ", b"/admin "), A_MOMENT)[1] == []
    statuses, told, closed = talk(app.port, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", A_MOMENT, 1)
    assert (set(statuses) <= {400, 404}, told) == (True, [])
    assert closed or app.name in ("hypercorn", "granian", "granian-wsgi")  # which wait for frames of HTTP/2


def test_trailers_are_no_headers(app: Served) -> None:
    """They come once the application, which was let in by the head, asks for the body."""
    lines = ("Host: x", "Transfer-Encoding: chunked", "Expect: 100-continue", "Connection: close", "", "")
    with socket.create_connection(("127.0.0.1", app.port), 20) as made:
        made.sendall("\r\n".join(("POST /a HTTP/1.1", *lines)).encode())
        file = made.makefile("rb")
        assert file.readline().startswith(b"HTTP/1.1 100")
        made.sendall(f"1\r\nx\r\n0\r\nX-Forwarded-Client-Cert: {XFCC}\r\n\r\n".encode())
        answer = file.read()
    assert b'"path": "/a"' in answer
    assert b"x-forwarded-client-cert" not in answer.lower()


@pytest.mark.parametrize("app", ["hypercorn", "granian"], indirect=True)
def test_http2_is_judged_and_served(app: Served) -> None:
    with httpx.Client(http1=False, http2=True, base_url=f"http://127.0.0.1:{app.port}") as client:
        answer = client.get("/x", headers={"host": "public"})
        assert (answer.status_code, answer.http_version, answer.json()["path"]) == (200, "HTTP/2", "/x")
        assert client.get("/admin").status_code == 403
        assert client.get("/x", headers={"host": "internal.example"}).status_code == 403
