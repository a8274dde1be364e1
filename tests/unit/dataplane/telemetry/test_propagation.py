"""Which headers tell of a span, and how one is told."""

import pytest

from meshlib.core.request import RequestHead
from meshlib.dataplane.telemetry.propagation import SpanId, carrying, extract, formats, inject

TRACE, SPAN = 0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331
T, S = b"0af7651916cd43dd8448eb211c80319c", b"b7ad6b7169203331"
SAMPLED, NOT = SpanId(TRACE, SPAN, True), SpanId(TRACE, SPAN, False)
SHORT = SpanId(0x8448EB211C80319C, SPAN, True)


@pytest.mark.parametrize(
    ("headers", "found"),
    [
        ({b"traceparent": b"00-%b-%b-01" % (T, S)}, SAMPLED),
        ({b"traceparent": b"00-%b-%b-00" % (T, S)}, NOT),
        ({b"traceparent": b"00-%b-%b-02" % (T, S)}, NOT),
        ({b"traceparent": b"00-%b-%b-03" % (T, S)}, SAMPLED),
        ({b"traceparent": b" 00-%b-%b-01 " % (T, S)}, SAMPLED),
        ({b"traceparent": b"01-%b-%b-01-what-comes" % (T, S)}, SAMPLED),
        ({b"traceparent": b"00-%b-%b-01-more" % (T, S)}, None),
        ({b"traceparent": b"ff-%b-%b-01" % (T, S)}, None),
        ({b"traceparent": b"00-%b-%b-01" % (T.upper(), S)}, None),
        ({b"traceparent": b"00-%b-%b-01" % (b"0" * 32, S)}, None),
        ({b"traceparent": b"00-%b-%b-01" % (T, b"0" * 16)}, None),
        ({b"traceparent": b"00-%b-%b-1" % (T, S)}, None),
        ({b"traceparent": b"00-%b-%b-zz" % (T, S)}, None),
        ({b"traceparent": b"00-%b-%b-01" % (T[16:], S)}, None),
        ({b"traceparent": b"00-%b-%b" % (T, S)}, None),
        ({b"traceparent": b""}, None),
        (
            {b"traceparent": b"00-%b-%b-01" % (T, S), b"tracestate": b"a=1,b=2"},
            SpanId(TRACE, SPAN, True, "a=1,b=2"),
        ),
        ({b"traceparent": b"00-%b-%b-01" % (T, S), b"tracestate": b"a=" + b"x" * 9000}, SAMPLED),
        ({b"tracestate": b"a=1"}, None),
        ({b"b3": b"%b-%b-1" % (T, S)}, SAMPLED),
        ({b"b3": b"%b-%b-d" % (T, S)}, SAMPLED),
        ({b"b3": b"%b-%b-0" % (T, S)}, NOT),
        ({b"b3": b"%b-%b" % (T, S)}, NOT),
        ({b"b3": b"%b-%b-1-%b" % (T, S, S)}, SAMPLED),
        ({b"b3": b"%b-%b-1" % (T[16:], S)}, SHORT),
        ({b"b3": b"%b-%b-1" % (T.upper(), S.upper())}, SAMPLED),
        ({b"b3": b"0"}, None),
        ({b"b3": b"1"}, None),
        ({b"b3": b"%b-%b-1-%b-x" % (T, S, S)}, None),
        ({b"x-b3-traceid": T, b"x-b3-spanid": S, b"x-b3-sampled": b"1"}, SAMPLED),
        ({b"x-b3-traceid": T, b"x-b3-spanid": S, b"x-b3-sampled": b"true"}, SAMPLED),
        ({b"x-b3-traceid": T, b"x-b3-spanid": S, b"x-b3-flags": b"1"}, SAMPLED),
        ({b"x-b3-traceid": T, b"x-b3-spanid": S}, NOT),
        ({b"x-b3-traceid": T}, None),
        ({b"x-b3-traceid": b"none", b"x-b3-spanid": S}, None),
        ({b"traceparent": b"broken", b"b3": b"%b-%b-1" % (T, S)}, SAMPLED),
        ({b"traceparent": b"00-%b-%b-00" % (T, S), b"b3": b"%b-%b-1" % (T[16:], S)}, NOT),
        ({}, None),
    ],
)
def test_extract(headers: dict[bytes, bytes], found: SpanId | None) -> None:
    assert extract(headers) == found


@pytest.mark.parametrize(
    ("wanted", "headers"),
    [
        (("tracecontext",), [(b"traceparent", b"00-%b-%b-01" % (T, S)), (b"tracestate", b"a=1")]),
        (("b3",), [(b"b3", b"%b-%b-1-00000000000000ff" % (T, S))]),
        (
            ("b3multi",),
            [
                (b"x-b3-traceid", T),
                (b"x-b3-spanid", S),
                (b"x-b3-sampled", b"1"),
                (b"x-b3-parentspanid", b"00000000000000ff"),
            ],
        ),
        ((), []),
    ],
)
def test_inject(wanted: tuple[str, ...], headers: list[tuple[bytes, bytes]]) -> None:
    assert inject(SpanId(TRACE, SPAN, True, "a=1"), wanted, 0xFF) == headers


@pytest.mark.parametrize("wanted", ["tracecontext", "b3", "b3multi"])
@pytest.mark.parametrize("span", [SAMPLED, NOT, SHORT, SpanId(1, 1, False)])
def test_what_is_injected_is_extracted(wanted: str, span: SpanId) -> None:
    assert extract(dict(inject(span, (wanted,)))) == span


def test_a_span_replaces_all_that_told_of_spans_before() -> None:
    names = ("traceparent", "TraceState", "b3", "X-B3-TraceId", "x-b3-spanid", "x-b3-flags", "x-request-id")
    head = RequestHead("GET", "http", "a", "/", [(name.encode(), b"x") for name in names])
    assert carrying(head, [(b"b3", b"y")]).headers == [(b"x-request-id", b"x"), (b"b3", b"y")]


@pytest.mark.parametrize(
    ("said", "found"),
    [
        (None, ("tracecontext",)),
        ("tracecontext,baggage", ("tracecontext",)),
        ("b3multi, b3,b3", ("b3multi", "b3")),
        ("none", ()),
        ("jaeger", ()),
    ],
)
def test_formats(said: str | None, found: tuple[str, ...]) -> None:
    assert formats(said) == found
