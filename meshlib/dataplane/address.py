"""The IP address of this process, as others see it."""

import socket

from meshlib.bootstrap import Bootstrap
from meshlib.errors import ConfigError
from meshlib.xds.names import split_authority

_ANYWHERE = "203.0.113.1"
"""An address that is nobody's (RFC 5737), behind the default route."""


def own_address(control: str) -> str:
    """The address of the interface that leads to `control` (`host:port`). ConfigError: there is none."""
    host, port = split_authority(control, 15010)
    try:
        return _source_of(host, port)
    except OSError as error:
        raise ConfigError(f"address: none is given, and {control} says nothing of ours ({error})") from None


def likely_address(settings: Bootstrap) -> str:
    """The same without asking DNS: of the default route, if control is named. Empty: there is none."""
    if settings.address or settings.local:
        return settings.address or "127.0.0.1"
    import ipaddress  # half a millisecond that few need

    host, _ = split_authority(settings.control, 15010)
    try:
        ipaddress.ip_address(host)
    except ValueError:
        host = _ANYWHERE
    try:
        return _source_of(host, 9)
    except OSError:
        return ""


def _source_of(host: str, port: int) -> str:
    family, kind, _, _, target = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as probe:
        probe.connect(target)  # sends nothing
        return str(probe.getsockname()[0])
