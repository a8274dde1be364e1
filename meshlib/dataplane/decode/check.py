"""The messages of envoy.service.auth.v3.Authorization/Check, of core's question and to core's opinion."""

import time
from collections.abc import Iterable
from typing import Any

from meshlib.core.authz.body import Shown
from meshlib.core.authz.external import Check, partial
from meshlib.core.authz.opinion import Blocked, NoAnswer, Opinion, Passed, Told
from meshlib.core.headers import Append
from meshlib.core.request import Header
from meshlib.xds import pb

_FORBIDDEN = 403
_NO_TEXT = dict.fromkeys(range(0xDC80, 0xDD00), "!")
"""Bytes that are no UTF-8, as Python escapes them: Envoy makes an exclamation mark of each."""


def check_request(check: Check, own: str) -> Any:
    """The envoy.service.auth.v3.CheckRequest about a request; `own`: this workload's `spiffe://…`."""
    head, peer = check.question.head, check.question.peer
    made = pb.CheckRequest()
    attributes = made.attributes
    for side, (address, port), principal in (
        (attributes.source, peer.address, peer.principal),
        (attributes.destination, peer.local, own),
    ):
        side.address.socket_address.address = address
        side.address.socket_address.port_value = port
        side.principal = principal
    http = attributes.request.http
    http.method, http.scheme, http.host, http.path = head.method, head.scheme, head.authority, head.path
    http.size, http.protocol = 0, "HTTP/1.1"
    attributes.request.time.FromNanoseconds(time.time_ns())
    identity = head.header(b"x-request-id")
    http.id = "" if identity is None else identity.decode("latin-1")
    shown = [
        *((f":{name}", value) for name, value in (("method", head.method), ("path", head.path))),
        *((f":{name}", value) for name, value in (("authority", head.authority), ("scheme", head.scheme))),
        *(
            (name.decode("latin-1"), value.decode("utf-8", "replace"))
            for name, value in _headers_shown(check)
        ),
    ]
    for name, value in shown:
        known = http.headers.get(name)
        http.headers[name] = value if known is None else f"{known},{value}"
    if check.body is not None:
        http.size = check.body.size
        _show(http, check.body, raw=check.filter.body is not None and check.filter.body.raw)
    return made


def _headers_shown(check: Check) -> list[Header]:
    shown = check.filter.shown(check.question.head)
    return shown if check.body is None else [*shown, partial(check.body)]


def _show(http: Any, body: Shown, *, raw: bool) -> None:
    if raw:
        http.raw_body = body.data
    else:
        http.body = body.data.decode("utf-8", "surrogateescape").translate(_NO_TEXT)


def grpc_opinion(reply: Any) -> Opinion:
    """What an envoy.service.auth.v3.CheckResponse means."""
    if reply.status.code == 0 and reply.WhichOneof("http_response") in (None, "ok_response"):
        return _passed(reply.ok_response, reply.dynamic_metadata)
    if reply.WhichOneof("http_response") == "error_response":
        return NoAnswer("the authority says that it failed")
    denied = reply.denied_response
    status = denied.status.code or _FORBIDDEN
    if not 200 <= status < 600:
        return NoAnswer(f"the authority answered with status {status}")
    return Blocked(status, _headers(denied.headers), denied.body.encode())


def _passed(good: Any, metadata: Any) -> Passed:
    """Of headers for the request only `append` counts, of those for the response their action (Envoy)."""
    options = [(option, _header(option.header)) for option in good.headers]
    query = dict.fromkeys(good.query_parameters_to_remove)
    return Passed(
        set=tuple(header for option, header in options if not option.append.value),
        append=tuple(header for option, header in options if option.append.value),
        remove=tuple(name.lower().encode() for name in good.headers_to_remove),
        to_client=tuple(
            Told(*_header(option.header), _how(option)) for option in good.response_headers_to_add
        ),
        query=(*((one.key, one.value) for one in good.query_parameters_to_set), *query.items()),
        metadata=pb.to_dict(metadata) if metadata.fields else {},
    )


def _how(option: Any) -> Append:
    if option.HasField("append"):
        return Append.APPEND if option.append.value else Append.OVERWRITE_OR_ADD
    return Append(option.append_action)


def _headers(options: Iterable[Any]) -> tuple[Header, ...]:
    return tuple(_header(option.header) for option in options)


def _header(message: Any) -> Header:
    return message.key.lower().encode(), message.value.encode() or bytes(message.raw_value)
