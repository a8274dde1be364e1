"""Real Envoy as the judge of our routing: the same route configuration and request, two answers.

One Envoy serves many route configurations at once: each is a scope of its own, picked by the header
`x-case`. All clusters lead to an echo listener of the same Envoy, which answers with the request as
it arrived. So one answer shows route, cluster, status, Location, body, the rewritten path and host,
the timeout (x-envoy-expected-rq-timeout-ms), and both sides' header edits.

What makes the comparison fair, and what it therefore does not cover:
* Envoy's clean-up of a path before routing (normalize_path, merge_slashes, escaped slashes) is off:
  this library routes the path that the application's HTTP client made.
* Names of headers are compared in lower case, several headers of one name as one value.
* Headers that a proxy adds or writes anew on its own account (`OWN_HEADERS`) are left out.
* Envoy turns its own replies to gRPC requests, the echo's included, into gRPC statuses; of those only
  the route is compared.
* Shares of rules are 0 or 100 percent; of several clusters with a weight Envoy may pick any, and its
  answer must be the one that this library gives with that cluster.
* A rewrite to a path that does not begin with a slash is refused by the echo, with 400; of such a
  request only route and cluster are compared.
"""

import asyncio
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from support.envoy import run_envoy
from support.oracle_http import Call, Received, ask_all

from meshlib.core.headers import ONE_PLACE as ONE_PLACE_BYTES
from meshlib.core.request import RequestHead
from meshlib.core.route.forward import incoming, outgoing, timeouts
from meshlib.core.route.reply import own_reply
from meshlib.core.route.rule import Forward, Route, WeightedCluster
from meshlib.core.route.table import RouteTable
from meshlib.dataplane.decode.routes import decode_routes
from meshlib.xds import pb

OWN_HEADERS = {
    *("x-case", "x-request-id", "x-forwarded-proto", "x-forwarded-for", "x-envoy-internal"),
    *("x-envoy-attempt-count", "x-envoy-expected-rq-timeout-ms", "x-envoy-upstream-service-time"),
    *("connection", "host", "transfer-encoding", "content-length", "date", "server", "grpc-timeout"),
}
ONE_PLACE = {name.decode() for name in ONE_PLACE_BYTES}
"""Headers that Envoy keeps as one value: an empty part of it is as good as none."""
UPSTREAM_HEADERS = (
    ("x-up", "one"),
    ("x-up", "two"),
    ("x-a", "from-upstream"),
    ("content-type", "text/plain"),
)
"""What the echo's response carries, for response edits to work on."""
ECHO = """
function envoy_on_request(handle)
  local lines = {}
  for name, value in pairs(handle:headers()) do lines[#lines + 1] = name .. "\\t" .. value end
  handle:respond({[":status"] = "200", ["x-up"] = {"one", "two"}, ["x-a"] = "from-upstream",
    ["content-type"] = "text/plain"}, table.concat(lines, "\\n"))
end
"""


class Loaded:
    """Dice that always fall the same way."""

    def __init__(self, number: float) -> None:
        self.number = number

    def random(self) -> float:
        """That number."""
        return self.number


@dataclass(frozen=True, slots=True)
class Case:
    """A route configuration (the message), where it came from in words, and requests to try."""

    config: Any
    requests: Sequence[Call]
    source: str = ""
    tables: Sequence[RouteTable] = ()
    """What this library decides each request on; empty: on the same configuration."""


@dataclass(slots=True)
class Answer:
    """What became of a request; equal answers are equal decisions."""

    status: int
    route: str = ""
    cluster: str = ""
    location: str = ""
    body: str = ""
    path: str = ""
    authority: str = ""
    timeout_ms: int = 0
    request: dict[str, str] = field(default_factory=dict)
    response: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Difference:
    """Two answers to one request; `ours` is the closest one, of those that this library may give."""

    case: Case
    call: Call
    envoy: Answer
    ours: Answer

    def __str__(self) -> str:
        fields = [
            f"  {name}: Envoy {theirs!r}\n  {' ' * len(name)}  ours  {ours!r}"
            for name in Answer.__slots__
            if (theirs := getattr(self.envoy, name)) != (ours := getattr(self.ours, name))
        ]
        said = self.case.source or str(self.case.config)
        return "\n".join((f"{said}\n{self.call}", *fields))


def joined(headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Headers by lower-case name, several values as one, without the proxy's own."""
    made: dict[str, str] = {}
    for name, value in headers:
        key = name.lower()
        if key not in OWN_HEADERS:
            known = made.get(key)
            if known is None or (key in ONE_PLACE and not known):
                made[key] = value
            elif value or key not in ONE_PLACE:
                made[key] = f"{known},{value}"
    return made


def our_answers(table: RouteTable, call: Call) -> list[Answer]:
    """What this library's core decides: one answer, or one for every cluster that has a weight."""
    headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in call.headers]
    head = RequestHead(call.method, "http", call.authority, call.path, headers)
    route = table.match(head, Loaded(0.5))
    if route is None:
        return [Answer(0 if call.is_grpc else 404)]
    action = route.action
    if isinstance(action, Forward):
        clusters = [cluster for cluster in action.clusters if cluster.weight or len(action.clusters) == 1]
        return [_forwarded(head, route, action, cluster) for cluster in clusters]
    if call.is_grpc:
        return [Answer(0, route.name)]
    reply = own_reply(route, action, head)
    edited = _texts(reply.headers)
    where = edited.pop("location", "")
    return [Answer(reply.status, route.name, location=where, body=reply.body.decode(), response=edited)]


def _forwarded(head: RequestHead, route: Route, action: Forward, cluster: WeightedCluster) -> Answer:
    sent = outgoing(head, route, action, cluster)
    if not sent.path.startswith("/"):
        return Answer(400, route.name, cluster.name)
    limits = timeouts(action, head)
    upstream = [(name.encode(), value.encode()) for name, value in UPSTREAM_HEADERS]
    return Answer(
        200,
        route.name,
        cluster.name,
        path=sent.path,
        authority=sent.authority,
        timeout_ms=int(1000 * (limits.per_try or limits.whole) + 1e-6),
        request=_texts(sent.headers),
        response=_texts(incoming(upstream, 200, sent, route, cluster)),
    )


def _texts(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    return joined((name.decode("latin-1"), value.decode("latin-1")) for name, value in headers)


def envoy_answer(call: Call, got: Received) -> Answer:
    """What Envoy did, read from its response."""
    own = dict(got.headers)
    answer = Answer(got.status, own.get("x-oracle-route", ""), own.get("x-oracle-cluster", ""))
    answer.response = joined((n, v) for n, v in got.headers if not n.startswith("x-oracle-"))
    if call.is_grpc and not answer.cluster:
        return Answer(0, answer.route)
    if not answer.cluster:
        answer.location = answer.response.pop("location", "")
        answer.body = got.body
        if got.status == 404 and not answer.route:
            answer.response = {}
        return answer
    if got.status == 400:
        return Answer(400, answer.route, answer.cluster)
    body = unquote(answer.response.pop("grpc-message", ""), "latin-1") if call.is_grpc else got.body
    if call.is_grpc and answer.response.pop("grpc-status", ""):
        answer.response["content-type"] = "text/plain"
    echoed = [(name, value) for name, _, value in (line.partition("\t") for line in body.split("\n"))]
    pseudo = dict(echoed)
    answer.path, answer.authority = pseudo.get(":path", ""), pseudo.get(":authority", "")
    answer.timeout_ms = int(pseudo.get("x-envoy-expected-rq-timeout-ms", "0"))
    answer.request = joined((name, value) for name, value in echoed if not name.startswith(":"))
    return answer


async def compare(cases: Sequence[Case], *, scopes: int = 500) -> tuple[int, list[Difference]]:
    """How many requests were compared, and every difference; `scopes` configurations per Envoy."""
    compared, differences = 0, []
    for start in range(0, len(cases), scopes):
        batch = cases[start : start + scopes]
        with tempfile.TemporaryDirectory(prefix="oracle-") as folder:
            answers = await _ask_envoy(batch, Path(folder))
        for case, received in zip(batch, answers, strict=True):
            tables = case.tables or [decode_routes(case.config)] * len(case.requests)
            for call, got, table in zip(case.requests, received, tables, strict=True):
                compared += 1
                theirs, ours = envoy_answer(call, got), our_answers(table, call)
                if theirs not in ours:
                    same = [answer for answer in ours if answer.cluster == theirs.cluster]
                    differences.append(Difference(case, call, theirs, (same or ours)[0]))
    return compared, differences


async def _ask_envoy(cases: Sequence[Case], folder: Path) -> list[list[Received]]:
    scopes = [_scope(number, case) for number, case in enumerate(cases)]
    response = pb.DiscoveryResponse(version_info="1", type_url=pb.type_url(pb.ScopedRouteConfiguration))
    response.resources.extend(pb.pack(scope) for scope in scopes)
    (folder / "scopes.pb").write_bytes(response.SerializeToString())
    clusters = sorted({name for case in cases for name in cluster_names(case.config)})
    async with run_envoy(_bootstrap(folder / "scopes.pb", clusters, folder), folder) as envoy:
        loaded = await envoy.get("/stats?filter=scoped_rds.oracle.*update")
        if b"update_rejected: 0" not in loaded:
            raise RuntimeError(f"Envoy refused a configuration: {(folder / 'envoy.log').read_text()[-4000:]}")
        calls = [(number, call) for number, case in enumerate(cases) for call in case.requests]
        received = await ask_all(envoy.listeners["main"], calls)
    answers: list[list[Received]] = [[] for _ in cases]
    for (number, _), got in zip(calls, received, strict=True):
        answers[number].append(got)
    return answers


def _scope(number: int, case: Case) -> Any:
    scope = pb.ScopedRouteConfiguration(name=f"case-{number}")
    scope.key.fragments.add(string_key=str(number))
    scope.route_configuration.CopyFrom(case.config)
    scope.route_configuration.name = f"case-{number}"
    scope.route_configuration.validate_clusters.value = False
    return scope


def cluster_names(config: Any) -> set[str]:
    """Every cluster that a route configuration sends to."""
    return {
        name
        for host in config.virtual_hosts
        for route in host.routes
        if route.HasField("route")
        for name in (route.route.cluster, *(each.name for each in route.route.weighted_clusters.clusters))
        if name
    }


_HCM = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
_FILTERS = "type.googleapis.com/envoy.extensions.filters.http"
_ROUTER = {"name": "envoy.filters.http.router", "typed_config": {"@type": f"{_FILTERS}.router.v3.Router"}}
_INTERNAL = {"cidr_ranges": [{"address_prefix": "127.0.0.0", "prefix_len": 8}]}


def _bootstrap(scopes: Path, clusters: Sequence[str], folder: Path) -> dict[str, Any]:
    echo = str(folder / "echo.sock")
    endpoint = {"endpoint": {"address": {"pipe": {"path": echo}}}}
    return {
        "node": {"id": "oracle", "cluster": "oracle"},
        "static_resources": {
            "listeners": [
                _listener(
                    "main", {"socket_address": {"address": "127.0.0.1", "port_value": 0}}, _main(scopes)
                ),
                _listener("echo", {"pipe": {"path": echo}}, _echo()),
            ],
            "clusters": [
                {
                    "name": name,
                    "type": "STATIC",
                    "connect_timeout": "5s",
                    "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
                }
                for name in clusters
            ],
        },
    }


def _listener(name: str, address: dict[str, Any], manager: dict[str, Any]) -> dict[str, Any]:
    filters = [{"name": "http", "typed_config": {"@type": _HCM, "stat_prefix": name, **manager}}]
    return {"name": name, "address": address, "filter_chains": [{"filters": filters}]}


def _main(scopes: Path) -> dict[str, Any]:
    source = {"path_config_source": {"path": str(scopes)}, "resource_api_version": "V3"}
    shown = [("x-oracle-route", "%ROUTE_NAME%"), ("x-oracle-cluster", "%UPSTREAM_CLUSTER%")]
    mutation = {
        "@type": f"{_FILTERS}.header_mutation.v3.HeaderMutation",
        "mutations": {
            "response_mutations": [{"append": {"header": {"key": k, "value": v}}} for k, v in shown]
        },
    }
    return {
        "use_remote_address": True,
        "skip_xff_append": True,
        "internal_address_config": _INTERNAL,
        "normalize_path": False,
        "merge_slashes": False,
        "path_with_escaped_slashes_action": "KEEP_UNCHANGED",
        "generate_request_id": False,
        "scoped_routes": {
            "name": "oracle",
            "scope_key_builder": {"fragments": [{"header_value_extractor": {"name": "x-case", "index": 0}}]},
            "rds_config_source": source,
            "scoped_rds": {"scoped_rds_config_source": source},
        },
        "http_filters": [{"name": "show", "typed_config": mutation}, _ROUTER],
    }


def _echo() -> dict[str, Any]:
    lua = {"@type": f"{_FILTERS}.lua.v3.Lua", "default_source_code": {"inline_string": ECHO}}
    return {
        "use_remote_address": True,
        "skip_xff_append": True,
        "internal_address_config": {"unix_sockets": True, **_INTERNAL},
        "normalize_path": False,
        "generate_request_id": False,
        "route_config": {"virtual_hosts": [{"name": "echo", "domains": ["*"]}]},
        "http_filters": [{"name": "echo", "typed_config": lua}, _ROUTER],
    }


def run(cases: Sequence[Case], *, scopes: int = 500) -> tuple[int, list[Difference]]:
    """`compare` from code that is not asynchronous."""
    return asyncio.run(compare(cases, scopes=scopes))
