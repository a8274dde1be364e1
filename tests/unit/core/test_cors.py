"""What a browser is told, and where in the order of an inbound request."""

from collections.abc import Sequence

import pytest

from meshlib.core.actions import Reply
from meshlib.core.authz.opinion import answered
from meshlib.core.authz.rbac import Rbac, Rules, Verb
from meshlib.core.cors import Cors, CorsPolicy, cross
from meshlib.core.headers import EMPTY
from meshlib.core.inbound import Admitted, Inbound, arrive
from meshlib.core.mtls import ServerTls
from meshlib.core.request import Header, Peer, RequestHead
from meshlib.core.route.match import PathKind, PathMatch, RouteMatch
from meshlib.core.route.rule import Forward, Origin, Route, WeightedCluster
from meshlib.core.route.table import RouteTable, VirtualHost
from meshlib.core.route.text import TextKind, TextMatch

PAGE = (b"Origin", b"https://a.com")
OTHER = (b"origin", b"https://b.com")
ASKS = (b"access-control-request-method", b"GET")
EXACT = TextMatch(TextKind.EXACT, "https://a.com")
POLICY = CorsPolicy((EXACT,), b"GET", b"x-a", b"x-b", b"60", True)
ALLOWED = [
    (b"access-control-allow-origin", b"https://a.com"),
    (b"access-control-allow-credentials", b"true"),
    (b"access-control-expose-headers", b"x-b"),
]


def table(policy: CorsPolicy | None = POLICY) -> RouteTable:
    to = Forward((WeightedCluster("inbound|80||", 1, 1, EMPTY, EMPTY),), 1)
    plain = Route("plain", RouteMatch(PathMatch(PathKind.PREFIX, "/plain")), to, EMPTY, EMPTY)
    route = Route("r", RouteMatch(), to, EMPTY, EMPTY, Origin("VirtualService d/v", "v.yaml:3"), cors=policy)
    return RouteTable("t", [VirtualHost("v", ("a",), (plain, route))])


def head(method: str, *headers: Header, path: str = "/", host: str = "a") -> RequestHead:
    return RequestHead(method, "http", host, path, list(headers))


@pytest.mark.parametrize(
    "asked",
    [
        head("GET"),
        head("GET", (b"origin", b"")),
        head("GET", OTHER),
        head("GET", PAGE, path="/plain"),
        head("GET", PAGE, host="other"),
        head("OPTIONS", OTHER, ASKS),
        head("OPTIONS", ASKS),
    ],
)
def test_nothing_is_done(asked: RequestHead) -> None:
    assert cross(table(), asked) == ()
    assert cross(None, head("GET", PAGE)) == cross(table(None), head("GET", PAGE)) == ()


@pytest.mark.parametrize(
    "asked",
    [
        head("GET", PAGE),
        head("GET", PAGE, ASKS),
        head("OPTIONS", PAGE),
        head("OPTIONS", PAGE, (ASKS[0], b"")),
    ],
)
def test_a_response_is_opened_in_place_of_what_it_says(asked: RequestHead) -> None:
    told = cross(table(), asked)
    assert not isinstance(told, Reply)
    own = [(b"Access-Control-Allow-Origin", b"*"), (b"x", b"1"), (b"access-control-expose-headers", b"y")]
    assert answered(own, told) == [(b"x", b"1"), *ALLOWED]


def test_a_preflight_is_answered() -> None:
    reply = cross(table(), head("OPTIONS", PAGE, ASKS), "7")
    assert isinstance(reply, Reply)
    assert (reply.status, reply.body) == (200, b"")
    assert reply.headers == (
        *ALLOWED[:2],
        (b"access-control-allow-methods", b"GET"),
        (b"access-control-allow-headers", b"x-a"),
        (b"access-control-max-age", b"60"),
        ALLOWED[2],
    )
    facts = reply.facts
    assert (facts.detail, facts.route, facts.source) == ("cors_response", "r", "v.yaml:3")
    assert facts.config_version == "7"


def test_what_is_not_said_is_not_told() -> None:
    reply = cross(table(CorsPolicy((EXACT,))), head("OPTIONS", PAGE, ASKS))
    assert isinstance(reply, Reply)
    assert reply.headers == ((b"access-control-allow-origin", b"https://a.com"),)


def test_a_preflight_of_a_stranger_may_be_answered_without_a_permission() -> None:
    closed = CorsPolicy((EXACT,), b"GET", expose=b"x-b", credentials=True, forwards=False)
    reply = cross(table(closed), head("OPTIONS", OTHER, ASKS))
    assert isinstance(reply, Reply)
    assert [name for name, _ in reply.headers] == [
        b"access-control-allow-credentials",
        b"access-control-allow-methods",
    ]


@pytest.mark.parametrize(
    "match",
    [
        TextMatch(TextKind.EXACT, "*"),
        TextMatch(TextKind.PREFIX, "*"),
        TextMatch(TextKind.REGEX, ".*"),
        TextMatch(TextKind.SUFFIX, "a.com"),
    ],
)
def test_the_origin_that_asked_is_what_is_allowed(match: TextMatch) -> None:
    told = cross(table(CorsPolicy((match,))), head("GET", PAGE))
    assert [tuple(each[:2]) for each in told] == ALLOWED[:1]  # type: ignore[union-attr, misc]


def test_a_private_network_is_opened_to_who_asks_for_it() -> None:
    policy = CorsPolicy((EXACT,), private_network=True)
    private = (b"access-control-request-private-network", b"true")
    for headers, count in (((private,), 2), ((), 1)):
        reply = cross(table(policy), head("OPTIONS", PAGE, ASKS, *headers))
        assert isinstance(reply, Reply)
        assert len(reply.headers) == count


def arrival(filters: Sequence[object], asked: RequestHead) -> Admitted | Reply:
    inbound = Inbound("in", ServerTls(), tuple(filters), routes=table())
    try:
        next(arrive(inbound, asked, Peer(("10.0.0.1", 1), ("10.0.0.2", 80)), "", 0.0))
    except StopIteration as ended:
        found: Admitted | Reply = ended.value
        return found
    raise AssertionError("nobody is to be asked")


def test_it_comes_before_policies_and_is_told_of_their_refusals_too() -> None:
    nobody = Rbac(rules=Rules(Verb.ALLOW, ()))
    preflight = arrival([Cors(), nobody], head("OPTIONS", PAGE, ASKS))
    assert isinstance(preflight, Reply)
    assert preflight.status == 200
    refused = arrival([Cors(), nobody], head("GET", PAGE))
    assert isinstance(refused, Reply)
    assert (refused.status, list(refused.headers)) == (403, [(b"content-type", b"text/plain"), *ALLOWED])
    stranger = arrival([Cors(), nobody], head("GET", OTHER))
    assert isinstance(stranger, Reply)
    assert stranger.headers == ((b"content-type", b"text/plain"),)
    admitted = arrival([Cors()], head("GET", PAGE))
    assert isinstance(admitted, Admitted)
    assert [each[:2] for each in admitted.response_headers] == ALLOWED
