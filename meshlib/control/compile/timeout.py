"""The timeout of a rule on Envoy's RouteAction.

Rules (Istio): none unless given, which Envoy spells 0 s; a gRPC request's own deadline counts up to it.
gRPC's clients know only the longest duration of a stream. Those in C end it one to two seconds early: they
are sent two seconds more, as a backstop, and set the exact deadline of each call themselves.
"""

from typing import Any

from meshlib.control.compile.context import Context
from meshlib.xds import pb

HASTY_SLACK = 2.0


def timeout(action: Any, seconds: float | None, context: Context) -> None:
    """Puts a timeout, None for none, on an envoy.config.route.v3.RouteAction."""
    limit = seconds or 0.0
    if context.grpc:
        if limit and context.client.hasty:
            limit += HASTY_SLACK
        action.max_stream_duration.max_stream_duration.CopyFrom(pb.duration(limit))
        return
    action.timeout.CopyFrom(pb.duration(limit))
    # Deprecated, but with anything in max_stream_duration Envoy does not look at `timeout` any more.
    action.max_grpc_timeout.CopyFrom(pb.duration(limit))
