"""What a policy may ask about: one request, the connection it came on, and what filters before said of it.

Rules (Envoy):

- The path is looked at as it was normalised, without its query; Envoy leaves it there. Where applications may
  read it otherwise, it is looked at once more in each of these readings.
- An address that is none (a socket of the file system) is in no range.
- IPv4 addresses that are written as IPv6 (`::ffff:1.2.3.4`) count as IPv4.
"""

import functools
import ipaddress
from enum import IntEnum
from typing import Any

from meshlib.core.authz.path import given, plain, routed
from meshlib.core.request import Peer, RequestHead
from meshlib.core.route.match import bare_path

Ip = tuple[int, int]
"""Version and number of an IP address; version 0: it is none."""
NO_IP: Ip = (0, 0)


class Reading(IntEnum):
    """How a path is looked at, each more forgiving than the one before."""

    WRITTEN = 0
    """As it was normalised, which is as Envoy does."""
    GIVEN = 1
    """As the application is given it: decoded."""
    ROUTED = 2
    """As a forgiving router reads that."""


class Question:
    """One request. `metadata` grows while filters pass: filter name, then key, then a JSON-like value."""

    __slots__ = ("head", "metadata", "names", "paths", "peer", "reading", "remote")

    def __init__(self, head: RequestHead, peer: Peer, remote: str = "") -> None:
        """`head` with its path normalised; `remote`: the client's IP as headers say it, empty: the peer's."""
        self.head = head
        self.peer = peer
        self.remote = remote or peer.address[0]
        self.paths: tuple[bytes, ...] = (bare_path(head.path).encode("latin-1", "replace"),)
        """The path, in all its spellings: a condition holds if it holds of one."""
        self.reading = Reading.WRITTEN
        self.names = peer.names
        self.metadata: dict[str, dict[str, Any]] = {}

    def readings(self) -> "tuple[Question, ...]":
        """The same request with the path as applications may read it; empty: all read it as it is written."""
        bare = bare_path(self.head.path)
        if "%" not in bare and "//" not in bare:
            return ()
        path, found = given(bare), []
        if "%" in bare:
            found.append(self._read(Reading.GIVEN, path, plain(bare)))
        if (lenient := routed(path)) != path:
            shortest = routed(plain(bare).removesuffix(b"%0A"))
            found.append(self._read(Reading.ROUTED, lenient, shortest))
        return tuple(found)

    def _read(self, reading: Reading, path: bytes, shortest: bytes) -> "Question":
        head = self.head
        query = head.path[len(bare_path(head.path)) :]
        made = Question.__new__(Question)
        made.head = RequestHead(
            head.method, head.scheme, head.authority, path.decode("latin-1") + query, head.headers
        )
        made.peer, made.remote, made.names, made.metadata = self.peer, self.remote, self.names, self.metadata
        made.paths, made.reading = (path, shortest), reading
        return made


@functools.lru_cache(maxsize=4096)
def parse_ip(text: str) -> Ip:
    """The address in `text`, without a zone; NO_IP if it is none."""
    try:
        found = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return NO_IP
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    plain = mapped or found
    return plain.version, int(plain)
