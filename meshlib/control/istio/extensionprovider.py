"""MeshConfig.extensionProviders: ext_authz over HTTP and gRPC, and access logs in files.

The other providers are known by name and kept as they were written.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import Field

from meshlib.control.istio.fields import Bool, Seconds, Spec, Text, UInt32

HTTP, GRPC = "envoyExtAuthzHttp", "envoyExtAuthzGrpc"
FILE = "envoyFileAccessLog"
ACCESS_LOGS = (FILE, "envoyHttpAls", "envoyTcpAls", "envoyOtelAls")
BUILT_IN: tuple[Mapping[str, Any], ...] = (
    {"name": "prometheus", "prometheus": {}},
    {"name": "stackdriver", "stackdriver": {}},
    {"name": "envoy", FILE: {"path": "/dev/stdout"}},
)
"""Those that every mesh has, unless it has its own of that name."""


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


class LogFormat(Spec):
    """A line, in Envoy's operators."""

    one_of = (("text", "labels"),)

    text: Text | None = None
    labels: Mapping[str, Any] | None = None
    """As JSON."""


class FileAccessLog(Spec):
    """A file that requests are written to."""

    path: Text = ""
    """Empty: /dev/stdout."""
    log_format: LogFormat | None = None
    omit_empty_values: Bool = False


def find(providers: Iterable[Mapping[str, Any]], name: str) -> Mapping[str, Any] | None:
    """The provider of that name, in any case; of a mesh's own the first one, else a built-in one."""
    for provider in (*providers, *BUILT_IN):
        if str(provider.get("name", "")).lower() == name.lower():
            return provider
    return None


def is_access_log(provider: Mapping[str, Any]) -> bool:
    """Whether requests can be told to a provider as lines, of whatever kind."""
    return any(provider.get(one) is not None or provider.get(_snake(one)) is not None for one in ACCESS_LOGS)


def _snake(name: str) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name)


def file_access_log(provider: Mapping[str, Any]) -> FileAccessLog | None:
    """The file of an extension provider; None: it is something else. pydantic.ValidationError."""
    for spelling in (FILE, _snake(FILE)):
        if provider.get(spelling) is not None:
            return FileAccessLog.model_validate(provider[spelling])
    return None


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
