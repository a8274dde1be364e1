"""What a caller may not say of itself: headers that are removed, and those that the mesh sets.

Rules:

- `x-forwarded-client-cert` is of mesh peers only. To what one sent is added who it is itself, as its
  certificate says (Envoy's APPEND_FORWARD with `By`, `Hash`, `Subject`, `URI`, `DNS`); of everybody else
  it is removed.
- `x-envoy-*` and the metadata that sidecars exchange are believed of mesh peers. Envoy believes them of
  internal addresses; here an address proves nothing. Kept of everybody is how long the caller waits: it
  can only shorten its own request.
- A name with an underscore counts as the name with a hyphen: to WSGI and CGI they are one.
"""

import functools

from meshlib.core.request import Header, Peer, RequestHead

XFCC = b"x-forwarded-client-cert"
_BELIEVED = frozenset((b"x-envoy-expected-rq-timeout-ms",))
_FIRST = (b"x", b"X")
_PREFIXES = (b"x-envoy-", b"x-istio-")


def told(head: RequestHead, peer: Peer, own: str) -> RequestHead:
    """The request without what its caller may not say; `own`: the `spiffe://…` of this workload."""
    headers = _without_claims(head.headers, known=bool(peer.principal))
    if not peer.principal:
        if headers is head.headers:
            return head
        return RequestHead(head.method, head.scheme, head.authority, head.path, headers)
    before = [value for name, value in headers if name.lower() == XFCC]
    kept = [header for header in headers if header[0].lower() != XFCC] if before else headers
    value = b",".join((*before, certified(peer, own)))
    return RequestHead(head.method, head.scheme, head.authority, head.path, [*kept, (XFCC, value)])


def _without_claims(headers: list[Header], *, known: bool) -> list[Header]:
    """Headers that may stay; the same list, if all may."""
    kept = [header for header in headers if not _is_claim(header[0], known=known)]
    return headers if len(kept) == len(headers) else kept


def _is_claim(name: bytes, *, known: bool) -> bool:
    if name[:1] not in _FIRST:
        return False
    lower = name.lower()
    plain = lower.replace(b"_", b"-") if b"_" in lower else lower
    if plain == XFCC:
        return not known or lower != plain
    if not plain.startswith(_PREFIXES):
        return False
    return lower != plain or (not known and plain not in _BELIEVED)


@functools.lru_cache(maxsize=1024)
def certified(peer: Peer, own: str) -> bytes:
    """The element of `x-forwarded-client-cert` that says who the peer is."""
    parts = [f"By={own}"] if own else []
    if peer.fingerprint:
        parts.append(f"Hash={peer.fingerprint}")
    parts.append(f'Subject="{peer.subject}"')
    parts.append(f"URI={peer.principal}")
    parts += [f"DNS={name}" for name in peer.dns]
    return ";".join(parts).encode("latin-1", "replace")


def client_address(head: RequestHead) -> str:
    """The client's IP as the last proxy says it; empty: it says nothing that is one.

    Envoy does the same where it is no edge (`use_remote_address` false, no trusted hops). Whoever can
    reach the port can say so: a policy on remoteIpBlocks is as good as the proxy before the port.
    """
    said = head.header(b"x-forwarded-for")
    if said is None:
        return ""
    return said.rpartition(b",")[2].strip().decode("latin-1")
