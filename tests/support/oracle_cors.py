"""Random CORS policies of routes, and requests of browsers: what Envoy's filter does, and what ours does.

Both read one route configuration, whose routes lead to a scripted upstream. Ours is `core.cors` with what a
middleware makes of it: the answer to a preflight, or the upstream's headers with what is added to them.
"""

import asyncio
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from support.envoy import run_envoy
from support.oracle_http import Received, receive
from support.upstream import run_upstream

from meshlib.core.actions import Reply
from meshlib.core.authz.opinion import answered
from meshlib.core.cors import cross
from meshlib.core.request import RequestHead
from meshlib.core.route.table import RouteTable
from meshlib.dataplane.decode.routes import decode_routes
from meshlib.xds import pb

Values = dict[str, Any]
_TYPES = "type.googleapis.com/envoy.extensions.filters"
FILTER = "envoy.filters.http.cors"
ORIGINS = ("https://a.com", "https://b.com:8080", "http://a.com", "null", "https://x.a.com", "*", "")
MATCHES = (
    *({"exact": text} for text in ("https://a.com", "*", "null", "")),
    *({"prefix": text} for text in ("https://", "*", "https://a")),
    *({"safe_regex": {"regex": text}} for text in (".*", r"https://(.*\.)?a\.com", r"\*", "nothing")),
    {"suffix": "a.com"},
    {"contains": "A.COM", "ignore_case": True},
)
OWN = (("access-control-allow-origin", "own"), ("access-control-expose-headers", "own"), ("x-own", "1"))
"""What some of the upstream's responses say themselves."""
AT_ONCE = 24


class Asked(NamedTuple):
    """One request, to a route by number."""

    route: int
    method: str
    headers: tuple[tuple[str, str], ...]
    own: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        return f"{self.method} /{self.route}/ {dict(self.headers)} answered with {dict(self.own)}"


def make_policy(dice: random.Random) -> Values:
    """A CorsPolicy."""
    made: Values = {"allow_origin_string_match": dice.sample(MATCHES, dice.randint(0, 3))}
    for name, values in (
        ("allow_methods", ("GET", "GET,POST")),
        ("allow_headers", ("x-a", "content-type,x-a")),
        ("expose_headers", ("x-b",)),
        ("max_age", ("0", "60")),
    ):
        if dice.random() < 0.5:
            made[name] = dice.choice(values)
    for name in ("allow_credentials", "forward_not_matching_preflights", "allow_private_network_access"):
        if dice.random() < 0.6:
            made[name] = dice.random() < 0.5
    for name in ("filter_enabled", "shadow_enabled"):
        if dice.random() < 0.3:
            made[name] = {"default_value": {"numerator": dice.choice((0, 100, 100, 100))}}
    return made


def make_request(dice: random.Random, routes: int) -> Asked:
    """A request as a browser makes it, or nearly."""
    headers = []
    if dice.random() < 0.9:
        headers.append(("origin", dice.choice(ORIGINS)))
    if dice.random() < 0.7:
        headers.append(("access-control-request-method", dice.choice(("GET", "DELETE", "GET", ""))))
    if dice.random() < 0.4:
        headers.append(("access-control-request-headers", "x-a"))
    if dice.random() < 0.3:
        headers.append(("access-control-request-private-network", dice.choice(("true", "false"))))
    method = dice.choice(("OPTIONS", "OPTIONS", "GET", "POST"))
    own = tuple(dice.sample(OWN, dice.randint(0, 3)))
    return Asked(dice.randrange(routes), method, tuple(headers), own)


def configuration(policies: Sequence[Values]) -> Values:
    """A route for each policy, and one without."""
    routes = [
        {
            "match": {"prefix": f"/{number}/"},
            "route": {"cluster": "up"},
            "typed_per_filter_config": {FILTER: {"@type": f"{_TYPES}.http.cors.v3.CorsPolicy", **policy}},
        }
        for number, policy in enumerate(policies)
    ]
    routes.append({"match": {"prefix": "/"}, "route": {"cluster": "up"}})
    return {"name": "cors", "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]}


def _address(port: int) -> Values:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def _bootstrap(routes: Values, port: int) -> Values:
    manager = {
        "@type": f"{_TYPES}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "main",
        "route_config": routes,
        "http_filters": [
            {"name": FILTER, "typed_config": {"@type": f"{_TYPES}.http.cors.v3.Cors"}},
            {"name": "router", "typed_config": {"@type": f"{_TYPES}.http.router.v3.Router"}},
        ],
    }
    chain = {"filters": [{"name": "http", "typed_config": manager}]}
    endpoint = {"endpoint": {"address": _address(port)}}
    cluster = {
        "name": "up",
        "type": "STATIC",
        "load_assignment": {"cluster_name": "up", "endpoints": [{"lb_endpoints": [endpoint]}]},
    }
    listener = {"name": "main", "address": _address(0), "filter_chains": [chain]}
    return {
        "node": {"id": "oracle", "cluster": "oracle"},
        "static_resources": {"listeners": [listener], "clusters": [cluster]},
    }


async def compare(policies: Sequence[Values], requests: Sequence[Asked], folder: Path) -> list[str]:
    """The differences in words."""
    routes = configuration(policies)
    table = decode_routes(pb.from_dict(pb.RouteConfiguration, routes), served=True)
    gate = asyncio.Semaphore(AT_ONCE)

    async def ask(number: int, asked: Asked) -> Received:
        script = "|".join(("299", *("=".join(header) for header in asked.own)))
        lines = [f"{asked.method} /{asked.route}/ HTTP/1.1", "host: a", "content-length: 0"]
        lines += [f"x-id: {number}", f"x-script: {script}", "connection: close"]
        lines += [": ".join(header) for header in asked.headers]
        async with gate:
            reader, writer = await asyncio.open_connection("127.0.0.1", envoy.listeners["main"])
            writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
            try:
                return await receive(reader)
            finally:
                writer.close()
                await writer.wait_closed()

    async with run_upstream() as upstream, run_envoy(_bootstrap(routes, upstream.port), folder) as envoy:
        received = await asyncio.gather(*(ask(number, asked) for number, asked in enumerate(requests)))
    found = []
    for asked, got in zip(requests, received, strict=True):
        theirs, ours = (got.status, _told(got.headers)), our_answer(table, asked)
        if theirs != ours:
            policy = policies[asked.route] if asked.route < len(policies) else None
            found.append(f"{policy}\n{asked}\n  Envoy {theirs}\n  ours  {ours}")
    return found


def _told(headers: Sequence[tuple[str, str]]) -> dict[str, str]:
    return {name: value for name, value in headers if name.startswith("access-control-") or name == "x-own"}


def our_answer(table: RouteTable, asked: Asked) -> tuple[int, dict[str, str]]:
    """Status and headers."""
    pairs = [(name.encode(), value.encode()) for name, value in asked.headers]
    said = cross(table, RequestHead(asked.method, "http", "a", f"/{asked.route}/", pairs))
    if isinstance(said, Reply):
        return said.status, {name.decode(): value.decode() for name, value in said.headers}
    own = [(name.encode(), value.encode()) for name, value in asked.own]
    return 299, {name.decode(): value.decode() for name, value in answered(own, said)}
