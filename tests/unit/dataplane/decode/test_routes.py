"""A RouteConfiguration becomes a RouteTable whole, or is refused by the path of one field."""

from typing import Any

import pytest

from meshlib.core.headers import Append
from meshlib.core.request import RequestHead
from meshlib.core.retry import RetryOn, RetryPolicy
from meshlib.core.route.match import PathKind
from meshlib.core.route.rule import DirectResponse, Forward, MirrorPolicy, Origin, Redirect, Route
from meshlib.core.route.table import RouteTable
from meshlib.dataplane.decode.errors import Refused
from meshlib.dataplane.decode.routes import decode_routes
from meshlib.xds import pb

Values = dict[str, Any]


def table(route: Values, host: Values | None = None, config: Values | None = None) -> RouteTable:
    virtual = {"name": "v", "domains": ["*"], "routes": [route], **(host or {})}
    values = {"name": "t", "virtual_hosts": [virtual], **(config or {})}
    return decode_routes(pb.from_dict(pb.RouteConfiguration, values))


def decoded(route: Values, host: Values | None = None, config: Values | None = None) -> Route:
    return table(route, host, config).hosts[0].routes[0]


def forward(action: Values, host: Values | None = None) -> Forward:
    found = decoded({"match": {"prefix": "/"}, "route": {"cluster": "c", **action}}, host).action
    assert isinstance(found, Forward)
    return found


def test_a_whole_configuration() -> None:
    made = table(
        {
            "name": "jason",
            "match": {"prefix": "/", "headers": [{"name": "End-User", "string_match": {"exact": "jason"}}]},
            "route": {"cluster": "outbound|9080|v2|reviews", "timeout": "2s"},
            "metadata": {
                "filter_metadata": {
                    "meshlib": {"document": "VirtualService default/reviews", "source": "reviews.yaml:7"}
                }
            },
        },
        {
            "domains": ["reviews", "reviews:9080"],
            "include_request_attempt_count": True,
            "include_attempt_count_in_response": True,
        },
        {"ignore_port_in_host_matching": True},
    )
    assert (made.name, made.ignore_port) == ("t", True)
    [host] = made.hosts
    assert (host.name, host.domains) == ("v", ("reviews", "reviews:9080"))
    assert host.attempt_count
    assert host.tells_attempts
    [route] = host.routes
    assert route.origin == Origin("VirtualService default/reviews", "reviews.yaml:7")
    assert route.match.matches(RequestHead("GET", "http", "reviews", "/", [(b"end-user", b"jason")]))
    assert isinstance(route.action, Forward)
    assert [cluster.name for cluster in route.action.clusters] == ["outbound|9080|v2|reviews"]
    assert route.action.timeout == 2.0


def test_defaults_of_a_route() -> None:
    made = forward({})
    assert (made.timeout, made.retry, made.mirrors, made.rewrite, made.max_grpc_timeout) == (
        15.0,
        None,
        (),
        None,
        None,
    )


@pytest.mark.parametrize(
    ("action", "timeout", "grpc"),
    [
        ({"timeout": "0s"}, 0.0, None),
        ({"timeout": "0s", "max_grpc_timeout": "0s"}, 0.0, 0.0),
        ({"timeout": "3s", "max_stream_duration": {"max_stream_duration": "1.5s"}}, 1.5, None),
        ({"timeout": "0s", "max_stream_duration": {"max_stream_duration": "4s"}}, 4.0, None),
        ({"timeout": "2s", "max_stream_duration": {"max_stream_duration": "0s"}}, 2.0, None),
        ({"max_stream_duration": {"grpc_timeout_header_max": "7s"}}, 15.0, 7.0),
    ],
)
def test_timeouts(action: Values, timeout: float, grpc: float | None) -> None:
    made = forward(action)
    assert (made.timeout, made.max_grpc_timeout) == (timeout, grpc)


def test_weights_are_cumulative_and_clusters_keep_their_edits() -> None:
    edit = {"header": {"key": "X-A", "value": "1"}, "append_action": "OVERWRITE_IF_EXISTS"}
    weighted = [
        {"name": "a", "weight": 0, "request_headers_to_add": [edit], "host_rewrite_literal": "h"},
        {"name": "b", "weight": 75},
        {"name": "c", "weight": 25},
    ]
    action = decoded({"match": {"prefix": ""}, "route": {"weighted_clusters": {"clusters": weighted}}}).action
    assert isinstance(action, Forward)
    assert [(c.name, c.weight, c.upto, c.authority) for c in action.clusters] == [
        ("a", 0, 0, "h"),
        ("b", 75, 75, ""),
        ("c", 25, 100, ""),
    ]
    assert action.total_weight == 100
    [level] = action.clusters[0].request_headers.levels
    assert [(e.name, e.action) for e in level.edits] == [(b"x-a", Append.OVERWRITE_IF_EXISTS)]


def test_retries_of_the_route_beat_those_of_the_host() -> None:
    host = {"retry_policy": {"retry_on": "5xx", "num_retries": 7}}
    assert forward({}, host).retry == RetryPolicy(frozenset({RetryOn.FIVE_XX}), 7)
    own = {
        "retry_on": "connect-failure, refused-stream,unheard-of,retriable-status-codes",
        "num_retries": 2,
        "per_try_timeout": "0.5s",
        "retriable_status_codes": [503, 418],
        "retriable_headers": [{"name": "X-Retry"}],
        "retry_host_predicate": [{"name": "envoy.retry_host_predicates.previous_hosts"}],
        "host_selection_retry_max_attempts": 5,
        "retry_back_off": {"base_interval": "0.0001s", "max_interval": "3s"},
    }
    assert forward({"retry_policy": own}, host).retry == RetryPolicy(
        retry_on=frozenset({RetryOn.CONNECT_FAILURE, RetryOn.REFUSED_STREAM, RetryOn.RETRIABLE_STATUS_CODES}),
        retries=2,
        per_try_timeout=0.5,
        status_codes=frozenset({503, 418}),
        headers=(b"x-retry",),
        base_interval=0.001,
        max_interval=3.0,
        avoid_previous_hosts=True,
        host_selection_attempts=5,
    )
    assert forward({"retry_policy": {"num_retries": 3}}, host).retry == RetryPolicy(frozenset(), retries=3)
    longest = forward(
        {"retry_policy": {"retry_on": "5xx", "retry_back_off": {"base_interval": "0.1s"}}}
    ).retry
    assert longest is not None
    assert (longest.base_interval, longest.max_interval, longest.retries) == (0.1, 1.0, 1)


def test_mirrors() -> None:
    half = {
        "cluster": "m",
        "runtime_fraction": {"default_value": {"numerator": 505, "denominator": "TEN_THOUSAND"}},
    }
    made = forward({"request_mirror_policies": [half, {"cluster": "n"}]})
    assert made.mirrors == (MirrorPolicy("m", 50_500), MirrorPolicy("n", 1_000_000))
    assert forward({}, {"request_mirror_policies": [{"cluster": "h"}]}).mirrors == (MirrorPolicy("h"),)


def test_redirect_and_direct_response() -> None:
    redirect = {
        "host_redirect": "b",
        "https_redirect": True,
        "response_code": "FOUND",
        "prefix_rewrite": "/n",
    }
    found = decoded({"match": {"path_separated_prefix": "/ab"}, "redirect": redirect})
    assert found.match.path.kind is PathKind.SEGMENTS
    assert isinstance(found.action, Redirect)
    assert (found.action.status, found.action.https, found.action.host) == (302, True, "b")
    assert found.action.rewrite_text == 'path-separated prefix becomes "/n"'
    direct = {"status": 503, "body": {"inline_string": "no"}}
    assert decoded({"match": {"prefix": "/"}, "direct_response": direct}).action == DirectResponse(503, b"no")


def test_edits_go_from_route_to_configuration_or_the_other_way() -> None:
    def add(value: str) -> Values:
        return {"request_headers_to_add": [{"header": {"key": "x", "value": value}}]}

    rule = {"match": {"prefix": "/"}, "route": {"cluster": "c"}, **add("route")}

    def order(config: Values) -> list[str]:
        levels = decoded(rule, add("host"), add("config") | config).request_headers.levels
        return [level.edits[0].value.source for level in levels]

    assert order({}) == ["route", "host", "config"]
    assert order({"most_specific_header_mutations_wins": True}) == ["config", "host", "route"]


FORWARD = {"cluster": "c"}
BODY = {"status": 200, "body": {"inline_string": "x" * 4097}}


@pytest.mark.parametrize(
    ("route", "path", "words"),
    [
        (
            {"match": {"safe_regex": {"regex": "("}}},
            "match.safe_regex.regex",
            "not an RE2 pattern: missing )",
        ),
        (
            {"match": {"safe_regex": {"regex": "x{1000}" * 40}}},
            "match.safe_regex.regex",
            "steps, at most 32768",
        ),
        ({"match": {"safe_regex": {"regex": "x" * 16_385}}}, "match.safe_regex.regex", "16385 characters"),
        ({"match": {"safe_regex": {}}}, "match.safe_regex.regex", "is empty"),
        ({"match": {}}, "match.path_specifier", "is not set"),
        ({"match": {"connect_matcher": {}}}, "match.connect_matcher", "is not supported"),
        ({"match": {"path_separated_prefix": "/a/"}}, "match.path_separated_prefix", "at its end"),
        ({"match": {"prefix": "/", "headers": [{"name": ""}]}}, "match.headers[0].name", "is empty"),
        (
            {
                "match": {
                    "prefix": "/",
                    "headers": [{"name": "a"}, {"name": "b", "string_match": {"prefix": ""}}],
                }
            },
            "match.headers[1].string_match.prefix",
            "is empty",
        ),
        (
            {
                "match": {
                    "prefix": "/",
                    "headers": [{"name": "a", "string_match": {"safe_regex": {"regex": "["}}}],
                }
            },
            "match.headers[0].string_match.safe_regex.regex",
            "missing ]",
        ),
        (
            {"match": {"prefix": "/", "query_parameters": [{"name": "a", "string_match": {}}]}},
            "match.query_parameters[0].string_match",
            "no pattern is set",
        ),
        ({"match": {"prefix": "/", "headers": [{"name": "a"}] * 201}}, "match.headers", "more than 200"),
        (
            {"match": {"prefix": "/", "dynamic_metadata": [{"filter": "f"}]}},
            "match.dynamic_metadata",
            "not supported",
        ),
        ({"route": {"cluster": ""}}, "route.cluster", "is empty"),
        ({"route": {}}, "route.cluster_specifier", "is not set"),
        ({"route": {"cluster_header": "x"}}, "route.cluster_header", "is not supported"),
        (
            {"route": {"weighted_clusters": {"clusters": [{"name": "a"}]}}},
            "route.weighted_clusters.clusters",
            "sum up to 0",
        ),
        (
            {"route": {"weighted_clusters": {"clusters": [{"weight": 1}]}}},
            "route.weighted_clusters.clusters[0].name",
            "is empty",
        ),
        ({"route": {**FORWARD, "timeout": "-1s"}}, "route.timeout", "less than nothing"),
        (
            {"route": {**FORWARD, "prefix_rewrite": "/", "regex_rewrite": {"pattern": {"regex": "a"}}}},
            "route.regex_rewrite",
            "can't stand beside",
        ),
        (
            {"route": {**FORWARD, "regex_rewrite": {"pattern": {"regex": "a"}, "substitution": "\\2"}}},
            "route.regex_rewrite.substitution",
            "\\2 is no group: the pattern has 0",
        ),
        ({"route": {**FORWARD, "host_rewrite_header": "x"}}, "route.host_rewrite_header", "not supported"),
        (
            {
                "route": {
                    **FORWARD,
                    "retry_policy": {"retry_back_off": {"base_interval": "1s", "max_interval": "0.5s"}},
                }
            },
            "route.retry_policy.retry_back_off.max_interval",
            "shorter",
        ),
        (
            {"route": {**FORWARD, "retry_policy": {"num_retries": 5000}}},
            "route.retry_policy.num_retries",
            "5000",
        ),
        (
            {"route": {**FORWARD, "request_mirror_policies": [{}]}},
            "route.request_mirror_policies[0].cluster",
            "is empty",
        ),
        ({"redirect": {"port_redirect": 70_000}}, "redirect.port_redirect", "70000 is no port"),
        ({"direct_response": {"status": 99}}, "direct_response.status", "99 is not from 200 to 599"),
        ({"direct_response": BODY}, "direct_response.body", "4097 bytes, at most 4096"),
        (
            {"direct_response": {"status": 200, "body": {"filename": "/etc/passwd"}}},
            "direct_response.body.filename",
            "must be inline",
        ),
        ({}, "action", "is not set"),
        ({"non_forwarding_action": {}}, "non_forwarding_action", "is not supported"),
        (
            {"route": FORWARD, "request_headers_to_remove": ["ok", "Host"]},
            "request_headers_to_remove[1]",
            "can't be edited",
        ),
        (
            {"route": FORWARD, "request_headers_to_add": [{"header": {"key": ":path", "value": "/"}}]},
            "request_headers_to_add[0].header.key",
            "can't be edited",
        ),
        (
            {"route": FORWARD, "response_headers_to_add": [{"header": {"key": "a b", "value": "1"}}]},
            "response_headers_to_add[0].header.key",
            "no header name",
        ),
        (
            {"route": FORWARD, "response_headers_to_add": [{"header": {"key": "a", "value": "1\r\nx: y"}}]},
            "response_headers_to_add[0].header.value",
            "line end",
        ),
        (
            {"route": FORWARD, "response_headers_to_add": [{"header": {"key": "a", "value": "50%"}}]},
            "response_headers_to_add[0].header.value",
            "%%",
        ),
    ],
)
def test_refused_by_the_path_of_the_field(route: Values, path: str, words: str) -> None:
    with pytest.raises(Refused) as caught:
        table({"match": {"prefix": "/"}, **route})
    assert caught.value.path == f"virtual_hosts[0].routes[0].{path}"
    assert words in caught.value.reason
    assert str(caught.value) == f"{caught.value.path}: {caught.value.reason}"


@pytest.mark.parametrize(
    ("host", "config", "path"),
    [
        ({"name": ""}, {}, "virtual_hosts[0].name"),
        ({"domains": []}, {}, "virtual_hosts[0].domains"),
        ({"domains": ["a", "A"]}, {}, "virtual_hosts"),
        ({"require_tls": "ALL"}, {}, "virtual_hosts[0].require_tls"),
        ({"retry_policy": {"num_retries": 1001}}, {}, "virtual_hosts[0].retry_policy.num_retries"),
        ({}, {"vhds": {}}, "vhds"),
        ({}, {"request_headers_to_remove": ["host"]}, "request_headers_to_remove[0]"),
    ],
)
def test_hosts_and_configurations_are_refused_too(host: Values, config: Values, path: str) -> None:
    with pytest.raises(Refused) as caught:
        table({"match": {"prefix": "/"}, "route": FORWARD}, host, config)
    assert caught.value.path == path


def test_too_many_routes_are_refused() -> None:
    message = pb.RouteConfiguration(name="t")
    host = message.virtual_hosts.add(name="v", domains=["*"])
    for _ in range(50_001):
        host.routes.add()
    with pytest.raises(Refused, match="more than 50000 routes"):
        decode_routes(message)


def test_a_larger_body_where_the_configuration_allows_it() -> None:
    rule = {"match": {"prefix": "/"}, "direct_response": BODY}
    found = decoded(rule, None, {"max_direct_response_body_size_bytes": 1_048_576}).action
    assert isinstance(found, DirectResponse)
    assert len(found.body) == 4097


def test_what_does_not_change_the_answer_is_not_looked_at() -> None:
    rule = {
        "match": {"prefix": "/"},
        "route": {"cluster": "c", "hash_policy": [{"header": {"header_name": "x"}}], "priority": "HIGH"},
        "decorator": {"operation": "reviews:9080/*"},
        "stat_prefix": "s",
    }
    assert isinstance(decoded(rule).action, Forward)


def test_a_route_says_whether_its_tries_are_hedged_or_its_host_does() -> None:
    hedges = {"hedge_policy": {"hedge_on_per_try_timeout": True}}
    unused = {"initial_requests": 3, "additional_request_chance": {"numerator": 5}}
    assert not forward({}).hedged
    assert forward(hedges).hedged
    assert forward({}, hedges).hedged
    assert not forward({"hedge_policy": unused}, hedges).hedged
    for said, path in (
        ({"initial_requests": 0}, "initial_requests"),
        ({"additional_request_chance": {"denominator": 7}}, "additional_request_chance.denominator"),
    ):
        with pytest.raises(Refused, match=rf"routes\[0\]\.route\.hedge_policy\.{path}"):
            forward({"hedge_policy": said})
        with pytest.raises(Refused, match=rf"virtual_hosts\[0\]\.hedge_policy\.{path}"):
            forward({}, {"hedge_policy": said})
