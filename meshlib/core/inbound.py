"""What is asked of requests to a port of this process, in order."""

from dataclasses import dataclass

from meshlib.core.mtls import ServerTls
from meshlib.core.route.rule import Origin

_DEFAULT = Origin()


@dataclass(frozen=True, slots=True)
class Inbound:
    """The policy of one port that this process serves."""

    name: str
    """Of the listener: `xds.istio.io/grpc/lds/inbound/<address>:<port>`."""
    tls: ServerTls
    filters: tuple[object, ...] = ()
    """What each HTTP filter became, in the order in which they see a request."""
    origin: Origin = _DEFAULT
    """Which YAML decided `tls.mode`; empty: none, it is the default."""
