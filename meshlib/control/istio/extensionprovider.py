"""MeshConfig.extensionProviders, as far as they decide on requests: ext_authz over HTTP and gRPC.

The other providers are known by name and kept as they were written.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from meshlib.control.istio.fields import Bool, Seconds, Spec, Text, UInt32

HTTP, GRPC = "envoyExtAuthzHttp", "envoyExtAuthzGrpc"


class RequestBody(Spec):
    """How much of a request's body the authorizer is sent."""

    max_request_bytes: UInt32 = 0
    allow_partial_message: Bool = False
    pack_as_bytes: Bool = False


class ExtAuthzGrpc(Spec):
    """An authorizer that speaks envoy.service.auth.v3.Authorization."""

    service: Text = ""
    """`[<namespace>/]<host>` of a service of the mesh."""
    port: UInt32 = 0
    timeout: Seconds | None = None
    """None: 600 s."""
    fail_open: Bool = False
    clear_route_cache: Bool = False
    status_on_error: Text = ""
    """An HTTP status; empty: 403."""
    include_request_body_in_check: RequestBody | None = None


class ExtAuthzHttp(ExtAuthzGrpc):
    """An authorizer that is sent the request's head and answers with a status."""

    path_prefix: Text = ""
    include_headers_in_check: tuple[Text, ...] = ()
    include_request_headers_in_check: tuple[Text, ...] = ()
    include_additional_headers_in_check: Mapping[Text, Text] = Field(default_factory=dict)
    headers_to_upstream_on_allow: tuple[Text, ...] = ()
    headers_to_downstream_on_deny: tuple[Text, ...] = ()
    headers_to_downstream_on_allow: tuple[Text, ...] = ()


def ext_authz(provider: Mapping[str, Any]) -> ExtAuthzGrpc | None:
    """The authorizer of an extension provider; None: it is something else. pydantic.ValidationError."""
    for spelling, model in (
        (HTTP, ExtAuthzHttp),
        ("envoy_ext_authz_http", ExtAuthzHttp),
        (GRPC, ExtAuthzGrpc),
        ("envoy_ext_authz_grpc", ExtAuthzGrpc),
    ):
        if provider.get(spelling) is not None:
            return model.model_validate(provider[spelling])
    return None
