"""A decision told aloud: what is in a hand-made view is what the explanation says."""

from dataclasses import replace

import pytest

from meshlib.cli.explain_decision import decide
from meshlib.cli.render import lines
from meshlib.core.balance.cluster import Cluster, Resolution
from meshlib.core.balance.endpoints import Endpoint, EndpointSet, LocalityEndpoints
from meshlib.core.fault import Abort, Aborted, Fault, Share
from meshlib.core.headers import EMPTY, EditLevel, HeaderEdits
from meshlib.core.request import RequestHead
from meshlib.core.retry import RetryOn, RetryPolicy
from meshlib.core.route import chain as chains
from meshlib.core.route.match import HeaderMatch, PathKind, PathMatch, RouteMatch
from meshlib.core.route.rewrite import prefix_rewrite
from meshlib.core.route.rule import (
    DirectResponse,
    Forward,
    MirrorPolicy,
    Origin,
    Redirect,
    Route,
    WeightedCluster,
)
from meshlib.core.route.table import RouteTable, VirtualHost
from meshlib.core.route.text import TextKind, TextMatch
from meshlib.core.view import View

HOST = "reviews.default.svc.cluster.local"
V1, V2, V3 = (f"outbound|9080|{subset}|{HOST}" for subset in ("v1", "v2", "v3"))
REVIEWS = Origin("VirtualService default/reviews", "vs.yml:12")

JASON = Route(
    "jason",
    RouteMatch(headers=(HeaderMatch(b"end-user", TextMatch(TextKind.EXACT, "jason")),)),
    Forward(
        (WeightedCluster(V2, 1, 1, EMPTY, EMPTY),),
        1,
        timeout=2.0,
        retry=RetryPolicy(frozenset({RetryOn.GATEWAY_ERROR, RetryOn.CONNECT_FAILURE}), 2, 1.0),
    ),
    EMPTY,
    EMPTY,
    REVIEWS,
)
OTHERS = Route(
    "others",
    RouteMatch(),
    Forward(
        (WeightedCluster(V1, 80, 80, EMPTY, EMPTY), WeightedCluster(V2, 20, 100, EMPTY, EMPTY)),
        100,
        mirrors=(MirrorPolicy(V3, 500_000),),
    ),
    EMPTY,
    HeaderEdits((EditLevel(remove=frozenset({b"x-secret"})),)),
    replace(REVIEWS, source="vs.yml:24"),
)
ENDPOINTS = EndpointSet(
    (
        LocalityEndpoints(
            "eu/a", 0, 1, (Endpoint("127.0.0.1", 7001), Endpoint("127.0.0.1", 7002, healthy=False))
        ),
    )
)


def view(*routes: Route) -> View:
    host = VirtualHost(f"{HOST}:9080", ("reviews", "reviews:9080"), routes)
    return View("7.9", {"reviews:9080": RouteTable("t", [host]).of("7.1")}, {}, {V2: ENDPOINTS})


def request(path: str = "/reviews/0", **headers: str) -> RequestHead:
    pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return RequestHead("GET", "http", "reviews:9080", path, pairs)


def test_first_rule_that_matches_is_told_with_its_policies() -> None:
    answer = decide(view(JASON, OTHERS), "reviews:9080", request(end_user="jason"))
    assert answer["matched"] is True
    assert (answer["route"], answer["document"], answer["source"]) == (
        "jason",
        "VirtualService default/reviews",
        "vs.yml:12",
    )
    assert answer["timeout_s"] == 2.0
    assert answer["retries"] == {
        "attempts": 2,
        "per_try_timeout_s": 1.0,
        "retry_on": ["connect-failure", "gateway-error"],
        "status_codes": [],
    }
    assert [(c["name"], c["host"], c["subset"], c["port"], c["probability"]) for c in answer["clusters"]] == [
        (V2, HOST, "v2", 9080, 1.0)
    ]
    assert [(e["address"], e["eligible"], e["locality"]) for e in answer["endpoints"]] == [
        ("127.0.0.1:7001", True, "eu/a"),
        ("127.0.0.1:7002", False, "eu/a"),
    ]
    assert answer["config_version"] == "7.1"


def test_rules_that_did_not_match_say_why() -> None:
    answer = decide(view(JASON, OTHERS), "reviews:9080", request(end_user="maria"))
    assert [step["matched"] for step in answer["steps"]] == [False, True]
    assert answer["steps"][0]["why_not"] == 'header end-user is "maria", wanted exactly "jason"'
    assert [(c["subset"], c["weight"], c["probability"]) for c in answer["clusters"]] == [
        ("v1", 80, 0.8),
        ("v2", 20, 0.2),
    ]
    assert [(m["subset"], m["percent"]) for m in answer["mirrors"]] == [("v3", 50.0)]
    assert answer["timeout_s"] is None
    assert answer["response_headers"] == ["remove x-secret"]


def test_weight_zero_is_listed_and_has_no_endpoints() -> None:
    clusters = (WeightedCluster(V1, 1, 1, EMPTY, EMPTY), WeightedCluster(V2, 0, 1, EMPTY, EMPTY))
    route = replace(OTHERS, action=Forward(clusters, 1))
    answer = decide(view(route), "reviews:9080", request())
    assert [(c["subset"], c["probability"]) for c in answer["clusters"]] == [("v1", 1.0), ("v2", 0.0)]
    assert answer["endpoints"] == []


def test_rewrite_shows_the_request_as_it_is_sent() -> None:
    match = PathMatch(PathKind.PREFIX, "/old")
    action = Forward(
        (WeightedCluster(V1, 1, 1, EMPTY, EMPTY),),
        1,
        rewrite=prefix_rewrite(match, "/new"),
        authority="other",
    )
    route = Route("r", RouteMatch(match), action, EMPTY, EMPTY)
    answer = decide(view(route), "reviews:9080", request("/old/1?a=b"))
    assert (answer["rewrite"]["path"], answer["rewrite"]["authority"]) == ("/new/1?a=b", "other")


def test_redirect_and_direct_response() -> None:
    moved = Route("m", RouteMatch(), Redirect(308, host="shop", path="/there"), EMPTY, EMPTY)
    answer = decide(view(moved), "reviews:9080", request())
    assert answer["redirect"] == {"status": 308, "location": "http://shop/there"}
    assert answer["clusters"] == []
    gone = Route("g", RouteMatch(), DirectResponse(410, b"gone"), EMPTY, EMPTY)
    answer = decide(view(gone), "reviews:9080", request())
    assert answer["direct_response"] == {"status": 410, "body": "gone"}
    assert "  answered here: 410 'gone'" in lines(answer)


def test_injected_faults() -> None:
    down = Fault(abort=Abort(Share(1, 2), Aborted(503)))
    to = [WeightedCluster(name, 1, n, EMPTY, EMPTY, fault=down) for n, name in enumerate((V1, V2), 1)]
    answer = decide(view(replace(OTHERS, action=Forward(tuple(to), 2))), "reviews:9080", request())
    assert answer["fault"] == "abort 503 for 50 %"
    assert "  injected fault: abort 503 for 50 %" in lines(answer)
    own = Route("g", RouteMatch(), DirectResponse(410), EMPTY, EMPTY, fault=replace(down, cluster=""))
    answer = decide(view(own), "reviews:9080", request())
    assert "  injected fault: abort 503 for 50 %" in lines(answer)
    other = replace(own, fault=replace(down, cluster=V1))
    assert decide(view(other), "reviews:9080", request())["fault"] is None


@pytest.mark.parametrize(
    ("known", "target"),
    [(view(JASON), "ratings:9080"), (view(JASON), "reviews:9080"), (View(), "reviews:9080")],
)
def test_nothing_matches(known: View, target: str) -> None:
    answer = decide(known, target, request())
    assert answer["matched"] is False
    assert (answer["route"], answer["clusters"], answer["timeout_s"]) == (None, [], None)
    assert lines(answer)[-1] == "[red]no rule matches: 404, flag NR[/]"


def test_text_tells_steps_and_shares() -> None:
    text = lines(decide(view(JASON, OTHERS), "reviews:9080", request()))
    assert text[1].startswith("  [dim]✗[/] rule 1 [cyan]VirtualService default/reviews vs.yml:12[/]")
    assert "header end-user is absent" in text[1]
    assert f"   80% → [bold]{HOST}:9080[/] subset [bold]v1[/]" in text
    assert f"  mirror 50 % → {HOST} subset [bold]v3[/]" in text
    assert "  time-out none" in text
    assert "        127.0.0.1:7002 [yellow]not eligible[/]" in text
    assert "        [yellow]no endpoint is known[/]" in text


def test_what_passes_through_goes_where_the_request_says() -> None:
    route = Route("a", RouteMatch(), Forward((WeightedCluster("Out", 1, 1, EMPTY, EMPTY),), 1), EMPTY, EMPTY)
    through = replace(view(route), clusters={"Out": Cluster("Out", "Out", resolution=Resolution.ORIGINAL)})
    answer = decide(through, "reviews:9080", request())
    assert [(c["name"], c["passes_through"]) for c in answer["clusters"]] == [("Out", True)]
    text = lines(answer)
    assert "        to the address that the request names, reviews:9080" in text
    assert not any("no endpoint is known" in line for line in text)


def test_markup_in_names_is_shown_and_not_obeyed() -> None:
    answer = decide(view(JASON), "reviews:9080", request(end_user="[red]x"))
    assert r"\[red]x" in lines(answer)[1]


def test_of_an_https_url_no_rule_is_asked() -> None:
    asked = RequestHead("GET", "https", "reviews:9080", "/reviews/0", [(b"end-user", b"jason")])
    answer = decide(view(JASON, OTHERS), "reviews:9080", asked)
    assert (answer["encrypted"], answer["refused"], answer["matched"]) == (True, None, False)
    assert (answer["steps"], answer["clusters"], answer["timeout_s"]) == ([], [], None)
    (line,) = lines(answer)
    assert "no rule takes it, and httpx sends it where the URL says." in line
    assert decide(view(JASON), "reviews:9080", request())["encrypted"] is False


def test_the_connection_of_an_https_url_goes_by_tls_rules() -> None:
    origin = Origin("VirtualService default/safe", "safe.yaml:7")
    shares = (chains.Share("outbound|443|v1|a", 3, 3), chains.Share("outbound|443||b", 1, 4))
    chain = chains.FilterChain(shares, "c", ("*.safe.example",), origin=origin)
    rest = chains.FilterChain((chains.Share("PassthroughCluster", 1, 1),), "rest")
    listed = EndpointSet((LocalityEndpoints("", 0, 1, (Endpoint("10.0.0.1", 443),)),))
    name = "x.safe.example:443"
    there = chains.Connections([chain], rest)
    known = View("1", {}, {}, {"outbound|443||b": listed}, connections={name: there, "other:443": there})
    answer = decide(known, name, RequestHead("GET", "https", "X.safe.example", "/"))
    assert (answer["encrypted"], answer["matched"], answer["source"]) == (True, True, "safe.yaml:7")
    assert [one["probability"] for one in answer["clusters"]] == [0.75, 0.25]
    assert [one["address"] for one in answer["endpoints"]] == ["10.0.0.1:443"]
    assert "goes by [cyan]VirtualService default/safe safe.yaml:7[/]" in lines(answer)[0]
    assert " 75% → [bold]a:443[/] subset [bold]v1[/]" in lines(answer)[1]
    assert decide(known, "other:443", RequestHead("GET", "https", "other", "/"))["matched"] is False


def test_an_https_url_of_an_unknown_host_may_be_refused() -> None:
    blocks = Route("block_all", RouteMatch(), DirectResponse(502, b"", True), EMPTY, EMPTY)
    asked = RequestHead("GET", "https", "reviews:9080", "/")
    answer = decide(view(blocks), "reviews:9080", asked)
    assert answer["refused"] == "it is unknown, and outboundTrafficPolicy is REGISTRY_ONLY"
    (line,) = lines(answer)
    assert line == f"  [red]refused (ConnectFailed)[/]: reviews:9080: {answer['refused']}"
