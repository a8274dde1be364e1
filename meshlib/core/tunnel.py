"""A tunnel: an HTTP proxy is asked to lead a connection on to somewhere else (DestinationRule `tunnel`)."""

from meshlib.values import dataclass


@dataclass(frozen=True, slots=True)
class Tunnel:
    """Envoy's tunneling_config of a TCP proxy."""

    target: str
    """`host:port`, as the proxy is told it."""
    post: bool = False
    """POST, whose bodies are the connection; otherwise CONNECT."""
