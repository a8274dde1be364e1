"""What one workload behind a node's Envoy may hold of it: of what its neighbours share.

Rules:

- What was read and can't be written yet is 256 KiB of a connection at each of its ends, or of a stream of
  HTTP/2, whose windows say so to the other side. Envoy's own defaults are 1 MiB and 16 MiB.
- Of a tunnel the caller holds 4 MiB (as ztunnel does): if the server ends a connection, what the caller's
  window has no room for is lost (Envoy's codec: "if we cannot do this, we just reset the stream").
- Tunnels and calls share connections: all streams together may be full, so that one which nobody reads stops
  no other. A caller's own connection holds 16 full streams.
- So many connections to each of its listeners are open at once; more are closed at once. So many tunnels lead
  to it, as many wait, and more are refused. The agent says how many. They are in Envoy's runtime, which knows
  them by the names of listeners and clusters.
"""

from collections.abc import Iterable
from typing import Any

from meshlib.control.compile.breaker import HTTP_OPTIONS
from meshlib.control.compile.captured import OUTBOUND, PROXY
from meshlib.control.compile.hbone import HBONE, MAX_STREAMS, TUNNELLED
from meshlib.control.registration import Place
from meshlib.xds import pb
from meshlib.xds.kinds import Kind
from meshlib.xds.names import RUNTIME_LAYER

INBOUND = "inbound"
HELD_BYTES, TUNNEL_BYTES = 256 * 1024, 4 * 1024 * 1024
OWN_STREAMS = 16
UDP = pb.message("envoy.config.core.v3.SocketAddress").UDP


def listener(made: Any) -> None:
    """Puts on a Listener how much its connections hold."""
    if made.address.socket_address.protocol != UDP:
        made.per_connection_buffer_limit_bytes.value = HELD_BYTES


def manager(made: Any) -> None:
    """The same, on an HttpConnectionManager."""
    streams = MAX_STREAMS if made.stat_prefix == HBONE else OWN_STREAMS
    _windows(made.http2_protocol_options, HELD_BYTES, streams)


def cluster(made: Any) -> None:
    """The same, on a Cluster."""
    made.per_connection_buffer_limit_bytes.value = HELD_BYTES
    if HTTP_OPTIONS not in made.typed_extension_protocol_options:
        return
    packed = made.typed_extension_protocol_options[HTTP_OPTIONS]
    options = pb.unpack(packed)
    if options.HasField("use_downstream_protocol_config"):
        second = options.use_downstream_protocol_config.http2_protocol_options
    elif options.explicit_http_config.HasField("http2_protocol_options"):
        second = options.explicit_http_config.http2_protocol_options
    else:
        return
    _windows(second, TUNNEL_BYTES if made.name.endswith(f"/{HBONE}") else HELD_BYTES, MAX_STREAMS)
    packed.CopyFrom(pb.pack(options))


def _windows(second: Any, stream: int, streams: int) -> None:
    second.initial_stream_window_size.value = stream
    second.initial_connection_window_size.value = streams * stream


def runtime(places: Iterable[Place], most: int) -> Any:
    """The Runtime with how many connections there may be of each workload; `most` 0: of none it is said."""
    made = pb.message(Kind.RUNTIME.type_url.rpartition("/")[2])(name=RUNTIME_LAYER)
    for place in places if most else ():
        for name in (OUTBOUND, INBOUND, HBONE) if place.netns else (INBOUND, PROXY):
            made.layer[f"envoy.resource_limits.listener.{place.uid}/{name}.connection_limit"] = most
        for which in ("connections", "pending_requests") if place.netns else ():
            made.layer[f"circuit_breakers.{place.uid}/{TUNNELLED}.default.max_{which}"] = most
    return made
