"""Envoy's HttpProtocolOptions as core's Http2: whether HTTP/2 is spoken to a cluster.

Rules:

- `explicit_http_config` decides, whatever the peer says of itself in TLS (ALPN): HTTP/2 is spoken by prior
  knowledge, in plain text too.
- `use_downstream_protocol_config`: what the application speaks to the mesh. That is a library, and it has the
  semantics of HTTP/1.1; a peer is spoken to in that.
- `auto_config`: what the peer chooses of what is offered, and that is HTTP/1.1.
"""

from typing import Any

from meshlib.core.http2 import MOST_STREAMS, Http2
from meshlib.dataplane.decode.errors import Refused
from meshlib.dataplane.decode.text import decode_seconds

_FIELD = "explicit_http_config.http2_protocol_options"
_SHORTEST = 0.001


def decode_http2(options: Any) -> Http2 | None:
    """Of an HttpProtocolOptions, or None; None: HTTP/1.1. Refused: it can't be used."""
    if options is None or options.WhichOneof("upstream_protocol_options") != "explicit_http_config":
        return None
    explicit = options.explicit_http_config
    match explicit.WhichOneof("protocol_config"):
        case "http2_protocol_options":
            try:
                return _decode(explicit.http2_protocol_options)
            except Refused as refused:
                raise refused.within(_FIELD) from None
        case "http3_protocol_options":
            raise Refused("explicit_http_config.http3_protocol_options", "is not supported")
        case _:
            return None


def _decode(said: Any) -> Http2:
    most = MOST_STREAMS
    if said.HasField("max_concurrent_streams"):
        most = int(said.max_concurrent_streams.value)
        if not 1 <= most <= MOST_STREAMS:
            raise Refused("max_concurrent_streams", f"{most} is not in 1 … {MOST_STREAMS}")
    if not said.HasField("connection_keepalive"):
        return Http2(most)
    alive = said.connection_keepalive
    interval = _seconds(alive, "interval") if alive.HasField("interval") else 0.0
    # Envoy asks for a time-out even where no ping is sent.
    return Http2(most, interval, _seconds(alive, "timeout"))


def _seconds(alive: Any, name: str) -> float:
    try:
        found = decode_seconds(alive, name, 0.0)
    except Refused as refused:
        raise refused.within("connection_keepalive") from None
    if found < _SHORTEST:
        raise Refused(f"connection_keepalive.{name}", "must be 1ms at least")
    return found
