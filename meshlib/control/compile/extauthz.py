"""AuthorizationPolicy of action CUSTOM: who else is asked, and what for.

Rules (Istio):

- RBAC finds, without enforcing it, whether a rule matches, and writes that into its metadata; ext_authz asks
  the provider only if one did.
- A provider that is unknown, that is no authorizer, whose name is no DNS label, or whose service is not in
  the mesh: what its rules match is denied. So it is if a workload has rules of several providers, and with
  gRPC's servers, who ask nobody.
- Over TCP only a provider that speaks gRPC is asked; one that speaks HTTP is passed over.
"""

import copy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from meshlib.control.compile.authz import (
    RBAC,
    TCP_PREFIX,
    TCP_RBAC,
    compile_policies,
    filter_name,
    rules,
)
from meshlib.control.compile.clauses import Filterer
from meshlib.control.graph.graph import Graph
from meshlib.control.istio.authorizationpolicy import Action
from meshlib.control.istio.document import AnyDocument
from meshlib.control.istio.extensionprovider import ExtAuthzGrpc, ExtAuthzHttp, RequestBody, ext_authz
from meshlib.control.istio.validity.provider import can_be_asked
from meshlib.xds import pb
from meshlib.xds.names import cluster_name

EXT_AUTHZ = "envoy.filters.http.ext_authz"
TCP_EXT_AUTHZ = "envoy.filters.network.ext_authz"
MATCHED = "istio-ext-authz-"
SHADOW = "istio_ext_authz_"
EFFECTIVE = f"{SHADOW}shadow_effective_policy_id"
BAD = "-deny-due-to-bad-CUSTOM-action"
TIMEOUT_SECONDS = 600.0
_TCP = "envoy.extensions.filters.network.ext_authz.v3.ExtAuthz"
_TCP_RBAC = "envoy.extensions.filters.network.rbac.v3.RBAC"


@dataclass(frozen=True, slots=True)
class Authorizer:
    """A provider that can be asked."""

    settings: ExtAuthzGrpc
    host: str

    @property
    def cluster(self) -> str:
        """The name of the cluster of its service."""
        return cluster_name(self.settings.port, "", self.host)


def find_authorizer(name: str, graph: Graph) -> Authorizer | str:
    """The provider of that name, or why it can't be asked."""
    found = [provider for provider in graph.mesh.extension_providers if provider.get("name") == name]
    if len(found) != 1:
        return f"{len(found)} extensionProviders have the name {name!r}"
    if not can_be_asked(name):
        return f"{name!r} is not the name of an extensionProvider that can be asked"
    try:
        settings = ext_authz(found[0])
    except ValidationError:
        return f"extensionProvider {name!r} is not valid"
    if settings is None:
        return f"extensionProvider {name!r} decides on no requests"
    namespace, slash, host = settings.service.rpartition("/")
    for service in graph.registry.services.get(host.lower(), ()):
        if not slash or service.namespace == namespace:
            return Authorizer(settings, service.host)
    return f"the service {settings.service!r} of extensionProvider {name!r} is not in the mesh"


def custom_filters(
    documents: Iterable[AnyDocument], graph: Graph, who: Filterer
) -> tuple[list[tuple[str, Any]], tuple[str, ...]]:
    """Name and configuration of the filters for CUSTOM, and the names of the clusters that are asked."""
    by_provider: dict[str, list[AnyDocument]] = {}
    for document in documents:
        if document.spec.action is Action.CUSTOM:
            name = document.spec.provider.name if document.spec.provider else ""
            by_provider.setdefault(name, []).append(document)
    made: list[tuple[str, Any]] = []
    clusters = []
    for name, listed in sorted(by_provider.items()):
        policies = compile_policies(listed, graph.mesh, who, allowing=False, prefix=f"{MATCHED}{name}-")
        found = find_authorizer(name, graph)
        if who is Filterer.GRPC:
            made += _denied(policies, "-gRPC-cannot-ask", who)
        elif isinstance(found, str) or len(by_provider) > 1:
            made += _denied(policies, BAD, who)
        elif who is Filterer.HTTP or not isinstance(found.settings, ExtAuthzHttp):
            made += _asking(policies, found, name, who)
            clusters.append(found.cluster)
    if who is Filterer.GRPC and made:
        made = [_as_one(made)]
    return made, tuple(clusters)


def _denied(policies: Mapping[str, Any], suffix: str, who: Filterer) -> Iterator[tuple[str, Any]]:
    config = pb.message(_TCP_RBAC)(stat_prefix=TCP_PREFIX) if who is Filterer.TCP else pb.RBAC()
    config.rules.CopyFrom(rules("DENY", {name + suffix: policy for name, policy in policies.items()}))
    yield filter_name(Action.CUSTOM, who), config


def _as_one(filters: list[tuple[str, Any]]) -> tuple[str, Any]:
    """Filters that deny, as one: gRPC wants each name once."""
    name, first = filters[0]
    made = copy.deepcopy(first)
    for _, other in filters[1:]:
        made.rules.MergeFrom(other.rules)
    return name, made


def _asking(
    policies: dict[str, Any], found: Authorizer, provider: str, who: Filterer
) -> Iterator[tuple[str, Any]]:
    tcp = who is Filterer.TCP
    shadow = pb.message(_TCP_RBAC)(stat_prefix=TCP_PREFIX) if tcp else pb.RBAC()
    shadow.shadow_rules.CopyFrom(rules("DENY", policies))
    shadow.shadow_rules_stat_prefix = SHADOW
    yield filter_name(Action.CUSTOM, who), shadow
    settings = found.settings
    asked = pb.message(_TCP)(stat_prefix=TCP_PREFIX) if tcp else pb.ExtAuthz()
    asked.transport_api_version = "V3"
    asked.failure_mode_allow = settings.fail_open
    asked.filter_enabled_metadata.filter = TCP_RBAC if tcp else RBAC
    asked.filter_enabled_metadata.path.add(key=EFFECTIVE)
    asked.filter_enabled_metadata.value.string_match.prefix = f"{MATCHED}{provider}-"
    if isinstance(settings, ExtAuthzHttp):
        _over_http(asked.http_service, settings, found)
        sent = settings.include_request_headers_in_check or settings.include_headers_in_check
        if sent:
            asked.allowed_headers.CopyFrom(_headers(sent))
    else:
        asked.grpc_service.envoy_grpc.cluster_name = found.cluster
        asked.grpc_service.envoy_grpc.authority = found.host
        asked.grpc_service.timeout.CopyFrom(_timeout(settings))
    if not tcp:
        _of_requests(asked, settings)
    yield TCP_EXT_AUTHZ if tcp else EXT_AUTHZ, asked


def _of_requests(asked: Any, settings: ExtAuthzGrpc) -> None:
    asked.clear_route_cache = settings.clear_route_cache
    if settings.status_on_error:
        asked.status_on_error.code = int(settings.status_on_error)
    body: RequestBody | None = settings.include_request_body_in_check
    if body is not None:
        asked.with_request_body.max_request_bytes = body.max_request_bytes
        asked.with_request_body.allow_partial_message = body.allow_partial_message
        asked.with_request_body.pack_as_bytes = body.pack_as_bytes


def _over_http(service: Any, settings: ExtAuthzHttp, found: Authorizer) -> None:
    service.path_prefix = settings.path_prefix
    service.server_uri.uri = f"http://{found.host}"
    service.server_uri.cluster = found.cluster
    service.server_uri.timeout.CopyFrom(_timeout(settings))
    response = service.authorization_response
    for key, value in sorted(settings.include_additional_headers_in_check.items()):
        service.authorization_request.headers_to_add.add(key=key, value=value)
    for place, names in (
        ("allowed_upstream_headers", settings.headers_to_upstream_on_allow),
        ("allowed_client_headers", settings.headers_to_downstream_on_deny),
        ("allowed_client_headers_on_success", settings.headers_to_downstream_on_allow),
    ):
        if names:
            getattr(response, place).CopyFrom(_headers(names))


def _headers(names: Iterable[str]) -> Any:
    """A ListStringMatcher of names of headers, with * at one end."""
    made = pb.message("envoy.type.matcher.v3.ListStringMatcher")()
    for name in names:
        if name.startswith("*"):
            made.patterns.add(suffix=name[1:], ignore_case=True)
        elif name.endswith("*"):
            made.patterns.add(prefix=name[:-1], ignore_case=True)
        else:
            made.patterns.add(exact=name, ignore_case=True)
    return made


def _timeout(settings: ExtAuthzGrpc) -> Any:
    return pb.duration(TIMEOUT_SECONDS if settings.timeout is None else settings.timeout)
