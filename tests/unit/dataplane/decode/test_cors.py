"""CorsPolicy of routes of a served port, and what is refused of it."""

from typing import Any

import pytest

from meshlib.core.cors import Cors, CorsPolicy
from meshlib.core.inbound import Inbound
from meshlib.core.route.text import TextKind, TextMatch
from meshlib.dataplane.decode.cors import CORS
from meshlib.dataplane.decode.errors import Refused
from meshlib.dataplane.decode.inbound import decode_inbound
from meshlib.dataplane.decode.routes import decode_routes
from meshlib.xds import pb

Values = dict[str, Any]


def routes(values: Values, *, level: str = "route") -> Any:
    made = pb.RouteConfiguration(name="t")
    host = made.virtual_hosts.add(name="v", domains=["*"])
    route = host.routes.add(match={"prefix": "/"}, route={"cluster": "inbound|80||"})
    at = {"route": route, "host": host, "configuration": made}[level]
    at.typed_per_filter_config[CORS].CopyFrom(pb.pack(pb.from_dict(pb.CorsPolicy, values)))
    return made


def decoded(values: Values) -> CorsPolicy | None:
    return decode_routes(routes(values), served=True).hosts[0].routes[0].cors


def test_every_field() -> None:
    made = decoded(
        {
            "allow_origin_string_match": [{"exact": "https://a.com"}, {"safe_regex": {"regex": ".*"}}],
            "allow_methods": "GET",
            "allow_headers": "x-a",
            "expose_headers": "x-b",
            "max_age": "60",
            "allow_credentials": True,
            "allow_private_network_access": True,
            "forward_not_matching_preflights": False,
            "filter_enabled": {"default_value": {"numerator": 100}},
            "shadow_enabled": {"default_value": {"numerator": 100}},
        }
    )
    origins = (TextMatch(TextKind.EXACT, "https://a.com"), TextMatch(TextKind.REGEX, ".*"))
    assert made == CorsPolicy(origins, b"GET", b"x-a", b"x-b", b"60", True, True, False)
    assert decoded({}) == CorsPolicy()
    assert decoded({"filter_enabled": {"default_value": {"numerator": 0}}}) is None


@pytest.mark.parametrize(
    ("values", "path"),
    [
        ({"allow_origin_string_match": [{"prefix": ""}]}, "allow_origin_string_match[0].prefix: is empty"),
        (
            {"allow_origin_string_match": [{"exact": "a"}] * 1001},
            "allow_origin_string_match: more than 1000",
        ),
        ({"allow_methods": "GET\r\nx: y"}, "allow_methods: holds a line end or a NUL"),
        (
            {"filter_enabled": {"default_value": {"numerator": 50}}},
            "filter_enabled: a share of the requests is not supported",
        ),
        (
            {"filter_enabled": {"default_value": {"denominator": 9}}},
            "filter_enabled.default_value.denominator: 9 is unknown",
        ),
    ],
)
def test_refused(values: Values, path: str) -> None:
    with pytest.raises(Refused) as caught:
        decoded(values)
    assert str(caught.value) == f'virtual_hosts[0].routes[0].typed_per_filter_config["{CORS}"].{path}'


def test_of_requests_that_are_made_it_is_not_looked_at() -> None:
    bad = {"allow_methods": "\n"}
    assert decode_routes(routes(bad)).hosts[0].routes[0].cors is None
    assert decode_routes(routes(bad, level="host")).hosts[0].routes[0].cors is None


@pytest.mark.parametrize(("level", "path"), [("host", "virtual_hosts[0].typed"), ("configuration", "typed")])
def test_other_levels_are_refused(level: str, path: str) -> None:
    with pytest.raises(Refused) as caught:
        decode_routes(routes({}, level=level), served=True)
    assert str(caught.value) == f'{path}_per_filter_config["{CORS}"]: is supported in routes'


def listener(*, filters: bool = True, rds: bool = False, values: Values | None = None) -> Inbound:
    manager = pb.HttpConnectionManager(stat_prefix="in")
    if rds:
        manager.rds.route_config_name = "r"
    else:
        manager.route_config.CopyFrom(routes(values or {}))
    if filters:
        manager.http_filters.add(name=CORS, typed_config=pb.pack(pb.Cors()))
    manager.http_filters.add(name="router", typed_config=pb.pack(pb.Router()))
    message = pb.Listener(name="xds.istio.io/grpc/lds/inbound/0.0.0.0:80")
    message.filter_chains.add().filters.add(name="http", typed_config=pb.pack(manager))
    return decode_inbound(message)


def test_the_routes_are_looked_at_for_the_filter() -> None:
    made = listener()
    assert [type(one) for one in made.filters] == [Cors]
    assert made.routes is not None
    assert made.routes.hosts[0].routes[0].cors == CorsPolicy()
    bad = {"allow_methods": "\n"}
    assert listener(filters=False, values=bad).routes is None
    with pytest.raises(Refused, match=r"typed_config\.route_config\.virtual_hosts\[0\]\.routes\[0\]"):
        listener(values=bad)
    with pytest.raises(Refused, match="rds: is not supported: the routes must be inline"):
        listener(rds=True)
