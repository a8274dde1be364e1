"""TLS for gRPC's library, which can't be told whom to trust in any words of ours.

gRPC for Python checks a host name and nothing else: not a SPIFFE identity, no list of accounts. Rules:

- Before a channel is made, one handshake of our own finds out who answers, by the same code and rules as for
  every other connection (`dataplane.tls`). It carries no request.
- The channel then trusts that very certificate and no other: it is its only root. So gRPC's own handshake
  proves that the same peer answers, who has the certificate's key. What a name says does not matter any more;
  gRPC wants one, so it is given one that the certificate has.
- A peer with a new certificate is a new channel, and is looked at again, also if it got it between the look
  and gRPC's handshake. So is everyone when our own certificate, the roots or a policy's files have changed.
"""

import asyncio
import contextlib
import socket
import ssl
import time
from typing import NamedTuple

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from meshlib.core.actions import Attempt
from meshlib.core.mtls import ClientTls
from meshlib.core.request import Failed, Failure
from meshlib.dataplane.http import local
from meshlib.dataplane.http.reach import reach
from meshlib.dataplane.http.secure import check, context_for, server_name, shake_hands, shown
from meshlib.dataplane.tls import Contexts, NotTrusted, words
from meshlib.dataplane.tls_session import Session
from meshlib.dataplane.tls_transport import Secured, shaken


class Pinned(NamedTuple):
    """A peer that was looked at."""

    leaf_pem: bytes
    name: str
    """One that is in its certificate."""
    shown: tuple[bytes, bytes] | None
    """Our chain and key."""
    secured: object = None
    """By what TLS it was seen."""

    def credentials(self) -> grpc.ChannelCredentials:
        """By which a channel leads to that peer and to nobody else."""
        chain, key = self.shown or (None, None)
        return grpc.ssl_channel_credentials(self.leaf_pem, key, chain)


def look(attempt: Attempt, tls: ClientTls, contexts: Contexts | None, seconds: float) -> Pinned | Failed:
    """Who answers at the attempt's endpoint, within `seconds`. Blocks."""
    until = time.monotonic() + seconds
    name = server_name(attempt, tls)
    try:
        mine = shown(tls, contexts)
        session = Session(context_for(tls, contexts), name=name)
        with _connect(attempt.at or attempt.address, max(seconds, 1e-4)) as made:
            shake_hands(session, made, until)
            check(tls, contexts, session.tls)
            leaf = session.tls.getpeercert(binary_form=True)
            with contextlib.suppress(OSError):
                made.sendall(session.farewell())
    except (OSError, ValueError) as error:
        return _failed(error, seconds)
    return _pinned(leaf, name, mine)


async def alook(
    attempt: Attempt, tls: ClientTls, contexts: Contexts | None, seconds: float
) -> Pinned | Failed:
    """As `look`, on the event loop."""
    name = server_name(attempt, tls)
    try:
        mine = shown(tls, contexts)
        session = Session(context_for(tls, contexts), name=name)
        secured = Secured(session, asyncio.Protocol(), gathers=False)
        try:
            async with asyncio.timeout(max(seconds, 1e-4)):
                await reach(asyncio.get_running_loop(), secured, attempt, lambda: False)
                await shaken(secured)
            check(tls, contexts, session.tls)
            leaf = session.tls.getpeercert(binary_form=True)
        finally:
            secured.close()
    except (OSError, ValueError) as error:
        return _failed(error, seconds)
    return _pinned(leaf, name, mine)


def _failed(error: OSError | ValueError, seconds: float) -> Failed:
    if isinstance(error, TimeoutError):
        return Failed(Failure.CONNECT_TIMED_OUT, f"no connection within {seconds:g} s", connected=False)
    told = f"TLS: {words(error)}" if isinstance(error, (ssl.SSLError, NotTrusted)) else str(error)
    return Failed(Failure.CONNECT_FAILED, told, connected=False)


def _pinned(leaf: bytes | None, asked: str, mine: tuple[bytes, bytes] | None) -> Pinned | Failed:
    certificate = x509.load_der_x509_certificate(leaf or b"")
    name = _name_in(certificate, asked)
    if not name:
        detail = "TLS: its certificate has no DNS name, and gRPC's library takes none without"
        return Failed(Failure.CONNECT_FAILED, detail, connected=False)
    return Pinned(certificate.public_bytes(Encoding.PEM), name, mine)


def _connect(address: tuple[str, int], seconds: float) -> socket.socket:
    path = local.path_of(address)
    return socket.create_connection(address, seconds) if path is None else local.connect(path, seconds)


def _name_in(certificate: x509.Certificate, asked: str) -> str:
    """A name for which gRPC takes the certificate, the one that was asked for if possible; empty: none."""
    try:
        named = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ""
    names = named.get_values_for_type(x509.DNSName)
    if asked in names:
        return asked
    for one in names:
        return f"any{one[1:]}" if one.startswith("*.") else one
    return next((str(one) for one in named.get_values_for_type(x509.IPAddress)), "")
