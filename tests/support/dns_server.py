"""A DNS server on loopback that answers from a table: over UDP, A and AAAA only."""

import contextlib
import ipaddress
import socket
import struct
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from support.told_names import ToldNames

_A, _AAAA = 1, 28
_NXDOMAIN, _SERVFAIL = 3, 2


class DnsServer(NamedTuple):
    """Where it is."""

    port: int


@contextlib.contextmanager
def dns_server(names: ToldNames) -> Iterator[DnsServer]:
    """Answers as `names` would."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listening:
        listening.bind(("127.0.0.1", 0))
        ended = threading.Event()

        def serve() -> None:
            while not ended.is_set():
                asked, peer = listening.recvfrom(4096)
                if asked:
                    listening.sendto(answer(asked, names.addresses, down=names.down), peer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield DnsServer(int(listening.getsockname()[1]))
        finally:
            ended.set()
            listening.sendto(b"", listening.getsockname())
            thread.join(5)


def answer(asked: bytes, addresses: Mapping[str, Sequence[str]], *, down: bool = False) -> bytes:
    """The response to a query of one question (RFC 1035, 4)."""
    labels, at = [], 12
    while size := asked[at]:
        labels.append(asked[at + 1 : at + 1 + size].decode())
        at += 1 + size
    end = at + 5
    (kind,) = struct.unpack_from("!H", asked, at + 1)
    known = addresses.get(".".join(labels).lower())
    found = []
    for one in known or ():
        packed = ipaddress.ip_address(one).packed
        if kind == (_A if len(packed) == 4 else _AAAA):
            found.append(struct.pack("!HHHIH", 0xC00C, kind, 1, 1, len(packed)) + packed)
    code = _SERVFAIL if down else 0 if known else _NXDOMAIN
    if down:
        found = []
    return (
        asked[:2]
        + struct.pack("!HHHHH", 0x8580 | code, 1, len(found), 0, 0)
        + asked[12:end]
        + b"".join(found)
    )
