"""What TLS means for a connection of a pool: where it leads, by which context, and who answered.

Both kinds of I/O use it: they shake hands, everything else is here.
"""

import ssl
from collections.abc import Callable

from meshlib.core.actions import Attempt
from meshlib.core.mtls import ClientTls
from meshlib.dataplane.http.pool import Address
from meshlib.dataplane.tls import Contexts
from meshlib.xds.names import split_authority

MakeContexts = Callable[[], Contexts | None]


def no_contexts() -> None:
    """Of a client without a mesh identity."""


def address_of(attempt: Attempt) -> Address:
    """What an idle connection must be for, to be used for this attempt."""
    tls = attempt.tls
    return attempt.address, tls, server_name(attempt, tls) if tls is not None else ""


def server_name(attempt: Attempt, tls: ClientTls) -> str:
    """The SNI: the policy's own, else the request's host; empty if that is no name (RFC 6066, 3)."""
    name = tls.sni or split_authority(attempt.head.authority, 0)[0]
    plain = name.replace(".", "")
    return "" if ":" in name or not name.isascii() or plain.isdecimal() else name


def context_for(tls: ClientTls, contexts: Contexts | None) -> ssl.SSLContext:
    """The context to shake hands with. OSError: there is none."""
    if contexts is None:
        raise OSError("the endpoint asks for TLS, and this process has no identity in the mesh")
    return contexts.client(tls)


def check(
    tls: ClientTls, contexts: Contexts | None, connection: "ssl.SSLSocket | ssl.SSLObject | None"
) -> str:
    """Who answered. OSError: nobody that may."""
    if contexts is None or connection is None:
        raise OSError("the connection is not encrypted")
    return contexts.check(tls, connection)
