"""Addresses: those that a control service listens at, and under what those of its callers are counted."""

import errno
import ipaddress
import socket

BACKLOG = 1024


def counted(host: str) -> str:
    """Under what an address is counted: who has one IPv6 address has 2^64 of them."""
    try:
        found = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is not None:
            return str(found.ipv4_mapped)
        return str(ipaddress.ip_network((found, 64), strict=False))
    return host


def listening(host: str, port: int) -> list[socket.socket]:
    """Sockets on every address of that name, all on one port; 0 takes a free one.

    OSError: there is no such address, or the port is taken.
    """
    made: list[socket.socket] = []
    try:
        for family, _, _, _, address in _addresses(host, port):
            number = made[0].getsockname()[1] if made else port
            both = host == "::" and socket.has_dualstack_ipv6()
            try:
                one = socket.create_server(
                    (address[0], number), family=family, backlog=BACKLOG, dualstack_ipv6=both
                )
            except OSError as error:
                if made and error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    continue
                raise
            one.setblocking(False)
            made.append(one)
    except BaseException:
        for one in made:
            one.close()
        raise
    return made


def _addresses(host: str, port: int) -> list[tuple[socket.AddressFamily, int, int, str, tuple[str, int]]]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    unique = {entry[4][0]: entry for entry in found}
    return sorted(unique.values(), key=lambda entry: entry[0])  # type: ignore[arg-type]
