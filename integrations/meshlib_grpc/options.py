"""With which arguments gRPC's own channels are made."""

from collections.abc import Iterable
from typing import Any

import grpc

from meshlib.core.actions import Attempt
from meshlib.dataplane.http import local
from meshlib.xds.names import split_authority
from meshlib_grpc.pin import Pinned

Options = tuple[tuple[str, Any], ...]

_OURS = (
    # Of no environment's proxy, and by no service's own wishes in DNS: the mesh decides.
    ("grpc.enable_http_proxy", 0),
    ("grpc.service_config_disable_resolution", 1),
    # Or gRPC would share a connection, and the time for which it does not try again, with other clusters.
    ("grpc.use_local_subchannel_pool", 1),
)
_ONCE = ("grpc.enable_retries", 0)
"""Or gRPC would send a call once more by itself, beside the tries and the limits of the rules."""
_MOST_MILLISECONDS = 2**31 - 1


def compressed(own: Iterable[tuple[str, Any]] | None, compression: grpc.Compression | None) -> Options:
    """The application's own, with how messages are compressed unless a call says otherwise."""
    given = tuple(own or ())
    if compression is None:
        return given
    return (*given, ("grpc.default_compression_algorithm", compression.value))


def target_of(attempt: Attempt) -> str:
    """Where a channel for the attempt leads, in gRPC's words."""
    host, port = address = attempt.at or attempt.address
    path = local.path_of(address)
    if path is not None:
        return f"unix-abstract:{path[1:]}" if path.startswith("\0") else f"unix:{path}"
    if ":" in host:
        return f"ipv6:[{host}]:{port}"
    return f"ipv4:{host}:{port}" if host.replace(".", "").isdigit() else f"dns:///{host}:{port}"


def options_of(
    attempt: Attempt, pinned: Pinned | None, own: Iterable[tuple[str, Any]]
) -> list[tuple[str, Any]]:
    """The arguments of a channel for the attempt; `own` are the application's."""
    upstream = attempt.upstream
    milliseconds = max(1, min(int(upstream.connect_timeout * 1000), _MOST_MILLISECONDS))
    made = [
        _ONCE,  # the first of a name counts
        *own,
        *_OURS,
        ("grpc.min_reconnect_backoff_ms", milliseconds),
        (
            "grpc.client_idle_timeout_ms",
            min(max(1000, int(upstream.idle_timeout * 1000)), _MOST_MILLISECONDS),
        ),
    ]
    how = upstream.http2
    if how is not None and how.keepalive_interval:
        made.append(("grpc.keepalive_time_ms", int(how.keepalive_interval * 1000)))
        made.append(("grpc.keepalive_timeout_ms", int(how.keepalive_timeout * 1000) or 20_000))
    authority = attempt.head.authority
    if pinned is not None:
        made.append(("grpc.ssl_target_name_override", pinned.name))
        # gRPC takes an authority that is not in the certificate only without its port.
        host = split_authority(authority, 0)[0]
        authority = pinned.name if ":" in host else host
    made.append(("grpc.default_authority", authority))
    return made
