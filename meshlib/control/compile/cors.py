"""CorsPolicy as what Envoy's filter reads from a route, and the routes of a served port that have one.

Rules:

- Istio's sidecars and gateways answer for browsers where requests are made. A browser that speaks to a
  server in a process has none, so the server answers itself: as the rule of the VirtualService would that
  takes the request, wherever that rule sends it. Conditions on the caller's workload are met by no browser.
- It knows the VirtualServices, those for gateways too, with a rule that leads to a port of a service that
  it serves there. Of several for a host those for gateways come first, then the oldest.
- A host that none of them names is taken for the service's own.
- A rule that redirects or answers by itself has no CORS (Envoy: it forwards nothing).
"""

from collections.abc import Iterable, Iterator
from typing import Any

from meshlib.control.compile.context import Context
from meshlib.control.compile.match import is_catch_all, route_match, string_match
from meshlib.control.compile.percent import fraction
from meshlib.control.compile.provenance import mark_rule
from meshlib.control.graph.delegates import Rule
from meshlib.control.graph.graph import Graph
from meshlib.control.graph.hosts import covers, expand, spellings
from meshlib.control.graph.virtualservices import MESH, VirtualService
from meshlib.control.graph.visibility import visible
from meshlib.control.istio.fields import StringMatch
from meshlib.control.istio.virtualservice import CorsPolicy, HTTPMatchRequest, UnmatchedPreflights
from meshlib.control.registry import Service
from meshlib.xds import pb
from meshlib.xds.node import Client

CORS = "envoy.filters.http.cors"
Leading = dict[str, tuple[Service, frozenset[int]]]
"""Services by host, with the numbers of their ports that lead to the served one."""


def cors(message: Any, said: CorsPolicy | None) -> None:
    """Puts the policy on an envoy.config.route.v3.Route."""
    if said is None:
        return
    made = pb.CorsPolicy()
    for origin in said.allow_origins:
        made.allow_origin_string_match.append(string_match(origin))
    for name in said.allow_origin if not said.allow_origins else ():
        wanted = StringMatch(regex=".*") if name == "*" else StringMatch(exact=name)
        made.allow_origin_string_match.append(string_match(wanted))
    made.allow_methods = ",".join(said.allow_methods)
    made.allow_headers = ",".join(said.allow_headers)
    made.expose_headers = ",".join(said.expose_headers)
    if said.max_age is not None:
        made.max_age = str(int(said.max_age))
    if said.allow_credentials is not None:
        made.allow_credentials.value = said.allow_credentials
    forward = said.unmatched_preflights is not UnmatchedPreflights.IGNORE
    made.forward_not_matching_preflights.value = forward
    made.filter_enabled.default_value.CopyFrom(fraction(100.0))
    message.typed_per_filter_config[CORS].CopyFrom(pb.pack(made))


def served_routes(graph: Graph, client: Client, port: int) -> list[Any]:
    """The virtual hosts of a port that the client serves; none if no rule with CORS leads to it."""
    leading = _leading(graph, client, port)
    found = list(_virtuals(graph, client, leading)) if leading else []
    if not any(rule.route.cors_policy for virtual in found for rule in virtual.rules):
        return []
    found.sort(key=lambda virtual: virtual.gateways == (MESH,))
    by_domain: dict[str, VirtualService] = {}
    for virtual in found:
        for host in virtual.hosts:
            for domain in _domains(host, client, graph.domain):
                by_domain.setdefault(domain, virtual)
    rest = by_domain.pop("*", None) or _own(found, leading)
    context = Context(graph.scope(client), client, port)
    made = []
    for virtual in found:
        domains = [domain for domain, other in by_domain.items() if other is virtual]
        if domains:
            host = pb.VirtualHost(
                name=f"{virtual.document.namespace}/{virtual.document.name}", domains=domains
            )
            _fill(host, virtual, leading, port, context)
            made.append(host)
    other = pb.VirtualHost(name=f"inbound|http|{port}", domains=["*"])
    _fill(other, rest, leading, port, context)
    return [*made, other]


def _leading(graph: Graph, client: Client, port: int) -> Leading:
    labels = client.label_map
    found: Leading = {}
    for host in graph.virtual_services.cors_hosts(graph.domain):
        for service in graph.registry.services.get(host, ()):
            if service.namespace == client.namespace:
                numbers = graph.registry.leading_to(service, labels, port)
                if numbers:
                    found[host] = service, numbers
    return found


def _virtuals(graph: Graph, client: Client, leading: Leading) -> Iterator[VirtualService]:
    services = graph.virtual_services
    for virtual in services.every:
        document = virtual.document
        seen = visible(services.exported(document), document.namespace, client.namespace)
        if seen and any(_leads(rule, leading, graph.domain) for rule in virtual.rules):
            yield virtual


def _leads(rule: Rule, leading: Leading, domain: str) -> bool:
    for split in rule.route.route:
        to = split.destination
        if to is None:
            continue
        found = leading.get(expand(to.host, rule.document.namespace, domain))
        if found is not None and (to.port is None or not to.port.number or to.port.number in found[1]):
            return True
    return False


def _domains(host: str, client: Client, domain: str) -> Iterable[str]:
    if not host.endswith(f".svc.{domain}"):
        return (host,)
    return spellings(host, host.split(".")[1], client.namespace, domain)


def _own(found: list[VirtualService], leading: Leading) -> VirtualService | None:
    """The one for the host of a service itself."""
    for virtual in found:
        if any(covers(pattern, host) for pattern in virtual.hosts for host in leading):
            return virtual
    return None


def _fill(host: Any, virtual: VirtualService | None, leading: Leading, port: int, context: Context) -> None:
    numbers = frozenset[int]().union(*(numbers for _, numbers in leading.values()))
    for rule in virtual.rules if virtual is not None else ():
        blocks: tuple[HTTPMatchRequest | None, ...] = rule.route.match or (None,)
        for number, block in enumerate(blocks):
            if not _met_by_browsers(block, numbers):
                continue
            route = _route(host, rule.route.name)
            route.match.CopyFrom(route_match(block, context))
            if rule.route.route:
                cors(route, rule.route.cors_policy)
            mark_rule(route, rule, number)
            route.route.cluster = f"inbound|{port}||"
            if is_catch_all(route.match):
                return
    route = _route(host, "default")
    route.match.prefix = "/"
    route.route.cluster = f"inbound|{port}||"


def _route(host: Any, name: str) -> Any:
    return host.routes.add(name=name)


def _met_by_browsers(block: HTTPMatchRequest | None, numbers: frozenset[int]) -> bool:
    if block is None:
        return True
    if block.source_labels or block.source_namespace:
        return False
    return not block.port or bool(block.gateways) or block.port in numbers
