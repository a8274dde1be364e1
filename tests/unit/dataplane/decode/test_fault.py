"""HTTPFault on each level of a route configuration, and what is refused of it."""

from typing import Any

import pytest

from meshlib.core.fault import Abort, Aborted, Delay, Fault, Share
from meshlib.core.route.rule import Forward, Route
from meshlib.dataplane.decode.errors import Refused
from meshlib.dataplane.decode.fault import FAULT, decode_http_fault
from meshlib.dataplane.decode.routes import decode_routes
from meshlib.xds import pb

Values = dict[str, Any]
ALL = {"percentage": {"numerator": 100}}
SHARE = Share(100, 100)
DOWN = {"abort": {"http_status": 503, **ALL}}
GONE = {"abort": {"http_status": 410, **ALL}}


def decoded(*, config: Any = None, host: Any = None, route: Any = None, cluster: Any = None) -> Route:
    """A route with a fault, packed, on some of the levels."""
    made = pb.RouteConfiguration(name="t")
    virtual = made.virtual_hosts.add(name="v", domains=["*"])
    one = virtual.routes.add(match={"prefix": "/"})
    split = one.route.weighted_clusters.clusters.add(name="c")
    split.weight.value = 1
    for message, fault in ((made, config), (virtual, host), (one, route), (split, cluster)):
        if fault is not None:
            message.typed_per_filter_config[FAULT].CopyFrom(pb.pack(fault))
    return decode_routes(made).hosts[0].routes[0]


def fault(values: Values) -> Any:
    return pb.from_dict(pb.HTTPFault, values)


def status(route: Route) -> tuple[int | None, int | None]:
    """Of the route's fault and of its cluster's."""
    assert isinstance(route.action, Forward)
    found = [each.abort.how for each in (route.fault, route.action.clusters[0].fault) if each and each.abort]
    statuses = [each.status if each else None for each in found]
    return (statuses[0], statuses[1]) if len(statuses) == 2 else (None, statuses[0] if statuses else None)


def test_the_most_specific_level_counts_whole() -> None:
    assert status(decoded()) == (None, None)
    assert status(decoded(config=fault(DOWN))) == (503, 503)
    assert status(decoded(config=fault(DOWN), host=fault(GONE))) == (410, 410)
    assert status(decoded(host=fault(DOWN), route=fault(GONE))) == (410, 410)
    assert status(decoded(route=fault(DOWN), cluster=fault(GONE))) == (503, 410)
    assert status(decoded(cluster=fault(GONE))) == (None, 410)
    assert status(decoded(host=fault(DOWN), route=fault({}))) == (None, None)


def test_wrapped_and_disabled() -> None:
    wrapper = pb.message("envoy.config.route.v3.FilterConfig")
    wrapped = wrapper(config=pb.pack(fault(GONE)))
    assert status(decoded(host=fault(DOWN), route=wrapped)) == (410, 410)
    assert status(decoded(host=fault(DOWN), route=wrapper(disabled=True))) == (None, None)


def test_every_field() -> None:
    made = decode_http_fault(
        fault(
            {
                "delay": {"fixed_delay": "1.2345s", "percentage": {"numerator": 5, "denominator": "MILLION"}},
                "abort": {"grpc_status": 14, "percentage": {"numerator": 7, "denominator": "TEN_THOUSAND"}},
                "upstream_cluster": "c",
                "headers": [{"name": "X-A", "string_match": {"exact": "1"}}],
                "downstream_nodes": ["n"],
                "max_active_faults": 3,
                "delay_percent_runtime": "ignored",
            }
        )
    )
    assert made is not None
    assert made.delay == Delay(Share(5, 1_000_000), 1.234)
    assert made.abort == Abort(Share(7, 10_000), Aborted(200, 14))
    assert (made.cluster, made.nodes, made.max_active) == ("c", frozenset((b"n",)), 3)
    assert [str(header) for header in made.headers] == ['header x-a exactly "1"']
    by_header = decode_http_fault(
        fault({"delay": {"header_delay": {}, **ALL}, "abort": {"header_abort": {}, **ALL}})
    )
    assert by_header == Fault(Delay(SHARE), Abort(SHARE))


@pytest.mark.parametrize(
    ("values", "path"),
    [
        (
            {"response_rate_limit": {"fixed_limit": {"limit_kbps": 1}}},
            "response_rate_limit: is not supported",
        ),
        ({"delay": ALL}, "delay.fixed_delay: is not set"),
        ({"delay": {"fixed_delay": "0s"}}, "delay.fixed_delay: must be longer than nothing"),
        ({"delay": {"fixed_delay": "-1s"}}, "delay.fixed_delay: must be longer than nothing"),
        ({"abort": ALL}, "abort.http_status: is not set"),
        ({"abort": {"http_status": 199}}, "abort.http_status: 199 is not from 200 to 599"),
        ({"abort": {"http_status": 600}}, "abort.http_status: 600 is not from 200 to 599"),
        (
            {"abort": {"http_status": 500, "percentage": {"denominator": 7}}},
            "abort.percentage.denominator: 7 is unknown",
        ),
        ({"headers": [{"name": ""}]}, "headers[0].name: is empty"),
        ({"headers": [{"name": "a"}] * 201}, "headers: more than 200"),
        ({"downstream_nodes": ["n"] * 10_001}, "downstream_nodes: more than 10000"),
    ],
)
def test_refused(values: Values, path: str) -> None:
    with pytest.raises(Refused) as caught:
        decoded(route=fault(values))
    place = f'virtual_hosts[0].routes[0].typed_per_filter_config["{FAULT}"]'
    assert str(caught.value) == f"{place}.{path}"


@pytest.mark.parametrize(
    ("packed", "words"),
    [
        (pb.Router(), "envoy.extensions.filters.http.router.v3.Router is not supported"),
        (pb.message("envoy.config.route.v3.FilterConfig")(config=pb.pack(pb.Router())), "is not supported"),
        (
            pb.message("envoy.config.route.v3.FilterConfig")(config={"type_url": "x/y", "value": b""}),
            "can't be decoded",
        ),
    ],
)
def test_another_message_is_refused(packed: Any, words: str) -> None:
    with pytest.raises(Refused, match=words):
        decoded(host=packed)
