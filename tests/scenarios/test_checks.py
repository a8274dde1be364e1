"""An external authority is really asked, over HTTP and gRPC, from threads and from tasks."""

import asyncio
import http.server
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import grpc
import pytest
from support.fake_mesh import FakeMesh

from meshlib.core.authz.body import BodyWanted, Shown
from meshlib.core.authz.external import Check, ExtAuthz, GrpcAuthority, HttpAuthority
from meshlib.core.authz.opinion import Blocked, NoAnswer, Opinion, Passed, Told
from meshlib.core.authz.question import Question
from meshlib.core.balance.cluster import Cluster
from meshlib.core.balance.endpoints import Endpoint, EndpointSet, LocalityEndpoints
from meshlib.core.request import Header, Peer, RequestHead
from meshlib.core.view import View
from meshlib.dataplane.checks import CHECK, AsyncChecks, Checks, _PerOwner
from meshlib.xds import pb

CLUSTER = "outbound|9000||authz.default.svc.cluster.local"
PEER = Peer(("10.0.0.1", 40000), ("10.0.0.2", 9080), "spiffe://cluster.local/ns/default/sa/web", "", True)


class Asked(FakeMesh):
    """A mesh with one cluster, that of the authority."""

    contexts = certs = None

    def __init__(self, port: int) -> None:
        listed = EndpointSet((LocalityEndpoints("", 0, 1, (Endpoint("127.0.0.1", port),)),))
        super().__init__(View("1", {}, {CLUSTER: Cluster(CLUSTER, CLUSTER)}, {CLUSTER: listed}))
        self.ended: list[Callable[[], None]] = []

    def on_close(self, call: Callable[[], None]) -> None:
        """Called by `close`."""
        self.ended.append(call)

    def close(self) -> None:
        for call in self.ended:
            call()


class Authority(http.server.BaseHTTPRequestHandler):
    """Lets in who shows `x-ext-authz: allow`; is broken for `/broken`."""

    protocol_version = "HTTP/1.1"
    seen: list[tuple[str, str, dict[str, str], bytes]]

    def _answer(self) -> None:
        sent = self.rfile.read(int(self.headers["content-length"]))
        self.seen.append((self.command, self.path, {k.lower(): v for k, v in self.headers.items()}, sent))
        allowed = self.headers.get("x-ext-authz") == "allow"
        status = 500 if "/broken" in self.path else 200 if allowed else 401
        body = b"" if allowed else b"denied by ext_authz"
        self.send_response(status)
        for name, value in (("x-user", "jason"), ("x-other", "1"), ("www-authenticate", "Basic")):
            self.send_header(name, value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = _answer  # noqa: N815 - the library's names

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.fixture
def authority() -> Iterator[tuple[int, list[Any]]]:
    seen: list[Any] = []
    handler = type("Handler", (Authority,), {"seen": seen})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = False
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server.server_address[1], seen
        server.shutdown()
        thread.join()


def check(
    authority: HttpAuthority | GrpcAuthority, *headers: Header, path: str = "/a?b", **options: Any
) -> Check:
    head = RequestHead("GET", "http", "reviews:9080", path, [(b"Accept", b"*/*"), *headers])
    return Check(ExtAuthz("ext", authority, **options), Question(head, PEER))


async def both(port: int, asked: Check) -> Opinion:
    """What a thread and a task are told, which is the same."""
    mesh: Any = Asked(port)
    try:
        by_thread = await asyncio.to_thread(Checks(mesh), asked)
        by_task = await AsyncChecks(mesh)(asked)
    finally:
        mesh.close()
    assert mesh.in_flight() == 0
    # Each says in its own words why nobody could be asked.
    assert by_thread == by_task or (type(by_thread) is type(by_task) is NoAnswer)
    return by_thread


HTTP = HttpAuthority(
    CLUSTER,
    timeout=5.0,
    path_prefix="/check",
    added=((b"x-added", b"1"),),
    to_request=lambda name: name == b"x-user",
    to_client=lambda name: name == b"x-other",
    to_client_on_success=lambda name: name == b"x-other",
)
SHOWN = {"asks": lambda name: name in (b"x-ext-authz", b"x-added")}
ALLOW = (b"X-Ext-Authz", b"allow")


async def test_an_http_authority_lets_in(authority: tuple[int, list[Any]]) -> None:
    port, seen = authority
    asked = check(HTTP, ALLOW, (b"authorization", b"me"), (b"x-added", b"forged"), (b"cookie", b"x"), **SHOWN)
    opinion = await both(port, asked)
    assert opinion == Passed(set=((b"x-user", b"jason"),), to_client=(Told(b"x-other", b"1"),))
    method, path, headers, sent = seen[0]
    assert (method, path, headers.pop("host")) == ("GET", "/check/a?b", "reviews:9080")
    assert (headers.pop("content-length"), sent) == ("0", b"")
    assert headers == {"x-ext-authz": "allow", "authorization": "me", "x-added": "1"}


BODY = b"\xffa\xc3\xa4"
FORGED = (b"X-Envoy-Auth-Partial-Body", b"forged")


def shown(asked: Check, whole: bool, wanted: BodyWanted) -> Check:
    return Check(replace(asked.filter, body=wanted), asked.question, Shown(BODY, whole, 9))


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("whole", [False, True])
async def test_an_http_authority_is_shown_the_body(
    authority: tuple[int, list[Any]], whole: bool, raw: bool
) -> None:
    port, seen = authority
    headers = (ALLOW, FORGED, (b"content-length", b"9"), (b"transfer-encoding", b"chunked"))
    asked = check(HTTP, *headers, asks=lambda name: name != b"accept")
    assert isinstance(await both(port, shown(asked, whole, BodyWanted(4, raw=raw))), Passed)
    _, _, told, sent = seen[0]
    assert sent == BODY
    assert told["content-length"] == "4"
    assert told["x-envoy-auth-partial-body"] == ("false" if whole else "true")
    assert "transfer-encoding" not in told


async def test_what_can_not_be_written_as_http_does_not_pass(authority: tuple[int, list[Any]]) -> None:
    port, seen = authority
    assert await both(port, check(HTTP, (b"x-ext-authz", b"a\nb"), fail_open=True, **SHOWN)) == Blocked(400)
    assert seen == []


async def test_an_http_authority_refuses(authority: tuple[int, list[Any]]) -> None:
    opinion = await both(authority[0], check(HTTP, **SHOWN))
    assert opinion == Blocked(
        401, ((b"x-other", b"1"), (b"www-authenticate", b"Basic")), b"denied by ext_authz"
    )


async def test_an_http_authority_that_is_broken_says_nothing(authority: tuple[int, list[Any]]) -> None:
    opinion = await both(authority[0], check(HTTP, path="/broken", **SHOWN))
    assert opinion == NoAnswer("the authority answered 500")


async def test_an_authority_that_is_not_there_says_nothing() -> None:
    opinion = await both(1, check(HTTP))
    assert isinstance(opinion, NoAnswer)
    assert "refused" in opinion.detail.lower()


async def test_an_unknown_cluster_is_no_answer() -> None:
    unknown = HttpAuthority("outbound|1||else.default.svc.cluster.local")
    assert await both(1, check(unknown)) == NoAnswer(f"cluster {unknown.cluster} is unknown")


@pytest.fixture
def grpc_authority() -> Iterator[tuple[int, list[Any]]]:
    seen: list[Any] = []

    def answer(request: bytes, _: object) -> bytes:
        asked = pb.CheckRequest.FromString(request)
        seen.append(asked)
        if asked.attributes.request.http.headers.get("x-ext-authz") == "garbage":
            return b"\xff\xff\xff"
        if asked.attributes.request.http.headers.get("x-ext-authz") == "allow":
            ok = {
                "headers": [
                    {"header": {"key": "X-User", "value": "jason"}},
                    {"header": {"key": "x-more", "value": "1"}, "append": True},
                ],
                "headers_to_remove": ["Cookie"],
                "response_headers_to_add": [{"header": {"key": "x-seen", "value": "1"}}],
            }
            return bytes(pb.from_dict(pb.CheckResponse, {"ok_response": ok}).SerializeToString())
        denied = {
            "status": {"code": 401},
            "headers": [{"header": {"key": "x-why", "value": "no"}}],
            "body": "no",
        }
        refused = {"status": {"code": 7}, "denied_response": denied}
        return bytes(pb.from_dict(pb.CheckResponse, refused).SerializeToString())

    server = grpc.server(ThreadPoolExecutor(2))
    service, _, method = CHECK[1:].partition("/")
    handler = grpc.unary_unary_rpc_method_handler(answer)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield port, seen
    server.stop(None).wait()


GRPC = GrpcAuthority(CLUSTER, timeout=5.0, authority="authz.example")


async def test_a_grpc_authority_lets_in(grpc_authority: tuple[int, list[Any]]) -> None:
    port, seen = grpc_authority
    opinion = await both(port, check(GRPC, ALLOW, (b"x-two", b"1"), (b"x-two", b"2")))
    assert opinion == Passed(
        ((b"x-user", b"jason"),), ((b"x-more", b"1"),), (b"cookie",), (Told(b"x-seen", b"1"),)
    )
    attributes = seen[0].attributes
    assert attributes.source.principal == PEER.principal
    assert attributes.source.address.socket_address.address == "10.0.0.1"
    assert attributes.destination.address.socket_address.port_value == 9080
    http = attributes.request.http
    assert (http.method, http.host, http.path) == ("GET", "reviews:9080", "/a?b")
    assert (http.size, http.body, http.raw_body) == (0, "", b"")
    assert seen[0].attributes.request.time.seconds > 0
    assert dict(http.headers) == {
        ":method": "GET",
        ":path": "/a?b",
        ":authority": "reviews:9080",
        ":scheme": "http",
        "accept": "*/*",
        "x-ext-authz": "allow",
        "x-two": "1,2",
    }


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("whole", [False, True])
async def test_a_grpc_authority_is_shown_the_body(
    grpc_authority: tuple[int, list[Any]], whole: bool, raw: bool
) -> None:
    port, seen = grpc_authority
    asked = check(GRPC, ALLOW, FORGED, (b"content-length", b"9"), (b"expect", b"100-continue"))
    assert isinstance(await both(port, shown(asked, whole, BodyWanted(4, raw=raw))), Passed)
    http = seen[0].attributes.request.http
    assert (http.body, http.raw_body) == (("", BODY) if raw else ("!a\xe4", b""))
    assert http.size == 9
    assert http.headers["x-envoy-auth-partial-body"] == ("false" if whole else "true")
    assert http.headers["content-length"] == "9"
    assert "expect" not in http.headers


async def test_a_grpc_authority_refuses(grpc_authority: tuple[int, list[Any]]) -> None:
    assert await both(grpc_authority[0], check(GRPC)) == Blocked(401, ((b"x-why", b"no"),), b"no")


async def test_a_grpc_authority_that_is_not_there_says_nothing() -> None:
    opinion = await both(1, check(GRPC))
    assert isinstance(opinion, NoAnswer)
    assert opinion.detail.startswith("UNAVAILABLE")


async def test_a_grpc_authority_that_speaks_garbage_says_nothing(
    grpc_authority: tuple[int, list[Any]],
) -> None:
    opinion = await both(grpc_authority[0], check(GRPC, (b"x-ext-authz", b"garbage")))
    assert isinstance(opinion, NoAnswer)


def test_connections_of_closed_loops_go() -> None:
    mesh: Any = Asked(1)
    checks = AsyncChecks(mesh)
    for _ in range(20):
        assert isinstance(asyncio.run(_asked_there(checks)), NoAnswer)
    assert len(checks._own._made) == 1
    mesh.close()


async def _asked_there(checks: AsyncChecks) -> Opinion:
    return await checks(check(HTTP, ALLOW, **SHOWN))


async def test_loops_that_live_keep_their_connections() -> None:
    made: list[object] = []

    def make() -> object:
        made.append(object())
        return made[-1]

    owners = {"a", "b"}
    own = _PerOwner[str](make, lambda owner: owner not in owners)
    for _ in range(50):
        assert own.get("a") is made[0]
        assert own.get("b") is made[1]
    owners.remove("a")
    owners.add("c")
    assert own.get("c") is made[2]
    assert list(own._made) == ["b", "c"]
