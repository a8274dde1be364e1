"""What becomes of a new connection at a server's port: decided here, for tasks and for threads.

    first byte ──► TLS (22, RFC 8446 5.1)  ──► handshake ──► who is it?
              └──► anything else           ──► plain text, if it is allowed

Rules:

- PERMISSIVE takes both, STRICT no plain text, DISABLE looks at nothing.
- The policy and the certificate are those of the moment: a change counts for the next connection.
"""

import hashlib
import ssl
from collections.abc import Set as AbstractSet
from dataclasses import replace
from typing import Any, Protocol

from meshlib.core.mtls import InboundMode, ServerTls
from meshlib.core.request import Peer
from meshlib.dataplane.tls import Contexts, asked_name

PATIENCE = 5.0
"""Seconds for the first byte and the handshake."""
HTTP1 = ("istio-http/1.1", "istio-http/1.0", "istio", "http/1.1", "http/1.0")
"""What HTTP/1.1 is called in ALPN, by sidecars and by everybody else."""
_HANDSHAKE = b"\x16"


class Port(Protocol):
    """What a port asks of its callers now."""

    @property
    def tls(self) -> ServerTls:
        """The policy."""
        ...

    @property
    def contexts(self) -> Contexts | None:
        """The workload's certificate; None: it has none, and nothing but plain text can be taken."""
        ...


class Refused(OSError):
    """A connection that is not taken, and why."""


class Terms:
    """What is asked of one connection."""

    def __init__(self, port: Port, speaks: AbstractSet[str]) -> None:
        """`speaks`: the protocols behind the port (ALPN)."""
        self._policy = port.tls
        self._contexts = port.contexts
        self._speaks = speaks

    @property
    def look(self) -> bool:
        """Whether the first byte decides; else the connection is plain text, unseen."""
        return self._policy.mode is not InboundMode.DISABLE

    def context(self, first: bytes) -> ssl.SSLContext | None:
        """By which context to shake hands, None: plain text. Refused; OSError: there is no certificate."""
        if first != _HANDSHAKE:
            if self._policy.mode is InboundMode.STRICT:
                raise Refused("plain text, and mutual TLS is STRICT")
            return None
        if self._contexts is None:
            raise Refused("TLS, and there is no certificate")
        policy = replace(self._policy, alpn=tuple(name for name in self._policy.alpn if name in self._speaks))
        return self._contexts.server(policy)

    def principal(self, secured: "ssl.SSLSocket | ssl.SSLObject") -> str:
        """The caller's `spiffe://…`, after the handshake. NotTrusted: it must not be served."""
        if self._contexts is None:
            raise Refused("TLS, and there is no certificate")
        return self._contexts.caller(self._policy, secured)


def peer_of(
    secured: "ssl.SSLSocket | ssl.SSLObject | None", principal: str, remote: object, local: object
) -> Peer:
    """The peer of a connection, whose certificate was checked and said `principal`."""
    shown = secured.getpeercert(binary_form=True) if secured is not None and principal else None
    names: tuple[str, ...] = ()
    if secured is not None and shown:
        found: Any = secured.getpeercert() or {}
        names = tuple(str(name) for kind, name in found.get("subjectAltName", ()) if kind == "DNS")
    return Peer(
        _address(remote),
        _address(local),
        principal,
        asked_name(secured),
        secured is not None,
        hashlib.sha256(shown).hexdigest() if shown else "",
        dns=names,
    )


def _address(found: object) -> tuple[str, int]:
    """Of `(host, port, …)`; a socket of the file system has neither."""
    if isinstance(found, tuple) and len(found) >= 2:
        return str(found[0]), int(found[1])
    return "", 0
