"""A call that arrives, as a request for the mesh's rules.

Rules:

- It is a POST of `/package.Service/Method` with the metadata as headers. gRPC hides `content-type`, `te` and
  `grpc-timeout` from a server; the rules see what a client must have sent.
- gRPC does not tell every server which authority was asked for. A policy that asks for one that is not known
  has no answer, so the call is refused: nobody is let in, or not kept out, by an authority that may be wrong.
"""

from collections.abc import Iterable
from typing import Any, NoReturn

from meshlib.core.outsiders import is_claim
from meshlib.core.request import Header, RequestHead
from meshlib_grpc.metadata import Metadatum, bytes_of, to_request

HIDDEN = frozenset((b"content-type", b"te", b"grpc-timeout"))
"""What gRPC does not show to a server's handlers."""
_FOREVER = 365 * 86400.0
"""Seconds; a call without a deadline has more."""


class AuthorityUnknown(LookupError):
    """A policy asks for the authority, and gRPC did not say it."""


class _Unknown(str):
    """An authority that is not known: it can be passed on, and is nothing in a text, but is not compared."""

    __slots__ = ()

    def _refuse(self, *_: object) -> NoReturn:
        raise AuthorityUnknown("a policy asks for the host, which gRPC does not tell this server")

    __eq__ = __ne__ = __str__ = __hash__ = __contains__ = _refuse

    def __format__(self, _: str) -> str:
        return ""


UNKNOWN = _Unknown()


def head_of(method: str, authority: str, secure: bool, metadata: Any, left: float | None) -> RequestHead:
    """The request; `left`: seconds that its caller still waits, None: for ever."""
    timeout = left if left is not None and left < _FOREVER else None
    return RequestHead(
        "POST", "https" if secure else "http", authority or UNKNOWN, method, to_request(metadata, timeout)
    )


def tellable(head: RequestHead) -> RequestHead:
    """The same, to be told of: an authority that is not known is empty."""
    if head.authority is not UNKNOWN:
        return head
    return RequestHead(head.method, head.scheme, "", head.path, head.headers)


def given(headers: Iterable[Header]) -> tuple[Metadatum, ...]:
    """What handlers are given of a request's headers."""
    return tuple(
        Metadatum(name.decode("latin-1"), bytes_of(value) if name.endswith(b"-bin") else _text(value))
        for name, value in headers
        if name not in HIDDEN
    )


def believed(details: Any) -> Any:
    """A call's details without what nobody may say of himself, for who sees them too early."""
    metadata = details.invocation_metadata or ()
    kept = tuple(one for one in metadata if one[0][:1] != "x" or not is_claim(one[0].encode(), known=False))
    if len(kept) == len(metadata):
        return details
    return type(details)(details.method, kept)


def _text(value: bytes) -> str | bytes:
    """gRPC gives bytes for what is no text."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value
