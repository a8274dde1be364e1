"""That a cluster's endpoints are spoken to in HTTP/2, and how.

Rule (Envoy): one connection carries as many requests at a time as both sides allow; how many may be in flight
in all is the business of the circuit breaker (`max_requests`).
"""

from meshlib.values import dataclass

MOST_STREAMS = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Http2:
    """Envoy's Http2ProtocolOptions."""

    max_concurrent_streams: int = MOST_STREAMS
    """Requests at a time on one connection; the peer may allow fewer."""
    keepalive_interval: float = 0.0
    """Seconds between two pings; 0: none are sent."""
    keepalive_timeout: float = 0.0
    """Seconds for the answer to a ping; then the connection counts as lost."""
