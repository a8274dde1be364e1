"""Envoy's RequestMirrorPolicy as core's. The copy's host gets no `-shadow` suffix: Istio turns that off."""

from typing import Any

from meshlib.core.route.rule import MirrorPolicy
from meshlib.dataplane.decode.errors import Refused, decode_each
from meshlib.dataplane.decode.text import MILLION, decode_millionths

MAX_MIRRORS = 100


def decode_mirrors(messages: Any) -> tuple[MirrorPolicy, ...]:
    """A list of envoy.config.route.v3.RouteAction.RequestMirrorPolicy."""
    if len(messages) > MAX_MIRRORS:
        raise Refused("request_mirror_policies", f"more than {MAX_MIRRORS}")
    return tuple(decode_each(messages, "request_mirror_policies", _decode_mirror))


def _decode_mirror(message: Any) -> MirrorPolicy:
    for field, _ in message.ListFields():
        if field.name in ("cluster_header", "request_headers_mutations", "host_rewrite_literal"):
            raise Refused(field.name, "is not supported")
    if not message.cluster:
        raise Refused("cluster", "is empty")
    if not message.HasField("runtime_fraction"):
        return MirrorPolicy(message.cluster, MILLION)
    try:
        return MirrorPolicy(message.cluster, decode_millionths(message.runtime_fraction.default_value))
    except Refused as refused:
        raise refused.within("runtime_fraction.default_value") from None
