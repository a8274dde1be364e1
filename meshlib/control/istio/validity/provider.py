"""MeshConfig.extensionProviders, as far as they are read here; as Istio checks them."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import re2
from pydantic import ValidationError

from meshlib.control.istio.extensionprovider import ExtAuthzHttp, ext_authz, file_access_log
from meshlib.control.istio.validity import hosts
from meshlib.control.istio.validity.report import Report

STATUSES = frozenset(str(status.value) for status in HTTPStatus if status.value >= 200) - {
    "418",
    "425",
    "451",
}
"""Those that Envoy knows."""
_NAME = re2.compile("[a-z0-9]([-a-z0-9]*[a-z0-9])?")


def can_be_asked(name: str) -> bool:
    """Whether a provider of that name is one that Istio asks; of others it denies what their rules match."""
    return len(name) <= 63 and _NAME.fullmatch(name) is not None


def provider(given: Mapping[str, Any], to: Report) -> None:
    """One of MeshConfig.extensionProviders, as far as it is read here."""
    try:
        file_access_log(given)
    except ValidationError as error:
        first = error.errors()[0]
        to.error(f"not an access log: {first['msg']}", ".".join(map(str, first["loc"])), "see Istio's fields")
        return
    try:
        found = ext_authz(given)
    except ValidationError as error:
        first = error.errors()[0]
        to.error(f"not an authorizer: {first['msg']}", ".".join(map(str, first["loc"])), "see Istio's fields")
        return
    if found is None:
        return
    name = given.get("name")
    if isinstance(name, str) and name and not can_be_asked(name):
        to.at("name").warn(
            "what its rules match is denied for this name", repr(name), "up to 63 of a-z, 0-9 and - inside"
        )
    if not found.service or found.service.count("/") > 1:
        to.error("not a service", repr(found.service), "host, or namespace/host")
    if not 1 <= found.port <= 65535:
        to.error("not a port", found.port, "1 to 65535")
    hosts.duration(found.timeout, to)
    if found.status_on_error and found.status_on_error not in STATUSES:
        to.error("not a status", repr(found.status_on_error), "'403', '500', '503', …")
    body = found.include_request_body_in_check
    if body is not None and not body.max_request_bytes:
        to.error("no size of the body", body.max_request_bytes, "maxRequestBytes of at least 1")
    if isinstance(found, ExtAuthzHttp):
        _asked_over_http(found, to)


def _asked_over_http(found: ExtAuthzHttp, to: Report) -> None:
    if found.path_prefix and not found.path_prefix.startswith("/"):
        to.error("not the beginning of a path", repr(found.path_prefix), "/…")
    for name in (
        "include_headers_in_check",
        "include_request_headers_in_check",
        "headers_to_upstream_on_allow",
        "headers_to_downstream_on_deny",
        "headers_to_downstream_on_allow",
    ):
        for value in getattr(found, name):
            if value in ("", "*"):
                to.error("not the name of a header", repr(value), "a name, or one that begins or ends with *")
