"""Envoy's tunneling_config of a TCP proxy as core's Tunnel.

Refused is what would make another request of it than this library makes: headers of its own, a path, a target
that is put together of the connection's metadata.
"""

from typing import Any

from meshlib.core.tunnel import Tunnel
from meshlib.dataplane.decode.errors import Refused

_READ = frozenset(("hostname", "use_post"))
_LONGEST = 1024


def decode_tunnel(proxy: Any) -> Tunnel | None:
    """That of an envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy; None: it has none."""
    if not proxy.HasField("tunneling_config"):
        return None
    said = proxy.tunneling_config
    for field, _ in said.ListFields():
        if field.name not in _READ:
            raise Refused(f"tunneling_config.{field.name}", "is not supported")
    target = said.hostname
    if not target or len(target) > _LONGEST or not target.isascii() or "%" in target:
        raise Refused("tunneling_config.hostname", f"{target[:100]!r} is no host with a port")
    if not target.isprintable() or " " in target:
        raise Refused("tunneling_config.hostname", "has characters that no host has")
    return Tunnel(target, said.use_post)
