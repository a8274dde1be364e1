"""The only HTTP that core knows: heads, and what became of an attempt.

Header names and values are bytes, as the application wrote them; core never rewrites one it was
not told to. Lookups go by lower-case name.
"""

from collections.abc import Iterable, Sequence
from dataclasses import field
from enum import Enum
from operator import itemgetter
from typing import NamedTuple, Protocol

from meshlib.values import dataclass

Header = tuple[bytes, bytes]
_VALUE = itemgetter(1)


class Dice(Protocol):
    """A source of chance: `random.Random` fits; tests load it."""

    def random(self) -> float:
        """A number in [0, 1)."""
        ...


_PSEUDO = {
    b":method": "method",
    b":scheme": "scheme",
    b":authority": "authority",
    b"host": "authority",
    b":path": "path",
}


class RequestHead:
    """Method, target and headers of one request. Immutable, but for the flow that owns it (`extend`).

    `authority` is what the Host header says (with port, if the application gave one), `path` the
    path with its query, beginning with `/`. `headers` holds no `host`.
    """

    __slots__ = ("_index", "authority", "headers", "method", "path", "scheme")

    def __init__(
        self,
        method: str,
        scheme: str,
        authority: str,
        path: str,
        headers: Iterable[Header] = (),
        index: dict[bytes, bytes] | None = None,
    ) -> None:
        """`index` is its own, of whoever knows it; None: it is made at the first look."""
        self.method = method
        self.scheme = scheme
        self.authority = authority
        self.path = path
        self.headers = headers if isinstance(headers, list) else list(headers)
        self._index = index

    @classmethod
    def sent(
        cls, method: str, scheme: str, authority: str, path: str, headers: list[Header]
    ) -> "RequestHead":
        """Of all headers that an application sends, which are the request's from now on: its Host, if it has
        one that says something, stands for `authority`.
        """
        names = [name.lower() for name, _ in headers]
        while b"host" in names:
            place = names.index(b"host")
            del names[place]
            authority = headers.pop(place)[1].decode("latin-1") or authority
        made = cls(method, scheme, authority, path, headers)
        index = dict(zip(names, map(_VALUE, headers), strict=True))
        if len(index) == len(headers):
            made._index = index
        return made

    def header(self, name: bytes) -> bytes | None:
        """The value of a header by lower-case name, several joined with a comma as Envoy does; or None.

        The pseudo-headers `:method`, `:authority`, `:path` and `:scheme` work too, and `host` is
        `:authority`.
        """
        index = self._index
        found = (self.index if index is None else index).get(name)
        if found is None and name in _PSEUDO:
            return str(getattr(self, _PSEUDO[name])).encode("latin-1")
        return found

    @property
    def index(self) -> dict[bytes, bytes]:
        """All headers by lower-case name, without pseudo-headers; made at the first look."""
        index = self._index
        if index is None:
            index = {name.lower(): value for name, value in self.headers}
            if len(index) < len(self.headers):
                index = _joined(self.headers)
            self._index = index
        return index

    def extend(self, added: Sequence[Header]) -> None:
        """Adds headers, whose names are in lower case and not in it yet, in place: only for its owner."""
        self.headers = [*self.headers, *added]
        if self._index is not None:
            self._index.update(added)

    def plus(self, added: Iterable[Header]) -> "RequestHead":
        """This request with further headers, whose names are in lower case and not in it yet."""
        headers = [*self.headers, *added]
        return RequestHead(self.method, self.scheme, self.authority, self.path, headers)

    def __repr__(self) -> str:
        return f"<{self.method} {self.scheme}://{self.authority}{self.path}, {len(self.headers)} headers>"


def hyphened(name: bytes) -> bytes:
    """A header's name as WSGI and CGI see it, who make no difference between `X-User` and `x_user`."""
    return name.lower().replace(b"_", b"-")


def _joined(headers: list[Header]) -> dict[bytes, bytes]:
    index: dict[bytes, bytes] = {}
    for name, value in headers:
        key = name.lower()
        index[key] = index[key] + b"," + value if key in index else value
    return index


@dataclass(frozen=True, slots=True)
class Peer:
    """The other end of an inbound connection, as the connection itself shows it; never from a header."""

    address: tuple[str, int]
    """IP address and port of the TCP peer."""
    local: tuple[str, int]
    """IP address and port at which it arrived."""
    principal: str = ""
    """The URI name of its verified certificate, `spiffe://…`; empty: plain text, or none was shown."""
    sni: str = ""
    tls: bool = False
    fingerprint: str = ""
    """SHA-256 of its certificate (DER), in hex; empty: it is not known."""
    subject: str = ""
    """Of its certificate, as RFC 2253 writes it."""
    dns: tuple[str, ...] = ()
    """The certificate's DNS names."""
    names: tuple[bytes, ...] = field(init=False, compare=False, repr=False)
    """By which the certificate names it, the URI first, its subject last; none: plain text."""

    def __post_init__(self) -> None:
        named = (self.principal, *self.dns, self.subject) if self.principal else ()
        object.__setattr__(self, "names", tuple(name.encode() for name in named))


class ResponseHead(NamedTuple):
    """Status and headers of a response."""

    status: int
    headers: tuple[Header, ...] = ()

    def header(self, name: bytes) -> bytes | None:
        """The first value of a header by lower-case name, or None."""
        return next((value for key, value in self.headers if key.lower() == name), None)


class Failure(Enum):
    """How an attempt ended without a response."""

    CONNECT_FAILED = "no connection"
    CONNECT_TIMED_OUT = "no connection within the connect timeout"
    RESET_BEFORE_REQUEST = "connection lost before the request was on its way"
    RESET = "connection lost before response headers"
    BROKEN_OFF = "connection lost before the end of the response"
    """Its head had come."""
    REFUSED_STREAM = "the peer refused the stream unprocessed"
    REMOTE_RESET = "the peer reset the stream before response headers"
    TRY_TIMED_OUT = "no response within the time of one try"
    TIMED_OUT = "no response within the time of the route"
    PROTOCOL = "the peer does not speak the protocol"
    OVERFLOW = "too many requests wait for a connection, or have one"


@dataclass(frozen=True, slots=True)
class Failed:
    """An attempt without a response: how, and the transport's own words."""

    how: Failure
    detail: str = ""
    connected: bool = True
    """False: there was no connection yet."""


Outcome = ResponseHead | Failed
"""What became of an attempt."""
