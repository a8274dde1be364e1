"""What gRPC's own xDS client ignores of the rules: told by document, line and field; and the page agrees."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import meshlib
import meshlib_grpc
from meshlib.core.balance.endpoints import Endpoint, EndpointSet, LocalityEndpoints
from meshlib.core.mtls import ClientTls, Transport
from meshlib.core.route.rule import Forward
from meshlib.core.route.table import RouteTable
from meshlib.core.view import View
from meshlib_grpc.xds.gaps import OF_CLUSTERS, OF_ROUTES, ignored

PAGE = Path(__file__).parents[3] / "docs/how-to/grpc.md"
SERVICE = """
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: {host}}}
spec:
  hosts: [{host}.example]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{{number: 80, name: grpc, protocol: GRPC}}]
  endpoints: [{endpoints}]
"""
RULE = """
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: {host}}}
spec:
  hosts: [{host}.example]
  http: [{{{http}}}]
"""
POLICY = """
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: {host}}}
spec: {{host: {host}.example, trafficPolicy: {{{policy}}}}}
"""
ONE = "{address: 127.0.0.1}"
TO = "route: [{destination: {host: <host>.example}}]"
IN_A_ROW = "errors in a row are not counted; ejected is, at each interval, who fails half of five calls"
ROUTES = {
    "nothing": (TO, []),
    "match-path": (f"match: [{{uri: {{prefix: /a}}, headers: {{x: {{exact: b}}}}}}], {TO}", []),
    "faulty": (f"fault: {{abort: {{httpStatus: 503, percentage: {{value: 10}}}}}}, {TO}", []),
    "queried": (
        f"match: [{{queryParams: {{a: {{exact: b}}}}}}], {TO}",
        ["match.queryParams: calls of gRPC have none; the rule is left out"],
    ),
    "elsewhere": (
        "redirect: {authority: b.example, redirectCode: 302}",
        ["redirect: calls fail with the code that 302 reads as"],
    ),
    "answered": (
        "directResponse: {status: 403}",
        ["directResponse: calls fail with the code that 403 reads as, and no more"],
    ),
    "edited": (
        f"headers: {{request: {{set: {{a: b}}}}, response: {{remove: [c]}}}}, {TO}",
        ["headers.request: is not done", "headers.response: is not done"],
    ),
    "split": (
        (
            "route: [{destination: {host: <host>.example}, weight: 1, headers: {request: {add: {a: b}}}}, "
            "{destination: {host: nothing.example}, weight: 1}]"
        ),
        ["headers.request: is not done"],
    ),
    "rewritten": (
        f"rewrite: {{uri: /b, authority: c}}, {TO}",
        ["rewrite: the path stays", "rewrite.authority: the authority stays"],
    ),
    "copied": (f"mirror: {{host: nothing.example}}, {TO}", ["mirrors: no copy is sent"]),
    "retried": (f"retries: {{attempts: 4, retryOn: 'connect-failure,unavailable'}}, {TO}", []),
    "retried-as-http": (
        f"retries: {{attempts: 2, retryOn: '5xx,reset,cancelled,503'}}, {TO}",
        ["retries.retryOn: nothing is tried again for 5xx, reset, retriable-status-codes"],
    ),
    "retried-often": (
        f"retries: {{attempts: 5, retryOn: unavailable}}, {TO}",
        ["retries.attempts: 5 tries at most, the first included; 6 are said"],
    ),
    "timed-tries": (
        f"retries: {{attempts: 1, retryOn: unavailable, perTryTimeout: 1s}}, {TO}",
        ["retries.perTryTimeout: a try has no time of its own"],
    ),
    "timed": (f"timeout: 2.5s, {TO}", ["timeout: a call ends up to 1 s later than 2.5 s"]),
}
POLICIES = {
    "in-turn": ("loadBalancer: {simple: ROUND_ROBIN}", []),
    "least": ("loadBalancer: {simple: LEAST_REQUEST}", []),
    "bounded": ("connectionPool: {http: {http2MaxRequests: 5}}", []),
    "by-header": ("loadBalancer: {consistentHash: {httpHeaderName: a}}", []),
    "plain": ("tls: {mode: DISABLE}", []),
    "at-random": ("loadBalancer: {simple: RANDOM}", ["loadBalancer.simple: RANDOM is round robin"]),
    "in-a-table": (
        "loadBalancer: {consistentHash: {httpHeaderName: a, maglev: {tableSize: 101}}}",
        ["loadBalancer.consistentHash.maglev: is a ring: keys have other endpoints than with Envoy"],
    ),
    "by-cookie": (
        "loadBalancer: {consistentHash: {httpCookie: {name: a, ttl: 0s}}}",
        ["loadBalancer.consistentHash.httpCookie: is no key: the endpoint is any"],
    ),
    "by-address": (
        "loadBalancer: {consistentHash: {useSourceIp: true}}",
        ["loadBalancer.consistentHash.useSourceIp: is no key: the endpoint is any"],
    ),
    "warm": (
        "loadBalancer: {simple: ROUND_ROBIN, warmup: {duration: 10s}}",
        ["loadBalancer.warmup: a new endpoint takes its whole share at once"],
    ),
    "ejecting": ("outlierDetection: {consecutive5xxErrors: 3}", [f"outlierDetection: {IN_A_ROW}"]),
    "pooled": (
        (
            "connectionPool: {tcp: {maxConnections: 2, connectTimeout: 3s, maxConnectionDuration: 60s, "
            "tcpKeepalive: {time: 5s}}, http: {http1MaxPendingRequests: 1, maxRetries: 2, idleTimeout: 4s, "
            "maxRequestsPerConnection: 9}}"
        ),
        [
            f"connectionPool.{field}: does not hold"
            for field in (
                "tcp.maxConnections",
                "tcp.connectTimeout",
                "tcp.maxConnectionDuration",
                "tcp.tcpKeepalive",
                "http.http1MaxPendingRequests",
                "http.maxRetries",
                "http.maxRequestsPerConnection",
                "http.idleTimeout",
            )
        ],
    ),
    "budgeted": ("retryBudget: {percent: 10}", ["retryBudget: does not hold"]),
    "simple-tls": (
        "tls: {mode: SIMPLE}",
        ["tls.mode: SIMPLE and MUTUAL are plain text: calls are not encrypted"],
    ),
    "proxied": (
        "proxyProtocol: {version: V1}",
        ["proxyProtocol: connections begin without a PROXY header"],
    ),
}
ENDPOINTS = {
    "alike": (f"{ONE}, {{address: 127.0.0.2}}", []),
    "weighted": (
        "{address: 127.0.0.1, weight: 3}, {address: 127.0.0.2, weight: 1}",
        ["weight: those of endpoints do not count"],
    ),
    "local": ("{address: 'unix:///run/s.sock'}", ["address: sockets of the file system are not reached"]),
}
ALL = {**ROUTES, **POLICIES, **ENDPOINTS}


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[meshlib.Mesh]:
    folder = tmp_path_factory.mktemp("mesh")
    for host in ALL:
        documents = [SERVICE.format(host=host, endpoints=ENDPOINTS.get(host, (ONE,))[0])]
        if host in ROUTES:
            documents.append(RULE.format(host=host, http=ROUTES[host][0].replace("<host>", host)))
        if host in POLICIES:
            documents.append(POLICY.format(host=host, policy=POLICIES[host][0]))
        (folder / f"{host}.yaml").write_text("---".join(documents))
    with meshlib.connect(str(folder)) as made:
        yield made


@pytest.mark.parametrize("host", ALL)
def test_what_is_ignored_is_told(host: str, mesh: meshlib.Mesh) -> None:
    kind, line = "ServiceEntry", r"\d+"
    if host in ROUTES:
        kind = "VirtualService"
    elif host in POLICIES:
        # How a key is made stands in routes, which no document asked for.
        kind = "ServiceEntry" if host.startswith("by-") else "DestinationRule"
    begin = rf"{kind} default/{host} {host}\.yaml:{line}: "
    told = meshlib_grpc.ignored_by_xds(f"{host}.example:80", mesh)
    assert [re.sub(begin, "", one) for one in told] == ALL[host][1]
    assert all(re.match(begin, one) for one in told)


def test_a_host_that_nobody_knows_has_no_rules(mesh: meshlib.Mesh) -> None:
    assert meshlib_grpc.ignored_by_xds("nobody.example:80", mesh) == ()
    assert ignored(View(), "nothing.example:80") == ()


@pytest.mark.parametrize("target", ["reviews", "reviews:", ":80", "reviews:0", "xds:///reviews:80", "a/b:80"])
def test_what_is_no_target(target: str, mesh: meshlib.Mesh) -> None:
    with pytest.raises(ValueError, match=r"is no target of the mesh; one is host:port"):
        meshlib_grpc.ignored_by_xds(target, mesh)
    with pytest.raises(ValueError, match=r"is no target of the mesh; one is host:port"):
        meshlib_grpc.xds_channel(target, mesh)


def secured(view: View, name: str, takes: frozenset[tuple[str, str]]) -> View:
    """The view of a mesh with certificates, in which TLS is by itself."""
    (cluster,) = (one for one in view.clusters.values() if name in one.name)
    way = Transport("tls", frozenset({("tlsMode", "istio")}), ClientTls())
    there = LocalityEndpoints("", 0, 1, (Endpoint("127.0.0.1", 80, transport=takes),))
    made = replace(cluster, transports=(way,), inline=EndpointSet((there,)))
    return replace(view, clusters={**view.clusters, cluster.name: made})


def test_mutual_tls_by_itself_is_told_where_an_endpoint_takes_it(mesh: meshlib.Mesh) -> None:
    name = "nothing.example:80"
    view = mesh.prepare(name)
    (told,) = ignored(secured(view, "nothing", frozenset({("tlsMode", "istio")})), name)
    assert told.endswith(
        ": tls.mode ISTIO_MUTUAL: calls are plain text, for there is no mutual TLS by itself: "
        "a DestinationRule has to say it"
    )
    assert ignored(secured(view, "nothing", frozenset()), name) == ()


def test_hedging_is_told(mesh: meshlib.Mesh) -> None:
    name = "nothing.example:80"
    view = mesh.prepare(name)
    table = view.tables[name]
    (host,) = (one for one in table.hosts if one is table.find_host(name))
    (route,) = host.routes
    assert isinstance(route.action, Forward)
    hedged = replace(host, routes=(replace(route, action=replace(route.action, hedged=True)),))
    (told,) = ignored(replace(view, tables={name: RouteTable("", [hedged], ignore_port=True)}), name)
    assert told.endswith(": hedge_policy: tries are not hedged")


def test_the_page_has_a_row_for_each() -> None:
    """And each row in which gRPC's own differs from our channel is looked for, but for what no rule says."""
    below = PAGE.read_text().partition("\n## Who does what\n")[2]
    lines = [line for line in below.splitlines() if line.startswith("|")][2:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    differ = {plain(row[0]) for row in rows if row[2] != row[3]}
    no_rule = {
        "a bad end after a head of its own",
        "the call's own timeout",
        "metrics, spans, the access log",
        "what travels on of the request that is served",
    }
    assert {one.row for one in (*OF_ROUTES, *OF_CLUSTERS)} == differ - no_rule
    assert no_rule <= differ


def plain(cell: str) -> str:
    """Without links and marks."""
    return re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", cell).replace("`", "")
