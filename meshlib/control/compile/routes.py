"""The routes of one host: a VirtualHost from a VirtualService, or the default route.

Rules (Istio):

- One Route for every match block, in order; a rule without blocks, or a block that holds for every
  request, ends the list.
- What can't hold for this client is left out and told in the virtual host's metadata.
- A service without a VirtualService has one route, `default`, to itself.
- gRPC's own client knows no redirect and no direct response (Node.js refuses all routes for one): there
  the call fails with that status.
- A host that is not known is passed through or answered 502, as the mesh or the Sidecar says.
"""

from collections.abc import Iterator
from typing import Any

from meshlib.control.compile import cors, direct_response, fault, headers, redirect
from meshlib.control.compile.claims import claims
from meshlib.control.compile.context import Context
from meshlib.control.compile.destination import outside
from meshlib.control.compile.forward import forward, to_cluster
from meshlib.control.compile.match import is_catch_all, refusal, route_match
from meshlib.control.compile.provenance import mark_document, mark_rule, mark_skipped
from meshlib.control.compile.timeout import timeout
from meshlib.control.graph.delegates import Rule, Skipped
from meshlib.control.graph.virtualservices import VirtualService
from meshlib.control.istio.sidecar import OutboundTrafficMode
from meshlib.control.istio.virtualservice import HTTPMatchRequest, HTTPRoute
from meshlib.control.registry import Service
from meshlib.xds import pb
from meshlib.xds.names import ALLOW_ANY, BLOCK_ALL, cluster_name

DEFAULT = "default"
BLOCKED = 502


def virtual_host(name: str, domains: list[str]) -> Any:
    """An envoy.config.route.v3.VirtualHost without routes."""
    return pb.VirtualHost(name=name, domains=domains, include_request_attempt_count=True)


def fill(host: Any, virtual: VirtualService | None, service: Service | None, context: Context) -> None:
    """Puts the routes of a host on a VirtualHost; `service` is what the host stands for by itself."""
    skipped: list[Skipped] = []
    if virtual is not None:
        skipped.extend(virtual.skipped)
        host.routes.extend(_routes(virtual, context, skipped))
        mark_skipped(host, skipped)
    if not host.routes and service is not None:
        route = host.routes.add(name=DEFAULT, match={"prefix": "/"})
        to_cluster(route.route, cluster_name(context.port, "", service.host), context)
        mark_document(route, service.source(context.port), DEFAULT)


def routes_of(virtual: VirtualService, context: Context, skipped: list[Skipped]) -> list[Any]:
    """The Routes of a VirtualService for a Gateway; what does not hold goes to `skipped`."""
    skipped.extend(virtual.skipped)
    return list(_routes(virtual, context, skipped))


def applies(virtual: VirtualService, context: Context) -> bool:
    """Whether a VirtualService has a route for this client."""
    return next(_routes(virtual, context, []), None) is not None


def fill_unknown(host: Any, context: Context) -> None:
    """Puts on a VirtualHost what becomes of requests to hosts that are not known."""
    if context.scope.outbound is OutboundTrafficMode.REGISTRY_ONLY:
        blocked = host.routes.add(name=BLOCK_ALL, match={"prefix": "/"})
        if context.grpc:
            fault.answer(blocked, BLOCKED)
        else:
            blocked.direct_response.status = BLOCKED
        return
    route = host.routes.add(name=ALLOW_ANY, match={"prefix": "/"})
    route.route.cluster = outside(context)
    timeout(route.route, None, context)


def routes_for(name: str, context: Context) -> Any:
    """An envoy.config.route.v3.RouteConfiguration without hosts."""
    made = pb.RouteConfiguration(name=name)
    made.validate_clusters.value = False
    if not context.grpc:
        made.ignore_port_in_host_matching = True
        made.max_direct_response_body_size_bytes.value = direct_response.MAX_BODY
    return made


def _routes(virtual: VirtualService, context: Context, skipped: list[Skipped]) -> Iterator[Any]:
    ended = False
    for rule in virtual.rules:
        blocks: tuple[HTTPMatchRequest | None, ...] = rule.route.match or (None,)
        for number, block in enumerate(blocks):
            source = _source(rule, number)
            reason = refusal(context, block, virtual.gateways, virtual.document.namespace)
            if context.grpc and block is not None and block.query_params:
                reason = reason or "gRPC's requests have no query"
            if not reason and ended:
                reason = "a rule before it takes every request"
            if reason:
                skipped.append(Skipped(source, reason))
                continue
            made = _route(rule, number, block, context)
            if made is None:
                skipped.append(Skipped(source, "it says nothing to do"))
                continue
            ended = is_catch_all(made.match)
            yield made


def _source(rule: Rule, number: int) -> str:
    return rule.document.source("spec", "http", rule.number, "match", number)


def _status(said: HTTPRoute) -> int:
    """The status of a rule that is answered without asking anybody."""
    if said.direct_response is not None:
        return said.direct_response.status
    return said.redirect.redirect_code or 301 if said.redirect is not None else BLOCKED


def _route(rule: Rule, number: int, block: HTTPMatchRequest | None, context: Context) -> Any:
    said = rule.route
    name = ".".join(part for part in (said.name, block.name if block else "") if part)
    made = pb.Route(name=name, match=route_match(block, context))
    made.match.dynamic_metadata.extend(claims(block))
    local = said.redirect is not None or said.direct_response is not None
    if context.grpc and local:
        fault.answer(made, _status(said))
    elif said.redirect is not None:
        headers.edit(made, said.headers)
        redirect.redirect(made.redirect, said.redirect, context)
    elif said.direct_response is not None:
        headers.edit(made, said.headers)
        direct_response.direct_response(made.direct_response, said.direct_response)
    elif said.route:
        forward(made, rule, context)
    else:
        return None
    if block is not None and block.stat_prefix:
        made.stat_prefix = block.stat_prefix
    if not (context.grpc and local):
        fault.fault(made, said.fault)
    if not context.grpc:
        cors.cors(made, said.cors_policy)
    mark_rule(made, rule, number)
    return made
