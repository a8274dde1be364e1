"""The headers by which spans of several processes become one trace: W3C Trace Context and B3, both forms.

Rules:

- What came in decides what is understood: traceparent first, then `b3`, then `x-b3-…`. What goes out is what
  OTEL_PROPAGATORS names (`tracecontext`, `b3`, `b3multi`; `tracecontext` by default).
- A header that is not as its specification says counts as absent; ids of nothing but zeros are none.
- A span that takes over a request replaces all of these headers: two of them must not tell two stories.
"""

from collections.abc import Mapping
from typing import NamedTuple

from meshlib.core.request import Header, RequestHead

TRACEPARENT, TRACESTATE, B3 = b"traceparent", b"tracestate", b"b3"
B3_TRACE, B3_SPAN, B3_SAMPLED = b"x-b3-traceid", b"x-b3-spanid", b"x-b3-sampled"
B3_PARENT, B3_FLAGS = b"x-b3-parentspanid", b"x-b3-flags"
OF_SPANS = frozenset((TRACEPARENT, TRACESTATE, B3, B3_TRACE, B3_SPAN, B3_SAMPLED, B3_PARENT, B3_FLAGS))
FORMATS = ("tracecontext", "b3", "b3multi")
_HEX = frozenset(b"0123456789abcdef")
_MOST_STATE = 8 * 1024


class SpanId(NamedTuple):
    """A span of another process."""

    trace: int
    """128 bits."""
    span: int
    """64 bits."""
    sampled: bool
    state: str = ""
    """W3C's tracestate, as it came."""


def formats(propagators: str | None) -> tuple[str, ...]:
    """What OTEL_PROPAGATORS says of these formats, in its order; None: it is not set."""
    if propagators is None:
        return FORMATS[:1]
    named = [name.strip() for name in propagators.split(",")]
    return tuple(dict.fromkeys(name for name in named if name in FORMATS))


def extract(index: Mapping[bytes, bytes]) -> SpanId | None:
    """The span that headers (by lower-case name) tell of."""
    said = index.get(TRACEPARENT)
    if said is not None and (found := _traceparent(said, index.get(TRACESTATE, b""))) is not None:
        return found
    said = index.get(B3)
    if said is not None and (found := _b3(said)) is not None:
        return found
    if B3_TRACE in index and B3_SPAN in index:
        sampled = index.get(B3_SAMPLED, b"").lower() in (b"1", b"true") or index.get(B3_FLAGS) == b"1"
        return _made(index[B3_TRACE].lower(), index[B3_SPAN].lower(), sampled)
    return None


def _traceparent(text: bytes, state: bytes) -> SpanId | None:
    parts = text.strip().split(b"-")
    if len(parts) < 4 or len(parts[0]) != 2 or parts[0] == b"ff" or not _HEX.issuperset(parts[0]):
        return None
    # A later version may have more parts; version 00 has four.
    if (parts[0] == b"00" and len(parts) != 4) or len(parts[1]) != 32:
        return None
    if len(parts[3]) != 2 or not _HEX.issuperset(parts[3]):
        return None
    kept = state.decode("latin-1") if len(state) <= _MOST_STATE else ""
    return _made(parts[1], parts[2], bool(int(parts[3], 16) & 1), kept)


def _b3(text: bytes) -> SpanId | None:
    parts = text.strip().lower().split(b"-")
    if not 2 <= len(parts) <= 4:
        return None
    return _made(parts[0], parts[1], len(parts) > 2 and parts[2] in (b"1", b"d"))


def _made(trace: bytes, span: bytes, sampled: bool, state: str = "") -> SpanId | None:
    if len(trace) not in (16, 32) or len(span) != 16 or not _HEX.issuperset(trace + span):
        return None
    made = SpanId(int(trace, 16), int(span, 16), sampled, state)
    return made if made.trace and made.span else None


def inject(span: SpanId, wanted: tuple[str, ...], parent: int = 0) -> list[Header]:
    """The headers that tell of a span; `parent`: the span above it in the trace, 0: there is none."""
    trace, own = b"%032x" % span.trace, b"%016x" % span.span
    made: list[Header] = []
    for name in wanted:
        if name == "tracecontext":
            made.append((TRACEPARENT, b"00-%b-%b-%02x" % (trace, own, span.sampled)))
            if span.state:
                made.append((TRACESTATE, span.state.encode("latin-1", "replace")))
        elif name == "b3":
            tail = b"-%016x" % parent if parent else b""
            made.append((B3, b"%b-%b-%d%b" % (trace, own, span.sampled, tail)))
        else:
            made += [(B3_TRACE, trace), (B3_SPAN, own), (B3_SAMPLED, b"%d" % span.sampled)]
            if parent:
                made.append((B3_PARENT, b"%016x" % parent))
    return made


def carrying(head: RequestHead, headers: list[Header]) -> RequestHead:
    """The request with these headers instead of all that tell of spans."""
    kept = head.headers
    if not OF_SPANS.isdisjoint(head.index):
        kept = [header for header in kept if header[0].lower() not in OF_SPANS]
    return RequestHead(head.method, head.scheme, head.authority, head.path, kept + headers)
