"""The bounds of the control server, and the gRPC options that set them.

Received messages stay small (a node with its 500 extensions is some tens of KB, 10,000 names some
hundred); sent ones may hold a whole mesh. After a restart all clients come back at once: gRPC's
default of 1,000 pending requests refused bursts above 1,500 streams.
"""

MAX_RECEIVED = 4 * 1024 * 1024
MAX_STREAMS = 100
"""Of one connection; a client needs three."""
MAX_SENT = 512 * 1024 * 1024
MAX_REGISTRATIONS = 2_000
"""Of one identity at one address, such as the workloads of a node; of one address, without TLS."""
CUT_SECONDS, CUT_GRACE_SECONDS = 2.0, 10.0
"""For so long after connections were cut, because a root was given up, say, a stream that ends has so long to
come back: a crowd does.
"""
HOLD_SECONDS = 1.0
"""How long a change waits for a client to ask for what is new or to cancel what is gone."""
BIND_SECONDS = 5.0
"""After which an Envoy is asked again for a listener whose port was taken."""
STOP_GRACE_SECONDS = 2.0
RELOAD_SECONDS = 1.0
"""How often the authority is asked whether something changed."""

GRPC_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", MAX_RECEIVED),
    ("grpc.max_send_message_length", MAX_SENT),
    ("grpc.so_reuseport", 0),  # a port that is taken is an error
    ("grpc.server.max_pending_requests", 100_000),
    ("grpc.server.max_pending_requests_hard_limit", 200_000),
    ("grpc.max_concurrent_streams", MAX_STREAMS),
    ("grpc.max_metadata_size", 16 * 1024),
    # Who sends fast is let send no more ahead of what is read: 64 KB a stream.
    ("grpc.http2.bdp_probe", 0),
    # Who connects must begin to speak HTTP/2, and go on to a call.
    ("grpc.server_handshake_timeout_ms", 20_000),
    ("grpc.max_connection_idle_ms", 300_000),
    # A client that vanished without a word is noticed after 30 + 10 s.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
)
