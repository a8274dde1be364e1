"""Who is at the other end of a call's connection.

- Of a connection that came through a port of ours it is known: it was looked at there, and gRPC calls the
  connection by the name that the port gave it. No other reaches a server behind such a port.
- Of others gRPC shows the certificate, where it has one; its chain is checked once more, by the mesh's rules.
- Nothing else counts: no metadata says who somebody is.
"""

import functools
import hashlib
import ssl
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import unquote

from meshlib.core.request import Peer
from meshlib.dataplane.gate import Gate


class Met:
    """Peers that came through ports of ours, by gRPC's name of their connection."""

    def __init__(self) -> None:
        self._peers: dict[str, Peer] = {}

    def __len__(self) -> int:
        return len(self._peers)

    def come(self, name: str, peer: Peer) -> None:
        """A connection begins."""
        self._peers[name] = peer

    def gone(self, name: str) -> None:
        """It has ended."""
        self._peers.pop(name, None)

    def find(self, name: str) -> Peer | None:
        """None: nobody came in by that name."""
        return self._peers.get(name)


def shown(context: Any, gate: Gate) -> Peer:
    """The peer of a connection that gRPC itself has taken."""
    remote, local = address_of(context.peer()), ("", gate.port)
    found = context.auth_context()
    if found.get("transport_security_type") != [b"ssl"]:
        return Peer(remote, local)
    chain = chain_of(found)
    principal = gate.principal(chain.decode("ascii", "replace")) if chain else ""
    return Peer(remote, local, principal, "", True, _fingerprint(chain) if principal else "")


def chain_of(shown: Mapping[str, Sequence[bytes]]) -> bytes:
    """The certificates that gRPC shows of a peer, as PEM, its own first; empty: none.

    "If `ssl` is a server, the returned chain does not include the leaf certificate. If a client, it does."
    (BoringSSL, SSL_get_peer_cert_chain, of which gRPC makes `x509_pem_cert_chain`.)
    """
    leaf, chain = (b"".join(shown.get(name) or ()) for name in ("x509_pem_cert", "x509_pem_cert_chain"))
    return chain if chain.startswith(leaf) else leaf + chain


def address_of(peer: str) -> tuple[str, int]:
    """IP address and port in gRPC's `ipv4:1.2.3.4:5`, `ipv6:[::1]:5`; else empty and 0."""
    kind, _, rest = peer.partition(":")
    host, _, port = unquote(rest).rpartition(":")
    if kind not in ("ipv4", "ipv6") or not port.isdecimal():
        return "", 0
    return host.removeprefix("[").removesuffix("]"), int(port)


@functools.lru_cache(maxsize=1024)
def _fingerprint(chain: bytes) -> str:
    """Of the first certificate, in hex."""
    end = b"-----END CERTIFICATE-----"
    leaf = (chain.partition(end)[0] + end).decode("ascii")
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(leaf)).hexdigest()
