"""What of a request is hashed, so that one key goes to one endpoint.

Rules (Envoy, HashPolicyImpl):
* Several values of a header are hashed in their order as sorted, each with the hash before as its seed.
* Of several policies each rotates what was found before by one bit and is added to it (exclusive or);
  after a terminal one nothing more is looked at once there is a hash.
* A cookie with a time to live that the request does not bring is made, and counts already.
* No policy finds anything: there is no key, and the endpoint is any.
* What is hashed is the request as it is sent, after the edits of its route. All its tries have one key.

The source address is that of a sidecar's downstream: the last of x-forwarded-for, or this process's own.
"""

from collections.abc import Sequence

from xxhash import xxh64_intdigest

from meshlib.core.headers import ONE_PLACE, one_value
from meshlib.core.request import Dice, Header, RequestHead
from meshlib.values import dataclass

_WORD = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class HashHeader:
    """The values of a header, by lower-case name."""

    name: bytes
    terminal: bool = False


@dataclass(frozen=True, slots=True)
class HashCookie:
    """The value of a cookie. `ttl` (seconds) says that it is made if it is missing; 0: for a session."""

    name: bytes
    ttl: int | None = None
    path: bytes = b""
    attributes: tuple[tuple[bytes, bytes], ...] = ()
    terminal: bool = False


@dataclass(frozen=True, slots=True)
class HashSource:
    """The caller's address."""

    terminal: bool = False


@dataclass(frozen=True, slots=True)
class HashQuery:
    """The first value of a query parameter."""

    name: bytes
    terminal: bool = False


HashPolicy = HashHeader | HashCookie | HashSource | HashQuery


def key_of(
    policies: Sequence[HashPolicy], head: RequestHead, own_address: str, dice: Dice
) -> tuple[int | None, tuple[Header, ...]]:
    """The key of a request, None: it has none; and the set-cookie headers of its response."""
    key: int | None = None
    cookies: list[Header] = []
    for policy in policies:
        found: bytes | None = None
        match policy:
            case HashHeader(name):
                new = _hash_header(head, name)
            case HashCookie():
                found = cookie_value(head, policy.name) or None
                if found is None and policy.ttl is not None:
                    found = b"%016x" % int(dice.random() * (1 << 53))
                    cookies.append((b"set-cookie", _set_cookie(policy, found)))
                new = None if found is None else xxh64_intdigest(found)
            case HashSource():
                new = key_of_source(_source(head, own_address))
            case HashQuery(name):
                found = _parameter(head.path, name)
                new = None if found is None else xxh64_intdigest(found)
        if new is not None:
            key = new if key is None else (key << 1 & _WORD | key >> 63) ^ new
        if policy.terminal and key is not None:
            break
    return key, tuple(cookies)


def key_of_source(address: str) -> int | None:
    """The key of a connection of plain TCP; None: it is not known from where."""
    return xxh64_intdigest(address.encode()) if address else None


def _hash_header(head: RequestHead, name: bytes) -> int | None:
    values = [value for key, value in head.headers if key.lower() == name]
    if not values:
        pseudo = head.header(name)
        return None if pseudo is None else xxh64_intdigest(pseudo)
    if name in ONE_PLACE:
        return xxh64_intdigest(one_value(head, name) or b"")
    seed = 0
    for value in sorted(values):
        seed = xxh64_intdigest(value, seed)
    return seed


def cookie_value(head: RequestHead, name: bytes) -> bytes:
    """The value of the first cookie of that name, without quotes; empty: there is none."""
    for key, value in head.headers:
        if key.lower() != b"cookie":
            continue
        for part in value.split(b";"):
            own, equals, found = part.partition(b"=")
            if equals and own.lstrip(b" ") == name:
                quoted = len(found) >= 2 and found[:1] == found[-1:] == b'"'
                return found[1:-1] if quoted else found
    return b""


def _set_cookie(policy: HashCookie, value: bytes) -> bytes:
    parts = [b'%s="%s"' % (policy.name, value)]
    if policy.ttl:
        parts.append(b"Max-Age=%d" % policy.ttl)
    if policy.path:
        parts.append(b"Path=" + policy.path)
    parts += [name + b"=" + own if own else name for name, own in policy.attributes]
    return b"; ".join([*parts, b"HttpOnly"])


def _source(head: RequestHead, own_address: str) -> str:
    forwarded = head.header(b"x-forwarded-for")
    if forwarded is not None:
        from ipaddress import ip_address  # half a millisecond that few need

        try:
            return str(ip_address(forwarded.rpartition(b",")[2].strip().decode("latin-1")))
        except ValueError:
            pass
    return own_address


def _parameter(path: str, name: bytes) -> bytes | None:
    query = path.encode("latin-1").partition(b"?")[2]
    for part in query.split(b"&") if query else ():
        own, _, value = part.partition(b"=")
        if own == name:
            return value
    return None
