"""Envoy's ExtAuthz as core's filter. Refused is what this library can't show or can't do."""

from collections.abc import Sequence
from typing import Any

from meshlib.core.authz.body import BodyWanted
from meshlib.core.authz.external import ExtAuthz, GrpcAuthority, HttpAuthority, Names, nothing
from meshlib.core.route.text import TextMatch
from meshlib.dataplane.decode.authz import decode_metadata
from meshlib.dataplane.decode.errors import Refused, decode_each
from meshlib.dataplane.decode.text import decode_string
from meshlib.xds import pb

TIMEOUT = 0.2
"""Seconds; Envoy's default."""
_UNSUPPORTED = (
    *("filter_enabled", "deny_at_disable", "include_peer_certificate"),
    *("decoder_header_mutation_rules", "enable_dynamic_metadata_ingestion", "include_tls_session"),
)


def decode_ext_authz(name: str, message: Any) -> ExtAuthz:
    """An envoy.extensions.filters.http.ext_authz.v3.ExtAuthz."""
    for field, _ in message.ListFields():
        if field.name in _UNSUPPORTED:
            raise Refused(field.name, "is not supported")
    which = message.WhichOneof("services")
    if which == "http_service":
        authority: HttpAuthority | GrpcAuthority = _http(message.http_service)
    elif which == "grpc_service":
        authority = _grpc(message.grpc_service)
    else:
        raise Refused("services", "is not set")
    enabled = None
    if message.HasField("filter_enabled_metadata"):
        try:
            enabled = decode_metadata(message.filter_enabled_metadata)
        except Refused as refused:
            raise refused.within("filter_enabled_metadata") from None
    return ExtAuthz(
        name,
        authority,
        enabled,
        fail_open=message.failure_mode_allow,
        mark_failed_open=message.failure_mode_allow_header_add,
        status_on_error=message.status_on_error.code or 403,
        asks=_names(message.allowed_headers, "allowed_headers")
        if message.HasField("allowed_headers")
        else None,
        hides=_names(message.disallowed_headers, "disallowed_headers"),
        body=_body(message.with_request_body) if message.HasField("with_request_body") else None,
    )


def _body(message: Any) -> BodyWanted:
    if not message.max_request_bytes:
        raise Refused("with_request_body.max_request_bytes", "is 0")
    return BodyWanted(message.max_request_bytes, message.allow_partial_message, message.pack_as_bytes)


def _http(message: Any) -> HttpAuthority:
    if message.HasField("retry_policy"):
        raise Refused("http_service.retry_policy", "is not supported")
    if not message.server_uri.cluster:
        raise Refused("http_service.server_uri.cluster", "is empty")
    asked, answered = message.authorization_request, message.authorization_response
    if asked.HasField("allowed_headers"):
        raise Refused(
            "http_service.authorization_request.allowed_headers", "is not supported; ExtAuthz has its own"
        )
    if answered.HasField("dynamic_metadata_from_headers"):
        raise Refused("http_service.authorization_response.dynamic_metadata_from_headers", "is not supported")
    told = answered.HasField("allowed_client_headers")
    return HttpAuthority(
        message.server_uri.cluster,
        pb.seconds(message.server_uri.timeout) or TIMEOUT,
        message.path_prefix,
        added=tuple((one.key.lower().encode(), one.value.encode()) for one in asked.headers_to_add),
        to_request=_names(answered.allowed_upstream_headers, "allowed_upstream_headers"),
        to_request_appended=_names(
            answered.allowed_upstream_headers_to_append, "allowed_upstream_headers_to_append"
        ),
        to_client=_names(answered.allowed_client_headers, "allowed_client_headers") if told else None,
        to_client_on_success=_names(
            answered.allowed_client_headers_on_success, "allowed_client_headers_on_success"
        ),
    )


def _grpc(message: Any) -> GrpcAuthority:
    if message.WhichOneof("target_specifier") != "envoy_grpc" or not message.envoy_grpc.cluster_name:
        raise Refused("grpc_service.envoy_grpc.cluster_name", "is not set")
    return GrpcAuthority(
        message.envoy_grpc.cluster_name,
        pb.seconds(message.timeout) or TIMEOUT,
        message.envoy_grpc.authority,
        tuple((one.key.lower(), one.value) for one in message.initial_metadata),
    )


def _names(message: Any, path: str) -> Names:
    """A ListStringMatcher of names of headers."""
    tests: Sequence[TextMatch] = _tests(message, path)
    return (lambda name: any(test.meets(name) for test in tests)) if tests else nothing


def _tests(message: Any, path: str) -> list[TextMatch]:
    return decode_each(message.patterns, f"{path}.patterns", decode_string)
