"""Envoy's RouteConfiguration as core's RouteTable.

Rules:
* Whole or not at all: the first field that is invalid, or asks for what this library does not do,
  refuses the configuration by its path (`virtual_hosts[0].routes[2].match.safe_regex.regex: …`).
* What does not change which answer a request gets is not looked at (statistics, tracing, hash
  policies, settings of filters other than fault injection and, of requests that are served, CORS).
* Everything is bounded, so that a hostile configuration costs no more than its own size.
"""

from typing import Any

from meshlib.core.headers import HeaderEdits
from meshlib.core.route.rule import DirectResponse, Forward, Redirect, Route
from meshlib.core.route.table import RouteTable, VirtualHost
from meshlib.dataplane.decode.errors import Refused, decode_each
from meshlib.dataplane.decode.fault import decode_fault
from meshlib.dataplane.decode.forward import Inherited, decode_forward
from meshlib.dataplane.decode.headers import decode_edits
from meshlib.dataplane.decode.hedge import decode_hedge
from meshlib.dataplane.decode.match import decode_match
from meshlib.dataplane.decode.mirror import decode_mirrors
from meshlib.dataplane.decode.origin import decode_origin
from meshlib.dataplane.decode.redirect import DEFAULT_MAX_BODY, decode_direct_response, decode_redirect
from meshlib.dataplane.decode.retry import decode_retry
from meshlib.xds.names import BLOCK_ALL

MAX_HOSTS = 20_000
MAX_ROUTES = 50_000
"""In all virtual hosts of one configuration."""


def decode_routes(message: Any, *, served: bool = False) -> RouteTable:
    """An envoy.config.route.v3.RouteConfiguration. Refused: it can't be used; the error names the field.

    `served`: it is for requests to this process, whose browsers ask for CORS.
    """
    for name in ("vhds", "vhost_header", "ignore_path_parameters_in_path_matching"):
        if any(field.name == name for field, _ in message.ListFields()):
            raise Refused(name, "is not supported")
    if len(message.virtual_hosts) > MAX_HOSTS:
        raise Refused("virtual_hosts", f"more than {MAX_HOSTS}")
    if sum(len(host.routes) for host in message.virtual_hosts) > MAX_ROUTES:
        raise Refused("virtual_hosts", f"more than {MAX_ROUTES} routes")
    decoder = _Decoder(message, served)
    hosts = decode_each(message.virtual_hosts, "virtual_hosts", decoder.host)
    try:
        return RouteTable(message.name, hosts, ignore_port=message.ignore_port_in_host_matching)
    except ValueError as error:
        raise Refused("virtual_hosts", str(error)) from None


class _Decoder:
    """What the whole configuration says, for each of its virtual hosts."""

    def __init__(self, message: Any, served: bool) -> None:
        self.served = served
        self._has_no_cors(message)
        self.specific_wins: bool = message.most_specific_header_mutations_wins
        self.request = decode_edits(message, "request")
        self.response = decode_edits(message, "response")
        self.mirrors = decode_mirrors(message.request_mirror_policies)
        self.fault = decode_fault(message.typed_per_filter_config, None)
        self.max_body = DEFAULT_MAX_BODY
        if message.HasField("max_direct_response_body_size_bytes"):
            self.max_body = message.max_direct_response_body_size_bytes.value

    def host(self, message: Any) -> VirtualHost:
        """One virtual host."""
        for field, _ in message.ListFields():
            if field.name in ("require_tls", "matcher", "retry_policy_typed_config"):
                raise Refused(field.name, "is not supported")
        self._has_no_cors(message)
        if not message.name:
            raise Refused("name", "is empty")
        if not message.domains:
            raise Refused("domains", "is empty")
        retry = None
        if message.HasField("retry_policy"):
            try:
                retry = decode_retry(message.retry_policy)
            except Refused as refused:
                raise refused.within("retry_policy") from None
        inherited = Inherited(
            retry,
            decode_mirrors(message.request_mirror_policies) or self.mirrors,
            decode_fault(message.typed_per_filter_config, self.fault),
            decode_hedge(message, False),
        )
        request, response = decode_edits(message, "request"), decode_edits(message, "response")
        routes = decode_each(
            message.routes, "routes", lambda route: self.route(route, inherited, request, response)
        )
        return VirtualHost(
            message.name,
            tuple(message.domains),
            tuple(routes),
            message.include_request_attempt_count,
            message.include_attempt_count_in_response,
        )

    def route(
        self, message: Any, inherited: Inherited, host_request: HeaderEdits, host_response: HeaderEdits
    ) -> Route:
        """One route; `host_request` and `host_response` are its virtual host's edits."""
        try:
            match = decode_match(message.match)
        except Refused as refused:
            raise refused.within("match") from None
        request = self._in_order(decode_edits(message, "request"), host_request, self.request)
        response = self._in_order(decode_edits(message, "response"), host_response, self.response)
        fault = decode_fault(message.typed_per_filter_config, inherited.fault)
        which = message.WhichOneof("action")
        action: Forward | Redirect | DirectResponse
        try:
            if which == "route":
                action = decode_forward(message.route, match.path, inherited, fault)
            elif which == "redirect":
                action = decode_redirect(message.redirect, match.path)
            elif which == "direct_response":
                blocks = message.name == BLOCK_ALL
                action = decode_direct_response(message.direct_response, self.max_body, blocks)
            else:
                raise Refused("", "is not supported" if which else "is not set")
        except Refused as refused:
            raise refused.within(which or "action") from None
        cors = None
        if self.served and which == "route":
            from meshlib.dataplane.decode.cors import decode_cors  # which only servers need

            cors = decode_cors(message.typed_per_filter_config)
        return Route(message.name, match, action, request, response, decode_origin(message), fault, cors)

    def _has_no_cors(self, message: Any) -> None:
        if self.served:
            from meshlib.dataplane.decode.cors import CORS

            if CORS in message.typed_per_filter_config:
                raise Refused(f'typed_per_filter_config["{CORS}"]', "is supported in routes")

    def _in_order(self, route: HeaderEdits, host: HeaderEdits, whole: HeaderEdits) -> HeaderEdits:
        if self.specific_wins:
            return whole.then(host).then(route)
        return route.then(host).then(whole)
