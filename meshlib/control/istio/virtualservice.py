"""VirtualService: how requests to a host are routed. Rules are tried in order, the first match wins."""

from collections.abc import Mapping
from enum import StrEnum

from pydantic import Field

from meshlib.control.istio.fields import (
    Bool,
    Int32,
    Labels,
    Percent,
    PortSelector,
    Seconds,
    Spec,
    StringMatch,
    Text,
    UInt32,
)


class Destination(Spec):
    """Where requests go: a host of the registry, a subset of its endpoints, one of its ports."""

    host: Text = ""
    subset: Text = ""
    port: PortSelector | None = None


class HeaderOperations(Spec):
    """What is done to one set of headers."""

    set: Labels = Field(default_factory=dict)
    add: Labels = Field(default_factory=dict)
    remove: tuple[Text, ...] = ()


class Headers(Spec):
    """Edits of request and response headers."""

    request: HeaderOperations | None = None
    response: HeaderOperations | None = None


class HTTPRouteDestination(Spec):
    """A destination with its share of the requests."""

    destination: Destination | None = None
    weight: Int32 = 0
    headers: Headers | None = None


class RouteDestination(Spec):
    """A destination with its share of the connections."""

    destination: Destination | None = None
    weight: Int32 = 0


class HTTPMatchRequest(Spec):
    """Conditions on a request; all that are given must hold."""

    name: Text = ""
    uri: StringMatch | None = None
    scheme: StringMatch | None = None
    method: StringMatch | None = None
    authority: StringMatch | None = None
    headers: Mapping[Text, StringMatch] = Field(default_factory=dict)
    port: UInt32 = 0
    source_labels: Labels = Field(default_factory=dict)
    gateways: tuple[Text, ...] = ()
    query_params: Mapping[Text, StringMatch] = Field(default_factory=dict)
    ignore_uri_case: Bool = False
    without_headers: Mapping[Text, StringMatch] = Field(default_factory=dict)
    source_namespace: Text = ""
    stat_prefix: Text = ""


class RedirectPortSelection(StrEnum):
    """How the port of a redirect is derived."""

    FROM_PROTOCOL_DEFAULT = "FROM_PROTOCOL_DEFAULT"
    FROM_REQUEST_PORT = "FROM_REQUEST_PORT"


class HTTPRedirect(Spec):
    """The answer is a redirect."""

    one_of = (("port", "derive_port"), ("uri", "prefix_rewrite"))

    uri: Text = ""
    prefix_rewrite: Text = ""
    authority: Text = ""
    port: UInt32 | None = None
    derive_port: RedirectPortSelection | None = None
    scheme: Text = ""
    redirect_code: UInt32 = 0
    """0 is 301."""


class HTTPBody(Spec):
    """The body of a direct response: text, or bytes in base64."""

    one_of = (("string", "bytes"),)

    string: Text | None = None
    bytes: Text | None = None


class HTTPDirectResponse(Spec):
    """The answer is made on the spot."""

    status: UInt32 = 0
    body: HTTPBody | None = None


class Delegate(Spec):
    """Another VirtualService whose rules stand here."""

    name: Text = ""
    namespace: Text = ""


class RegexRewrite(Spec):
    """A rewrite of the path by an RE2 pattern."""

    match: Text = ""
    rewrite: Text = ""


class HTTPRewrite(Spec):
    """What the request's path and host become."""

    uri: Text = ""
    authority: Text = ""
    uri_regex_rewrite: RegexRewrite | None = None


class HTTPRetry(Spec):
    """How often and when a request is tried again."""

    attempts: Int32 = 0
    per_try_timeout: Seconds | None = None
    retry_on: Text = ""
    retry_remote_localities: Bool | None = None
    retry_ignore_previous_hosts: Bool | None = None
    backoff: Seconds | None = None


class Delay(Spec):
    """A delay before a request is forwarded."""

    one_of = (("fixed_delay", "exponential_delay"),)

    percent: Int32 = 0
    fixed_delay: Seconds | None = None
    exponential_delay: Seconds | None = None
    percentage: Percent | None = None


class Abort(Spec):
    """An answer in place of forwarding."""

    one_of = (("http_status", "grpc_status", "http2_error"),)

    http_status: Int32 | None = None
    grpc_status: Text | None = None
    http2_error: Text | None = None
    percentage: Percent | None = None


class HTTPFaultInjection(Spec):
    """Faults on purpose; each is drawn by itself."""

    delay: Delay | None = None
    abort: Abort | None = None


class HTTPMirrorPolicy(Spec):
    """One more destination that gets a copy of some requests."""

    destination: Destination | None = None
    percentage: Percent | None = None


class UnmatchedPreflights(StrEnum):
    """What becomes of a preflight request whose origin is not allowed."""

    UNSPECIFIED = "UNSPECIFIED"
    FORWARD = "FORWARD"
    IGNORE = "IGNORE"


class CorsPolicy(Spec):
    """Cross-origin resource sharing."""

    allow_origin: tuple[Text, ...] = ()
    allow_origins: tuple[StringMatch, ...] = ()
    allow_methods: tuple[Text, ...] = ()
    allow_headers: tuple[Text, ...] = ()
    expose_headers: tuple[Text, ...] = ()
    max_age: Seconds | None = None
    allow_credentials: Bool | None = None
    unmatched_preflights: UnmatchedPreflights = UnmatchedPreflights.UNSPECIFIED


class HTTPRoute(Spec):
    """One rule: when it matches, what is done."""

    name: Text = ""
    match: tuple[HTTPMatchRequest, ...] = ()
    route: tuple[HTTPRouteDestination, ...] = ()
    redirect: HTTPRedirect | None = None
    direct_response: HTTPDirectResponse | None = None
    delegate: Delegate | None = None
    rewrite: HTTPRewrite | None = None
    timeout: Seconds | None = None
    retries: HTTPRetry | None = None
    fault: HTTPFaultInjection | None = None
    mirror: Destination | None = None
    mirrors: tuple[HTTPMirrorPolicy, ...] = ()
    mirror_percent: UInt32 | None = None
    mirror_percentage: Percent | None = None
    cors_policy: CorsPolicy | None = None
    headers: Headers | None = None


class TLSMatchAttributes(Spec):
    """Conditions on a TLS connection; all that are given must hold."""

    sni_hosts: tuple[Text, ...] = ()
    destination_subnets: tuple[Text, ...] = ()
    port: UInt32 = 0
    source_labels: Labels = Field(default_factory=dict)
    gateways: tuple[Text, ...] = ()
    source_namespace: Text = ""


class L4MatchAttributes(Spec):
    """Conditions on a connection; all that are given must hold."""

    destination_subnets: tuple[Text, ...] = ()
    port: UInt32 = 0
    source_subnet: Text = ""
    source_labels: Labels = Field(default_factory=dict)
    gateways: tuple[Text, ...] = ()
    source_namespace: Text = ""


class TLSRoute(Spec):
    """A rule for TLS that is not terminated."""

    match: tuple[TLSMatchAttributes, ...] = ()
    route: tuple[RouteDestination, ...] = ()


class TCPRoute(Spec):
    """A rule for opaque connections."""

    match: tuple[L4MatchAttributes, ...] = ()
    route: tuple[RouteDestination, ...] = ()


class VirtualService(Spec):
    """The spec of a VirtualService. Without hosts it is a delegate."""

    hosts: tuple[Text, ...] = ()
    gateways: tuple[Text, ...] = ()
    """Empty is `mesh`: every client of the mesh."""
    http: tuple[HTTPRoute, ...] = ()
    tls: tuple[TLSRoute, ...] = ()
    tcp: tuple[TCPRoute, ...] = ()
    export_to: tuple[Text, ...] = ()
