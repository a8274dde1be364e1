"""Random documents, compiled for a client of this library and for its Envoy, as cases for the oracle.

Of each set of documents and each request there are two questions:
* What this library is served, in Envoy: does Envoy decide on it as our core does?
* What an Envoy of the same namespace and labels is served for the port: does it decide as our core does
  on what this library is served for the host? So both say the same.

Requests come from the rules' own conditions, met or nearly met, to the rules' and the services' hosts in
all their spellings.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from support.oracle import Case
from support.oracle_documents import (
    HEADERS,
    LABELS,
    NAMESPACES,
    PORTS,
    Values,
    make_documents,
    make_match,
    to_yaml,
)
from support.oracle_http import Call
from support.oracle_routes import PATHS, QUERY, TEXTS

from meshlib.control.compile.compiler import GraphCompiler
from meshlib.control.graph import build_graph
from meshlib.control.sources.text import documents_in
from meshlib.core.route.table import RouteTable
from meshlib.dataplane.decode.routes import decode_routes
from meshlib.xds.kinds import Kind
from meshlib.xds.node import Client, Flavour

REQUESTS = 6
_SPELLED = (
    *("reviews", "ratings", "web", "reviews.default", "reviews.shop", "Ratings.third", "reviews.shop.svc"),
    *(
        "reviews.default.svc.cluster.local",
        "reviews.shop.svc.cluster.local.",
        "api.example.com",
        "x.example.com",
    ),
    *("x.a.example.com", "ratings.default.svc", "legacy", "legacy.internal", "10.0.0.7", "unknown.host"),
    *("pod.web.shop.svc.cluster.local", "gone.default.svc.cluster.local", "API.Example.com", "a.b.com"),
)


@dataclass(slots=True)
class _Grouped:
    """Requests that one configuration answers."""

    config: Any
    calls: list[Call] = field(default_factory=list)
    tables: list[RouteTable] = field(default_factory=list)


def make_cases(dice: random.Random) -> list[Case]:
    """One set of documents and a client, with REQUESTS requests, each asked once or twice."""
    documents = make_documents(dice)
    text = to_yaml(documents)
    read = documents_in(text, "documents.yaml")
    errors = [problem for problem in read.problems if problem.severity.name == "ERROR"]
    if errors:
        raise AssertionError(f"{text}\nis not valid: {errors[0]}")
    namespace, labels = dice.choice(NAMESPACES), tuple(sorted(dice.choice(LABELS).items()))
    compiler = GraphCompiler(build_graph(read.documents), "1")
    ours = Client(Flavour.MESHLIB, namespace=namespace, labels=labels)
    envoy = Client(Flavour.ENVOY, namespace=namespace, labels=labels)
    ports = {r.name: r.message() for r in compiler.resources(envoy) if r.kind is Kind.ROUTES}
    calls = [(make_request(dice, documents), dice.choice(PORTS)) for _ in range(REQUESTS)]
    own: dict[str, _Grouped] = {}
    shared: dict[str, _Grouped] = {}
    for (host, call), port in calls:
        name = f"{host}:{port}"
        routes = next(r for r in compiler.resources(ours, [name]) if r.kind is Kind.ROUTES)
        group = own.setdefault(routes.name, _Grouped(routes.message()))
        if group.config != routes.message():
            raise AssertionError(f"{text}\n{routes.name} depends on how the host is spelt: {name}")
        table = group.tables[0] if group.tables else decode_routes(group.config)
        call = _to(dice, call, host, port)
        group.calls.append(call)
        group.tables.append(table)
        if str(port) in ports:
            other = shared.setdefault(str(port), _Grouped(ports[str(port)]))
            other.calls.append(call)
            other.tables.append(table)
    who = f"{text}# client of namespace {namespace} with labels {dict(labels)}"
    made = [_case(group, f"{who}: {name} as served to this library") for name, group in own.items()]
    return made + [_case(group, f"{who}: port {port} as served to Envoy") for port, group in shared.items()]


def _case(group: _Grouped, source: str) -> Case:
    return Case(group.config, group.calls, source, group.tables)


def _to(dice: random.Random, call: Call, host: str, port: int) -> Call:
    authority = host if port == 80 and dice.random() < 0.8 else f"{host}:{port}"
    return Call(call.method, authority, call.path, call.headers)


def make_request(dice: random.Random, documents: list[Values]) -> tuple[str, Call]:
    """A host, and a request near to one of the rules for it."""
    rules = [d for d in documents if d["kind"] == "VirtualService"]
    chosen = dice.choice(rules)
    blocks = [match for rule in chosen["spec"]["http"] for match in rule.get("match", ())]
    match = dice.choice(blocks) if blocks and dice.random() < 0.9 else make_match(dice)
    host = dice.choice(_SPELLED)
    if "hosts" in chosen["spec"] and dice.random() < 0.7:
        host = dice.choice(chosen["spec"]["hosts"]).replace(
            "*", dice.choice(("x", "reviews", "ratings", "api"))
        )
    headers = list(_headers(dice, match))
    query = list(_query(dice, match))
    path = _path(dice, match) + ("?" + "&".join(query) if query else "")
    method = match.get("method", {}).get("exact") or dice.choice(("GET", "GET", "POST", "PUT", "OPTIONS"))
    return host, Call(method if dice.random() < 0.85 else "DELETE", host, path, tuple(headers))


def _headers(dice: random.Random, match: Values) -> Iterator[tuple[str, str]]:
    for name, wanted in match.get("headers", {}).items():
        if dice.random() < 0.9:
            yield name, _near(dice, wanted)
    for name, wanted in match.get("withoutHeaders", {}).items():
        if dice.random() < 0.4:
            yield name, _near(dice, wanted)
    for _ in range(dice.randint(0, 2)):
        yield dice.choice(HEADERS), dice.choice((*TEXTS, ""))
    if dice.random() < 0.08:
        yield "content-type", dice.choice(("application/grpc", "application/grpc+proto"))
        yield "grpc-timeout", dice.choice(("1S", "20S", "100m", "1H"))


def _near(dice: random.Random, wanted: Values) -> str:
    value = str(wanted.get("exact") or wanted.get("prefix") or dice.choice(TEXTS))
    change = dice.random()
    if change < 0.1:
        return value + "x"
    if change < 0.15:
        return value.swapcase()
    return value if change < 0.9 else dice.choice((*TEXTS, ""))


def _query(dice: random.Random, match: Values) -> Iterator[str]:
    for name, wanted in match.get("queryParams", {}).items():
        if dice.random() < 0.9:
            yield f"{name}={_near(dice, wanted)}".replace(" ", "%20")
    if dice.random() < 0.2:
        yield f"{dice.choice(QUERY)}={dice.choice(TEXTS)}".replace(" ", "%20")


def _path(dice: random.Random, match: Values) -> str:
    uri = match.get("uri", {})
    path = str(uri.get("exact") or uri.get("prefix") or dice.choice(PATHS))
    change = dice.random()
    if change < 0.2:
        path += dice.choice(("/", "x", "/x", "/a/b", "%2f", "/v2/x"))
    elif change < 0.3:
        path = path.swapcase()
    elif change < 0.35:
        path = dice.choice(PATHS)
    return path if path.startswith("/") else "/" + path
