"""The cases of interoperability, each with rules of its own: the rows of docs/reference/grpc-interop.md."""

from support.interop_calls import (
    affinity,
    at_once,
    broken,
    by_metadata,
    by_path,
    changed_endpoints,
    delayed,
    ejected,
    gone,
    late,
    locality,
    mirrored,
    over,
    own_deadline,
    per_try,
    ping,
    ping_of,
    seen,
    shares,
    some,
    tries,
    turns,
    unknown,
)
from support.interop_play import ROUND_ROBIN, Case

EJECTION = "outlierDetection: {consecutive5xxErrors: 3, interval: 1s, maxEjectionPercent: 100}"


def retries(attempts: str, on: str = "unavailable") -> str:
    """Of a VirtualService."""
    return f"[{{retries: {{attempts: {attempts}, retryOn: {on}}}, route: [{{destination: <all>}}]}}]"


def fault(kind: str, how: str, percent: int = 100) -> str:
    """Of a VirtualService."""
    said = f"{{{kind}: {{{how}, percentage: {{value: {percent}}}}}}}"
    return f"[{{fault: {said}, route: [{{destination: <all>}}]}}]"


CASES = [
    Case("ping", ping),
    Case("an unknown host", unknown),
    Case("ROUND_ROBIN", turns, endpoints="a; b"),
    Case(
        "weights of destinations, 75 and 25",
        shares,
        "[{route: [{destination: <a>, weight: 75}, {destination: <b>, weight: 25}]}]",
        endpoints="a; b",
    ),
    Case("weights of endpoints, 3 and 1", shares, endpoints="a weight: 3; b weight: 1"),
    Case(
        "match: uri",
        by_path,
        """
  - {match: [{uri: {exact: /test.Service/who}}], route: [{destination: <b>}]}
  - route: [{destination: <a>}]""",
        endpoints="a; b",
    ),
    Case(
        "match: headers, by exact, prefix, regex",
        by_metadata,
        """
  - match:
    - headers: {x-case: {exact: one}}
    - headers: {x-case: {prefix: p-}}
    - headers: {x-case: {regex: "[0-9]+"}}
    route: [{destination: <b>}]
  - route: [{destination: <a>}]""",
        endpoints="a; b",
    ),
    Case("endpoints change", changed_endpoints),
    Case("the service is taken away", gone),
    Case(
        "two regions",
        locality,
        policy=EJECTION,
        endpoints="a locality: r1; b locality: r2",
    ),
    Case(
        "two regions, nobody listens in the own",
        over,
        policy=EJECTION,
        endpoints="near locality: r1; b locality: r2",
    ),
    Case("http2MaxRequests: 2", broken, policy="connectionPool: {http: {http2MaxRequests: 2}}"),
    Case(
        "http2MaxRequests: 2, calls begun at once",
        at_once,
        policy="connectionPool: {http: {http2MaxRequests: 2}}",
    ),
    Case("timeout: 0.3s", late, "[{timeout: 0.3s, route: [{destination: <all>}]}]"),
    Case("the call's own deadline, 0.3 s", own_deadline),
    Case(
        "perTryTimeout: 0.6s, attempts: 1",
        per_try,
        retries("1, perTryTimeout: 0.6s", "'5xx,deadline-exceeded,cancelled'"),
    ),
    Case("attempts: 2", tries, retries("2")),
    Case("attempts: 2, backoff: 1ms", tries, retries("2, backoff: 1ms")),
    Case("attempts: 6", tries, retries("6")),
    Case("no retries said", tries),
    Case("fault: a delay of 0.3s", delayed, fault("delay", "fixedDelay: 0.3s")),
    Case("fault: abort, NOT_FOUND", ping, fault("abort", "grpcStatus: NOT_FOUND")),
    Case("fault: abort, 503", ping, fault("abort", "httpStatus: 503")),
    Case("fault: abort of 50 %", some, fault("abort", "grpcStatus: ABORTED", 50)),
    Case(
        "consistentHash: a header",
        affinity,
        policy="loadBalancer: {consistentHash: {httpHeaderName: x-user}}",
        endpoints="a; b",
    ),
    Case(
        "consecutive5xxErrors: 3",
        ejected,
        "[{retries: {attempts: 0}, route: [{destination: <all>}]}]",
        policy=f"{ROUND_ROBIN}, {EJECTION}",
        endpoints="a; b",
    ),
    Case(
        "headers: a request header",
        seen("x-added"),
        "[{headers: {request: {set: {x-added: here}}}, route: [{destination: <all>}]}]",
    ),
    Case(
        "rewrite: uri",
        ping_of("nowhere"),
        """
  - match: [{uri: {exact: /test.Service/nowhere}}]
    rewrite: {uri: /test.Service/who}
    route: [{destination: <all>}]""",
    ),
    Case("mirror", mirrored, "[{mirror: <b>, route: [{destination: <a>}]}]", endpoints="a; b"),
    Case("directResponse: 403", ping, "[{directResponse: {status: 403}}]"),
]
