"""The PROXY header (HAProxy's PROXY protocol, versions 1 and 2): who connects, and where to.

Both are the ends of the connection itself: there is no other one behind it here, as behind a sidecar's.
"""

import ipaddress
import socket

_SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
_PROXY, _LOCAL = 0x21, 0x20
_STREAM4, _STREAM6 = 0x11, 0x21


def proxy_header(version: int, made: socket.socket) -> bytes:
    """The header with which a connected socket begins; `version`: 1 or 2."""
    source, destination = made.getsockname(), made.getpeername()
    if made.family not in (socket.AF_INET, socket.AF_INET6):
        return b"PROXY UNKNOWN\r\n" if version == 1 else _SIGNATURE + bytes((_LOCAL, 0, 0, 0))
    here = ipaddress.ip_address(source[0].partition("%")[0])
    there = ipaddress.ip_address(destination[0].partition("%")[0])
    if version == 1:
        return f"PROXY TCP{here.version} {here} {there} {source[1]} {destination[1]}\r\n".encode()
    family = _STREAM4 if here.version == 4 else _STREAM6
    rest: bytes = (
        here.packed + there.packed + source[1].to_bytes(2, "big") + destination[1].to_bytes(2, "big")
    )
    return _SIGNATURE + bytes((_PROXY, family)) + len(rest).to_bytes(2, "big") + rest
