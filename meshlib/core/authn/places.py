"""Where tokens stand in a request, and how they are taken out of it (Envoy).

Rules:

- Headers first, then parameters of the query, then cookies, each kind in the order of its names.
- In a header the token is all that follows the prefix, wherever that is. Of several parameters or cookies of
  one name the first counts.
- Cookies stay. A parameter is taken out with all of its name, a header under each spelling of its name.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar
from urllib.parse import unquote_plus

from meshlib.core.authn.provider import Provider
from meshlib.core.request import RequestHead, hyphened
from meshlib.values import dataclass

T = TypeVar("T")
_TOKEN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.")


@dataclass(frozen=True, slots=True)
class Found:
    """A token's text, whose it may be, and how it is taken out of the request."""

    text: str
    issuers: frozenset[str]
    remove: Callable[[RequestHead], RequestHead]

    def may_be_of(self, issuer: str) -> bool:
        return "" in self.issuers or issuer in self.issuers


def find(head: RequestHead, providers: Sequence[Provider]) -> Iterator[Found]:
    """Every token of the providers' places: headers, parameters, cookies, each kind ordered by its names."""
    places = [(f"{at.name.decode()}{at.prefix}", at, one) for one in providers for at in one.headers]
    for (_, place), issuers in _grouped((name, at, one.issuer) for name, at, one in places):
        value = head.header(place.name)
        text = None if value is None else _after(value.decode("latin-1"), place.prefix)
        if text is not None:
            yield Found(text, issuers, functools.partial(_without_header, place.name))
    if "?" in head.path:
        given = _parameters(head.path)
        for (name, _), issuers in _grouped((n, n, one.issuer) for one in providers for n in one.params):
            if name in given:
                yield Found(given[name], issuers, functools.partial(_without_param, name))
    if b"cookie" in head.index:
        baked = _cookies(head)
        for (name, _), issuers in _grouped((n, n, one.issuer) for one in providers for n in one.cookies):
            if name in baked:
                yield Found(baked[name], issuers, _untouched)


def _grouped(places: Iterable[tuple[str, T, str]]) -> list[tuple[tuple[str, T], frozenset[str]]]:
    """Each place once, in the order of its name, with the issuers whose tokens may stand there."""
    found: dict[tuple[str, T], set[str]] = {}
    for name, place, issuer in places:
        found.setdefault((name, place), set()).add(issuer)
    return [(key, frozenset(found[key])) for key in sorted(found, key=lambda key: key[0])]


def _after(value: str, prefix: str) -> str | None:
    """The token in a header: all that follows the prefix, wherever that is; None: it is not there.

    What can't begin a token is skipped (Envoy); what can't stand in one makes it a bad one.
    """
    if not prefix:
        return value
    at = value.find(prefix)
    if at < 0:
        return None
    begin = at + len(prefix)
    while begin < len(value) and value[begin] not in _TOKEN:
        begin += 1
    return value[begin:] or value


def _parameters(path: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for part in path.partition("?")[2].split("&"):
        name, _, value = part.partition("=")
        found.setdefault(unquote_plus(name), unquote_plus(value))
    return found


def _untouched(head: RequestHead) -> RequestHead:
    return head  # Envoy leaves cookies as they are


def _without_header(name: bytes, head: RequestHead) -> RequestHead:
    return without(head, frozenset((hyphened(name),)))


def _without_param(name: str, head: RequestHead) -> RequestHead:
    bare, _, query = head.path.partition("?")
    kept = [part for part in query.split("&") if unquote_plus(part.partition("=")[0]) != name]
    path = f"{bare}?{'&'.join(kept)}" if kept else bare
    return RequestHead(head.method, head.scheme, head.authority, path, head.headers)


def _cookies(head: RequestHead) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in head.headers:
        if name.lower() == b"cookie":
            for part in value.decode("latin-1").split(";"):
                key, equals, text = part.strip().partition("=")
                if equals:
                    found.setdefault(key, text.strip('"') if text[:1] == text[-1:] == '"' else text)
    return found


def without(head: RequestHead, names: frozenset[bytes]) -> RequestHead:
    """The request without headers of these names, which are `hyphened`, in any spelling."""
    kept = [header for header in head.headers if hyphened(header[0]) not in names]
    if len(kept) == len(head.headers):
        return head
    return RequestHead(head.method, head.scheme, head.authority, head.path, kept)
