"""The HTTP connection manager of an edge: requests come from strangers.

Rules:

- Who calls is the peer of the connection, or as many hops before it as there are trusted proxies
  (MeshConfig.defaultConfig.gatewayTopology.numTrustedProxies). What a caller says of a certificate
  (x-forwarded-client-cert) is replaced by what the handshake showed, unless forwardClientCertDetails says
  otherwise.
- What a caller says with a header `x-envoy-…` is dropped before anything reads it: it would steer an Envoy,
  this one or one behind it. What this one says itself with them comes later.
- Limits are those that Envoy advises for edges: names with underscores are refused, 100 streams of HTTP/2 at
  once, small windows, ten seconds for a request's headers, five minutes without a byte, an hour of an idle
  connection. There is no limit to the time of a whole request: uploads and streams are requests, too.
- Paths are put in order as MeshConfig.pathNormalization says; where it says nothing, slashes are merged and
  escaped ones are answered with a redirect to what they mean.
"""

from typing import Any

from meshlib.control.compile.cors import CORS
from meshlib.control.compile.fault import FAULT
from meshlib.control.compile.listeners import ROUTER
from meshlib.control.compile.security import Security
from meshlib.control.istio.meshconfig import (
    ForwardClientCertDetails,
    GatewayTopology,
    MeshConfig,
    NormalizationType,
)
from meshlib.xds import pb

MAX_STREAMS = 100
STREAM_WINDOW, CONNECTION_WINDOW = 64 * 1024, 1024 * 1024
HEADERS_SECONDS, STREAM_IDLE_SECONDS, IDLE_SECONDS = 10.0, 300.0, 3600.0
_MUTATION = "envoy.http.early_header_mutation.header_mutation"
_MUTATION_CONFIG = "envoy.extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation"
_SHOWING = ("SANITIZE_SET", "APPEND_FORWARD")


def edge_manager(routes: str, security: Security, mesh: MeshConfig) -> Any:
    """An HttpConnectionManager with the routes of that name; what is told of requests is put on later."""
    made = pb.HttpConnectionManager(stat_prefix=f"outbound_{routes}")
    made.rds.route_config_name = routes
    made.rds.config_source.ads.SetInParent()
    made.rds.config_source.resource_api_version = "V3"
    made.server_name = "istio-envoy"
    made.upgrade_configs.add(upgrade_type="websocket")
    _callers(made, GatewayTopology.of(mesh))
    made.early_header_mutation_extensions.add(name=_MUTATION, typed_config=pb.pack(_without_envoys()))
    _limits(made)
    _paths(made, mesh)
    filters = (*security.filters, (FAULT, pb.HTTPFault()), (CORS, pb.Cors()), (ROUTER, pb.Router()))
    for name, config in filters:
        made.http_filters.add(name=name, typed_config=pb.pack(config))
    return made


def _without_envoys() -> Any:
    made = pb.message(_MUTATION_CONFIG)()
    key = made.mutations.add().remove_on_match.key_matcher
    key.prefix, key.ignore_case = "x-envoy-", True
    return made


def _callers(made: Any, topology: GatewayTopology) -> None:
    made.use_remote_address.value = True
    made.xff_num_trusted_hops = topology.num_trusted_proxies
    details = topology.forward_client_cert_details.value
    if topology.forward_client_cert_details is ForwardClientCertDetails.UNDEFINED:
        details = "SANITIZE_SET"
    made.forward_client_cert_details = details
    if details in _SHOWING:
        told = made.set_current_client_cert_details
        told.subject.value = told.cert = told.dns = told.uri = True


def _limits(made: Any) -> None:
    common = made.common_http_protocol_options
    common.headers_with_underscores_action = "REJECT_REQUEST"
    common.idle_timeout.CopyFrom(pb.duration(IDLE_SECONDS))
    second = made.http2_protocol_options
    second.max_concurrent_streams.value = MAX_STREAMS
    second.initial_stream_window_size.value = STREAM_WINDOW
    second.initial_connection_window_size.value = CONNECTION_WINDOW
    made.request_headers_timeout.CopyFrom(pb.duration(HEADERS_SECONDS))
    made.stream_idle_timeout.CopyFrom(pb.duration(STREAM_IDLE_SECONDS))


def _paths(made: Any, mesh: MeshConfig) -> None:
    said = mesh.path_normalization
    how = said.normalization if said is not None else NormalizationType.DEFAULT
    made.normalize_path.value = how is not NormalizationType.NONE
    made.merge_slashes = how not in (NormalizationType.NONE, NormalizationType.BASE)
    if how is NormalizationType.DECODE_AND_MERGE_SLASHES:
        made.path_with_escaped_slashes_action = "UNESCAPE_AND_FORWARD"
    elif how is NormalizationType.DEFAULT:
        made.path_with_escaped_slashes_action = "UNESCAPE_AND_REDIRECT"
