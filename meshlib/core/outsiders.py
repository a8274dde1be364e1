"""What a caller may not say of itself: headers that are removed, and those that the mesh sets.

Rules:

- `x-forwarded-client-cert` is of mesh peers only. To what one sent is added who it is itself, as its
  certificate says (Envoy's APPEND_FORWARD with `By`, `Hash`, `Subject`, `URI`, `DNS`); of everybody else
  it is removed.
- `x-envoy-*` is believed of mesh peers. Envoy believes it of internal addresses; here an address proves
  nothing. Kept of everybody is how long the caller waits: it can only shorten its own request.
- The metadata that sidecars exchange is for telemetry; no application is given it (Istio, peer_metadata).
- A name with an underscore counts as the name with a hyphen: to WSGI and CGI they are one.
"""

import functools

from meshlib.core.request import Peer, RequestHead

XFCC = b"x-forwarded-client-cert"
_BELIEVED = frozenset((b"x-envoy-expected-rq-timeout-ms",))
_EXCHANGED = frozenset((b"x-envoy-peer-metadata", b"x-envoy-peer-metadata-id"))
_PREFIXES = (b"x-envoy-", b"x-istio-")


def told(head: RequestHead, peer: Peer, own: str) -> RequestHead:
    """The request without what its caller may not say; `own`: the `spiffe://…` of this workload."""
    known, index = bool(peer.principal), head.index
    gone = {name for name in index if name[:1] == b"x" and is_claim(name, known=known)}
    value = certified(peer, own) if known else b""
    if known and XFCC in index:
        gone.add(XFCC)
        value = index[XFCC] + b"," + value
    if gone:
        kept = [header for header in head.headers if header[0].lower() not in gone]
        head = RequestHead(head.method, head.scheme, head.authority, head.path, kept)
    return head.plus([(XFCC, value)]) if known else head


def is_claim(name: bytes, *, known: bool) -> bool:
    """Of a name in lower case."""
    plain = name.replace(b"_", b"-")
    if plain == XFCC:
        return not known or name != plain
    if not plain.startswith(_PREFIXES):
        return False
    return name != plain or plain in _EXCHANGED or (not known and plain not in _BELIEVED)


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
    said = head.index.get(b"x-forwarded-for")
    if said is None:
        return ""
    return said.rpartition(b",")[2].strip().decode("latin-1")
