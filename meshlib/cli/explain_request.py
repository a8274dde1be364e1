"""The request that `meshlib explain` is asked about: from arguments to a head and the name to look up.

The URL is what httpx makes of it: dot segments resolved, escaped where it must be, the host in lower case
and without the scheme's own port. Nothing is added to what was written: a header that a real client would
send, such as user-agent, counts only if it is given.
"""

import string
from collections.abc import Iterable

import httpx
import typer

from meshlib.core.request import RequestHead
from meshlib.identity.spiffe import SCHEME, SpiffeId
from meshlib.xds.names import split_authority

PORTS = {"http": 80, "https": 443}
_TOKEN = frozenset(string.ascii_letters + string.digits + "!#$%&'*+-.^_`|~")
"""What a method and the name of a header are made of (RFC 9110, 5.6.2)."""


def parse_request(words: list[str], headers: Iterable[str]) -> tuple[RequestHead, str, int]:
    """The head, host and port of `[METHOD] URL` and of `name: value` headers.

    BadParameter: not one or two words, not an http URL, or a header that could not be sent.
    """
    if len(words) > 2:
        raise typer.BadParameter(f"{' '.join(words[2:])!r} is too much", param_hint="[METHOD] URL")
    method, url = words if len(words) == 2 else ("GET", words[0])
    if not method or not _TOKEN.issuperset(method):
        raise typer.BadParameter(f"{method!r} is no method", param_hint="METHOD")
    asked = _url(url)
    port = asked.port or PORTS[asked.scheme]
    authority, host = asked.netloc.decode("ascii"), asked.raw_host.decode("ascii")
    pairs = [_header(text) for text in headers]
    named = next((value.decode() for name, value in pairs if name.lower() == b"host"), "")
    if named:  # as a client does: the name is the Host header's, the port the URL's
        authority, host = named, split_authority(named, port)[0]
    kept = [pair for pair in pairs if pair[0].lower() != b"host"]
    path = asked.raw_path.decode("ascii")
    return RequestHead(method.upper(), asked.scheme, authority, path, kept), host, port


def parse_identity(text: str | None) -> tuple[str, str]:
    """Namespace and service account of `NAMESPACE/ACCOUNT`; both `default` if there is none."""
    if text is None:
        return "default", "default"
    namespace, slash, account = text.partition("/")
    if not slash or not namespace or not account or "/" in account:
        raise typer.BadParameter(f"{text!r} is not NAMESPACE/ACCOUNT", param_hint="--from")
    return namespace, account


def parse_caller(text: str | None, trust_domain: str) -> str:
    """The `spiffe://…` of a caller: itself, or NAMESPACE/ACCOUNT of that trust domain, which may be empty
    for Istio's own, `cluster.local`. Without a text it is empty, for nobody.
    """
    if text is None:
        return ""
    try:
        if text[: len(SCHEME)].lower() == SCHEME:
            return str(SpiffeId.parse(text))
        return str(SpiffeId.of(trust_domain or "cluster.local", *parse_identity(text)))
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--from") from None


def parse_labels(texts: Iterable[str]) -> dict[str, str]:
    """Labels of `k=v` texts."""
    found: dict[str, str] = {}
    for text in texts:
        key, sign, value = text.partition("=")
        if not sign or not key:
            raise typer.BadParameter(f"{text!r} is not k=v", param_hint="--label")
        found[key] = value
    return found


def _url(text: str) -> httpx.URL:
    try:
        url = httpx.URL(text)
    except (httpx.InvalidURL, ValueError) as error:
        raise typer.BadParameter(f"{text!r}: {error}", param_hint="URL") from None
    if url.scheme not in PORTS or not url.host:
        raise typer.BadParameter(f"{text!r} is no URL that begins with http:// or https://", param_hint="URL")
    if url.port is not None and not 0 < url.port < 65536:
        raise typer.BadParameter(f"{text!r}: {url.port} is no port", param_hint="URL")
    return url


def _header(text: str) -> tuple[bytes, bytes]:
    name, colon, value = text.partition(":")
    if not colon or not name:
        raise typer.BadParameter(f"{text!r} is not 'name: value'", param_hint="-H")
    value = value.strip(" \t")
    if not _TOKEN.issuperset(name):
        raise typer.BadParameter(f"{name!r} can't be the name of a header", param_hint="-H")
    if any((character < " " and character != "\t") or character == "\x7f" for character in value):
        raise typer.BadParameter(f"{text!r} holds a control character, such as a line end", param_hint="-H")
    if name.lower() == "host" and any(not "!" <= character <= "~" for character in value):
        raise typer.BadParameter(f"{value!r} is no host", param_hint="-H")
    # What the shell gave in other bytes than UTF-8 goes on as these bytes.
    return name.encode(), value.encode("utf-8", "surrogateescape")
