"""Headers of a rule or a destination as Envoy's header lists.

Rules (Istio): `set` overwrites, `add` appends, sorted by name. The host is not a header to Envoy: setting
it rewrites the authority, where `set` beats `add`; removing it, or a pseudo-header, does nothing.
"""

from collections.abc import Mapping
from typing import Any

from meshlib.control.istio.virtualservice import HeaderOperations, Headers
from meshlib.xds import pb

_HOST = frozenset(("host", ":authority"))


def edit(message: Any, headers: Headers | None) -> str:
    """Puts the edits on a message with Envoy's four lists, after those that are there.

    Gives the authority that the request's headers set; empty: they set none.
    """
    if headers is None:
        return ""
    authority = ""
    if headers.request is not None:
        authority = _authority(headers.request)
        _side(message.request_headers_to_add, message.request_headers_to_remove, headers.request)
    if headers.response is not None:
        _side(message.response_headers_to_add, message.response_headers_to_remove, headers.response)
    return authority


def _authority(operations: HeaderOperations) -> str:
    for headers in (operations.set, operations.add):
        for name, value in sorted(headers.items()):
            if name.lower() in _HOST:
                return value
    return ""


def _side(to_add: Any, to_remove: Any, operations: HeaderOperations) -> None:
    _options(to_add, operations.add, "APPEND_IF_EXISTS_OR_ADD")
    _options(to_add, operations.set, "OVERWRITE_IF_EXISTS_OR_ADD")
    to_remove.extend(name for name in operations.remove if not _is_special(name))


def _options(to_add: Any, headers: Mapping[str, str], action: str) -> None:
    for name, value in sorted(headers.items()):
        if not _is_special(name):
            to_add.append(pb.HeaderValueOption(header={"key": name, "value": value}, append_action=action))


def _is_special(name: str) -> bool:
    return name.lower() == "host" or name.startswith(":")
