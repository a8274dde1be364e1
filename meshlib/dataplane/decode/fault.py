"""Envoy's HTTPFault of a route, a virtual host, … as core's Fault.

Rules (Envoy): the most specific level counts, whole; a fault there that is empty or disabled is none.
Refused: a limit of the response's rate, which is not done here. Keys of a runtime are not looked at: there
is none.
"""

from typing import Any

from google.protobuf.message import DecodeError

from meshlib.core.fault import Abort, Aborted, Delay, Fault, Share
from meshlib.dataplane.decode.errors import Refused, decode_each
from meshlib.dataplane.decode.match import MAX_CONDITIONS, decode_header_match
from meshlib.dataplane.decode.text import DENOMINATORS
from meshlib.xds import pb

FAULT = "envoy.filters.http.fault"
"""The name of the filter, by which its settings are found."""
MAX_NODES = 10_000


def decode_fault(settings: Any, above: Fault | None) -> Fault | None:
    """What a level's `typed_per_filter_config` makes of the faults of the level above it."""
    message = setting(settings, FAULT, pb.HTTPFault)
    if message is None:
        return above
    try:
        return decode_http_fault(message)
    except Refused as refused:
        raise refused.within(f'typed_per_filter_config["{FAULT}"]') from None


def setting(settings: Any, name: str, kind: Any) -> Any:
    """The message of a filter's settings, of one kind; empty if they are disabled; None: there are none."""
    if name not in settings:
        return None
    path = f'typed_per_filter_config["{name}"]'
    found = _unpacked(settings[name], path)
    if found.DESCRIPTOR.full_name == "envoy.config.route.v3.FilterConfig":
        if found.disabled or not found.config.type_url:
            return kind()
        found = _unpacked(found.config, f"{path}.config")
    if found.DESCRIPTOR.full_name != kind.DESCRIPTOR.full_name:
        raise Refused(path, f"{found.DESCRIPTOR.full_name} is not supported")
    return found


def _unpacked(packed: Any, path: str) -> Any:
    try:
        return pb.unpack(packed)
    except (DecodeError, KeyError) as error:
        raise Refused(path, f"can't be decoded: {error}") from None


def decode_http_fault(message: Any) -> Fault | None:
    """An envoy.extensions.filters.http.fault.v3.HTTPFault; None: it makes none."""
    if message.HasField("response_rate_limit"):
        raise Refused("response_rate_limit", "is not supported")
    if len(message.headers) > MAX_CONDITIONS:
        raise Refused("headers", f"more than {MAX_CONDITIONS}")
    if len(message.downstream_nodes) > MAX_NODES:
        raise Refused("downstream_nodes", f"more than {MAX_NODES}")
    headers = decode_each(message.headers, "headers", decode_header_match)
    delay, abort = _part(message, "delay", _delay), _part(message, "abort", _abort)
    if delay is None and abort is None:
        return None
    limit = message.max_active_faults
    return Fault(
        delay,
        abort,
        message.upstream_cluster,
        tuple(headers),
        frozenset(node.encode() for node in message.downstream_nodes),
        limit.value if message.HasField("max_active_faults") else 2**32 - 1,
    )


def _part(message: Any, name: str, decode: Any) -> Any:
    if not message.HasField(name):
        return None
    try:
        return decode(getattr(message, name))
    except Refused as refused:
        raise refused.within(name) from None


def _delay(message: Any) -> Delay:
    which = message.WhichOneof("fault_delay_secifier")
    if which is None:
        raise Refused("fixed_delay", "is not set")
    if which == "header_delay":
        return Delay(_share(message))
    said = message.fixed_delay
    if said.seconds < 0 or said.nanos < 0 or not (said.seconds or said.nanos):
        raise Refused("fixed_delay", "must be longer than nothing")
    return Delay(_share(message), (said.seconds * 1000 + said.nanos // 1_000_000) / 1000)


def _abort(message: Any) -> Abort:
    which = message.WhichOneof("error_type")
    if which is None:
        raise Refused("http_status", "is not set")
    if which == "header_abort":
        return Abort(_share(message))
    if which == "grpc_status":
        return Abort(_share(message), Aborted(200, message.grpc_status))
    if not 200 <= message.http_status < 600:
        raise Refused("http_status", f"{message.http_status} is not from 200 to 599")
    return Abort(_share(message), Aborted(message.http_status))


def _share(message: Any) -> Share:
    said = message.percentage
    if not 0 <= said.denominator < len(DENOMINATORS):
        raise Refused("percentage.denominator", f"{said.denominator} is unknown")
    return Share(said.numerator, DENOMINATORS[said.denominator])
