"""VirtualService and its http rules, as Istio's webhook checks them; DestinationRule is in `traffic`."""

from http import HTTPStatus

from meshlib.control.istio.claims import FORM, claim_path, names_claims
from meshlib.control.istio.duration import spell
from meshlib.control.istio.validity import headers, hosts
from meshlib.control.istio.validity.fault import fault
from meshlib.control.istio.validity.report import Report
from meshlib.control.istio.validity.traffic import destination_rule
from meshlib.control.istio.virtualservice import (
    CorsPolicy,
    Destination,
    HTTPMatchRequest,
    HTTPRetry,
    HTTPRoute,
    HTTPRouteDestination,
    L4MatchAttributes,
    RouteDestination,
    TCPRoute,
    TLSMatchAttributes,
    TLSRoute,
    VirtualService,
)

__all__ = ["destination_rule", "retries", "virtual_service"]

RETRY_ON = (
    "5xx",
    "gateway-error",
    "reset",
    "reset-before-request",
    "connect-failure",
    "retriable-4xx",
    "refused-stream",
    "retriable-status-codes",
    "retriable-headers",
    "envoy-ratelimited",
    "http3-post-connect-failure",
    "cancelled",
    "deadline-exceeded",
    "internal",
    "resource-exhausted",
    "unavailable",
)
_STATUSES = frozenset(str(status.value) for status in HTTPStatus)
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "CONNECT", "OPTIONS", "TRACE", "*")
"""What a policy for cross-origin requests may allow."""
MAX_ATTEMPTS = 1_000
DELEGATES_FURTHER = "a delegate of a delegate"
"""Found is then the delegate, as `name` or `namespace/name`."""
_CODES = (301, 302, 303, 307, 308)


def virtual_service(spec: VirtualService, to: Report) -> None:
    """The whole spec."""
    mesh = not spec.gateways or "mesh" in spec.gateways
    edge = any(name != "mesh" for name in spec.gateways)
    if not (spec.http or spec.tls or spec.tcp):
        to.error("no rules", "", "http, tls or tcp with at least one rule")
    if not spec.hosts:
        _delegate(spec, to)
    _hosts(spec.hosts, mesh, to.at("hosts"))
    for index, name in enumerate(spec.gateways):
        _gateway(name, to.at("gateways", index))
    for index, rule in enumerate(spec.http):
        _http(rule, to.at("http", index), edge, delegate=not spec.hosts)
    for index, tls in enumerate(spec.tls):
        _tls(tls, spec.hosts, to.at("tls", index))
    for index, tcp in enumerate(spec.tcp):
        _tcp(tcp, to.at("tcp", index))
    hosts.export_to(spec.export_to, to.at("export_to"))


def _delegate(spec: VirtualService, to: Report) -> None:
    for name in ("gateways", "tls", "tcp"):
        if getattr(spec, name):
            to.at(name).error("not in a delegate", "", "a VirtualService without hosts has http rules only")


def _hosts(given: tuple[str, ...], mesh: bool, to: Report) -> None:
    for index, name in enumerate(given):
        at = to.at(index)
        if name == "*" and mesh:
            at.error("* is for gateways only", "'*'", "hosts of the mesh; or gateways without mesh")
        hosts.host(name, at, wildcard=True, ip=True)
        for other in given[:index]:
            if hosts.overlap(name, other):
                at.error(
                    "overlaps another host of this document", repr(name), f"nothing that {other} matches"
                )


def _gateway(name: str, to: Report) -> None:
    space, slash, plain = name.rpartition("/")
    if (slash and not (hosts.namespace(space) and hosts.is_label(plain))) or not hosts.is_host(plain):
        to.error("not a gateway", repr(name), "mesh, name or namespace/name")
    elif not slash and "." in name:
        to.old(
            "a gateway as name.namespace… is the old spelling; here and in today's Istio it is namespace/name"
        )


def _http(rule: HTTPRoute, to: Report, edge: bool, delegate: bool) -> None:
    _action(rule, to, delegate)
    for index, match in enumerate(rule.match):
        _match(match, to.at("match", index), edge)
    _weights(rule.route, to.at("route"))
    for index, target in enumerate(rule.route):
        headers.edits(target.headers, to.at("route", index, "headers"))
    headers.edits(rule.headers, to.at("headers"))
    headers.authority(rule, to)
    hosts.duration(rule.timeout, to.at("timeout"))
    if rule.retries:
        retries(rule.retries, to.at("retries"))
    if rule.fault:
        fault(rule.fault, to.at("fault"))
    if rule.cors_policy:
        _cors(rule.cors_policy, to.at("cors_policy"))
    _mirrors(rule, to)
    _answers(rule, to)
    _rewrite(rule, to)


def _action(rule: HTTPRoute, to: Report, delegate: bool) -> None:
    given = [n for n in ("route", "redirect", "direct_response", "delegate") if getattr(rule, n)]
    if not given:
        to.error("nothing is done", "", "one of route, redirect, directResponse, delegate")
    if len(given) > 1:
        to.at(given[1]).error(
            f"stands with {given[0]}", "", "one of route, redirect, directResponse, delegate"
        )
    if rule.delegate:
        if delegate:
            name = "/".join(part for part in (rule.delegate.namespace, rule.delegate.name) if part)
            to.at("delegate").error(DELEGATES_FURTHER, repr(name), "one level only")
        if not rule.delegate.name:
            to.at("delegate").error("no name", "", "the name of a VirtualService without hosts")
    for name in ("fault", "rewrite"):
        if rule.redirect and getattr(rule, name):
            to.at(name).error("not with redirect", "", "a rule that routes")
        if rule.direct_response and getattr(rule, name):
            to.at(name).error("not with directResponse", "", "a rule that routes")


def _match(match: HTTPMatchRequest, to: Report, edge: bool) -> None:
    for name in ("uri", "scheme", "method", "authority"):
        hosts.text_match(getattr(match, name), to.at(name), empty=False, prefix=name == "uri")
    for name in ("headers", "without_headers"):
        given = getattr(match, name)
        hosts.matches(given, to.at(name), star=name == "without_headers")
        for header in given:
            if claim_path(header) is not None:
                if not edge:
                    to.at(name, header).error(
                        "claims are for gateways only", repr(header), "a request header, or a gateway"
                    )
            elif names_claims(header):
                to.at(name, header).error("not a claim", repr(header), FORM)
            elif header:
                hosts.header_name(header, to.at(name, header))
    hosts.matches(match.query_params, to.at("query_params"))
    _origin(match, to)


def _origin(match: HTTPMatchRequest | TLSMatchAttributes | L4MatchAttributes, to: Report) -> None:
    hosts.labels(match.source_labels, to.at("source_labels"))
    if match.port:
        hosts.port(match.port, to.at("port"))
    for index, gateway in enumerate(match.gateways):
        _gateway(gateway, to.at("gateways", index))
    if match.source_namespace and not hosts.namespace(match.source_namespace):
        to.at("source_namespace").error("not a namespace", repr(match.source_namespace), "a namespace")


def _weights(route: tuple[HTTPRouteDestination | RouteDestination, ...], to: Report) -> None:
    for index, target in enumerate(route):
        if target.weight < 0:
            to.at(index, "weight").error("a negative weight", target.weight, "0 or more")
        destination(target.destination, to.at(index, "destination"))
    if len(route) > 1 and sum(max(target.weight, 0) for target in route) == 0:
        to.error("all weights are 0", "0", "a weight above 0 on at least one destination")
    if sum(max(target.weight, 0) for target in route) > 2**32 - 1:
        to.error("the weights are too big together", "", f"a sum of at most {2**32 - 1}")


def destination(given: Destination | None, to: Report) -> None:
    """Where something is sent."""
    if given is None:
        to.error("no destination", "", "a destination with a host")
        return
    hosts.host(given.host, to.at("host"))
    if given.port:
        hosts.port(given.port.number, to.at("port", "number"))
    if given.subset and not hosts.is_label(given.subset):
        to.at("subset").error("not the name of a subset", repr(given.subset), hosts.LABEL)


def retries(given: HTTPRetry, to: Report) -> None:
    """How often and when something is tried again."""
    if given.attempts < 0:
        to.at("attempts").error("a negative number", given.attempts, "0 or more")
    if given.attempts > MAX_ATTEMPTS:
        to.at("attempts").error("too many", given.attempts, f"at most {MAX_ATTEMPTS}")
    if given.attempts == 0:
        for name in ("per_try_timeout", "retry_on", "retry_remote_localities"):
            if getattr(given, name) not in (None, ""):
                to.at(name).error("there are no attempts", "attempts: 0", "attempts of at least 1")
    hosts.duration(given.per_try_timeout, to.at("per_try_timeout"))
    hosts.duration(given.backoff, to.at("backoff"))
    for part in given.retry_on.split(",") if given.retry_on else ():
        if part not in RETRY_ON and part not in _STATUSES:
            allowed = "a list with , and no spaces of a status code or " + ", ".join(RETRY_ON)
            to.at("retry_on").error("unknown condition", repr(part), allowed)


def _mirrors(rule: HTTPRoute, to: Report) -> None:
    if rule.mirror and rule.mirrors:
        to.at("mirrors").error("stands with mirror", "", "mirror or mirrors")
    if rule.mirror:
        destination(rule.mirror, to.at("mirror"))
    if rule.mirror_percent is not None:
        hosts.percent(rule.mirror_percent, to.at("mirror_percent"))
        to.at("mirror_percent").old(
            "deprecated; a percentage here and in today's Istio, where mirrorPercentage goes before it"
        )
    if rule.mirror_percentage:
        hosts.percent(rule.mirror_percentage.value, to.at("mirror_percentage", "value"))
    for index, mirror in enumerate(rule.mirrors):
        destination(mirror.destination, to.at("mirrors", index, "destination"))
        if mirror.percentage:
            hosts.percent(mirror.percentage.value, to.at("mirrors", index, "percentage", "value"))


def _answers(rule: HTTPRoute, to: Report) -> None:
    if redirect := rule.redirect:
        at = to.at("redirect")
        if not any((redirect.uri, redirect.prefix_rewrite, redirect.authority, redirect.scheme)) and (
            redirect.port is None and redirect.derive_port is None
        ):
            at.error(
                "nothing to redirect to", "", "uri, prefixRewrite, authority, scheme, port or derivePort"
            )
        matched = [match.uri for match in rule.match if match.uri]
        if redirect.prefix_rewrite and any(uri.exact is not None or uri.regex is not None for uri in matched):
            message = "matches no prefix; the whole path that is matched is replaced"
            at.at("prefix_rewrite").warn(message, repr(redirect.prefix_rewrite), "uri.prefix")
        for name in ("uri", "prefix_rewrite", "authority"):
            hosts.one_line(getattr(redirect, name), at.at(name))
        if redirect.redirect_code and not 300 <= redirect.redirect_code <= 399:
            at.at("redirect_code").error("no redirect", redirect.redirect_code, ", ".join(map(str, _CODES)))
        elif redirect.redirect_code and redirect.redirect_code not in _CODES:
            at.at("redirect_code").warn("no redirect is sent for it", redirect.redirect_code, str(_CODES))
        if redirect.scheme and redirect.scheme not in ("http", "https"):
            at.at("scheme").error("not a scheme", repr(redirect.scheme), "http, https")
        if redirect.port is not None:
            hosts.port(redirect.port, at.at("port"))
    if direct := rule.direct_response:
        at = to.at("direct_response")
        if not 200 <= direct.status <= 599:
            at.at("status").error("not a status", direct.status, "200 to 599")
        size = (
            len((direct.body.string or direct.body.bytes or "").encode("utf-8", "replace"))
            if direct.body
            else 0
        )
        if size > 1024 * 1024:
            at.at("body").error("too big a body", f"{size} bytes", "at most 1 MiB")
        elif size > 100 * 1024:
            at.at("body").warn("a big body is sent to every client", f"{size} bytes", "up to 100 KiB")


def _rewrite(rule: HTTPRoute, to: Report) -> None:
    if not (rewrite := rule.rewrite):
        return
    at = to.at("rewrite")
    if not (rewrite.uri or rewrite.authority or rewrite.uri_regex_rewrite):
        at.error("nothing to rewrite", "", "uri, authority or uriRegexRewrite")
    if rewrite.uri and rewrite.uri_regex_rewrite:
        at.at("uri_regex_rewrite").error("stands with uri", "", "uri or uriRegexRewrite")
    if regex := rewrite.uri_regex_rewrite:
        if not regex.match or not regex.rewrite:
            at.at("uri_regex_rewrite").error("not whole", "", "match and rewrite")
        hosts.regex(regex.match, at.at("uri_regex_rewrite", "match"))
        hosts.substitution(regex.match, regex.rewrite, at.at("uri_regex_rewrite", "rewrite"))
    hosts.one_line(rewrite.uri, at.at("uri"))
    hosts.one_line(rewrite.authority, at.at("authority"))
    if rewrite.uri and any(match.uri and match.uri.regex for match in rule.match):
        at.at("uri").warn(
            "a prefix is rewritten, but the match is a regex", repr(rewrite.uri), "uriRegexRewrite"
        )


def _cors(cors: CorsPolicy, to: Report) -> None:
    if cors.allow_origin:
        to.at("allow_origin").old(
            "deprecated; exact origins here and in today's Istio. allowOrigins replaces it"
        )
    for index, origin in enumerate(cors.allow_origins):
        hosts.text_match(origin, to.at("allow_origins", index), empty=False)
    for index, method in enumerate(cors.allow_methods):
        if method not in METHODS:
            to.at("allow_methods", index).error("not a method", repr(method), ", ".join(METHODS))
    for name in ("allow_headers", "expose_headers"):
        for index, header in enumerate(getattr(cors, name)):
            if header != "*":
                hosts.header_name(header, to.at(name, index))
    hosts.duration(cors.max_age, to.at("max_age"))
    if cors.max_age is not None and cors.max_age >= 0.001 and cors.max_age != int(cors.max_age):
        to.at("max_age").error("a duration finer than a second", spell(cors.max_age), "whole seconds")


def _tls(rule: TLSRoute, names: tuple[str, ...], to: Report) -> None:
    if not rule.match:
        to.error("no match", "", "match with sniHosts")
    for index, match in enumerate(rule.match):
        at = to.at("match", index)
        if not match.sni_hosts:
            at.error("no sniHosts", "", "at least one")
        for position, sni in enumerate(match.sni_hosts):
            if hosts.is_ip(sni):
                at.at("sni_hosts", position).warn("most clients send no IP address", repr(sni), "a DNS name")
            elif not hosts.is_host(sni, wildcard=True):
                at.at("sni_hosts", position).error("not a host", repr(sni), hosts.WILDCARD)
            elif not any(hosts.covers(name, sni) for name in names):
                at.at("sni_hosts", position).error("not among the hosts", repr(sni), ", ".join(names))
        hosts.subnets(match.destination_subnets, at.at("destination_subnets"))
        _origin(match, at)
    _connections(rule.route, to)


def _tcp(rule: TCPRoute, to: Report) -> None:
    for index, match in enumerate(rule.match):
        hosts.subnets(match.destination_subnets, to.at("match", index, "destination_subnets"))
        _origin(match, to.at("match", index))
    _connections(rule.route, to)


def _connections(route: tuple[RouteDestination, ...], to: Report) -> None:
    if not route:
        to.error("nothing is done", "", "route with a destination")
    _weights(route, to.at("route"))
