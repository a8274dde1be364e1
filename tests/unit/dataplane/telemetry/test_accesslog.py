"""The lines of the access log: Envoy's operators, in text and JSON."""

import json
import os

import pytest

from meshlib.core.request import RequestHead
from meshlib.dataplane.telemetry import accesslog
from meshlib.dataplane.telemetry.accesslog import as_json, text
from meshlib.dataplane.telemetry.ended import Ended
from meshlib.xds.accesslog import JSON, PLAIN, TEXT, operators

HEAD = RequestHead(
    "GET", "http", "reviews:9080", "/a?b=c", [(b"User-Agent", b"caf\xe9"), (b"x-a", b"long value")]
)
ENDED = Ended(
    HEAD,
    200,
    1_700_000_000.0425,
    0.0129,
    response={b"x-envoy-upstream-service-time": b"11"},
    upstream="10.0.0.1:80",
    remote="[::1]:4711",
)


@pytest.mark.parametrize(
    ("form", "line"),
    [
        ("%START_TIME%", b"2023-11-14T22:13:20.042Z"),
        ("%REQ(:METHOD)% %REQ(:PATH)% %REQ(:AUTHORITY)% %REQ(:SCHEME)%", b"GET /a?b=c reviews:9080 http"),
        ("%REQ(X-MISSING?X-A)%", b"long value"),
        ("%REQ(X-A):4%", b"long"),
        ("%REQ(X-MISSING)%", b"-"),
        ("%REQ(USER-AGENT)%", b"caf\xe9"),
        ("%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)%", b"11"),
        ("%RESPONSE_CODE%,%RESPONSE_FLAGS%,%DURATION%", b"200,-,12"),
        ("%DOWNSTREAM_REMOTE_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%", b"[::1]:4711 ::1"),
        ("100%% %PROTOCOL%", b"100% HTTP/1.1"),
        ("", b""),
        # The next are what a real Envoy 1.40 wrote.
        ("%REQ_WITHOUT_QUERY(:PATH)% %REQ_WITHOUT_QUERY(X-MISSING?:PATH):2%", b"/a /a"),
        ("%START_TIME(%s)%", b"1700000000"),
        ("%START_TIME(%Y/%m/%dT%H:%M:%S%z %s)%", b"2023/11/14T22:13:20+0000 1700000000"),
        (
            "%START_TIME(%s.%3f)% %START_TIME(%3f %6f %9f %f)%",
            b"%s.042 042 042500 042500000 042500000" % b"1700000000",
        ),
        ("%HOSTNAME%", os.uname().nodename.encode()),
        ("%FILTER_STATE(a:PLAIN)%|%TRACE_ID%|%REQ%", b"-|-|-"),
        ("\N{RIGHTWARDS ARROW} %PROTOCOL%", "\N{RIGHTWARDS ARROW} HTTP/1.1".encode()),
    ],
)
def test_text(form: str, line: bytes) -> None:
    assert text(form)(ENDED) == line


@pytest.mark.parametrize("form", ["%REQ(%", "%REQ(A):x%", "%RESP(A)b%", "50%", "%%%", "% %", "%lower%"])
def test_what_is_no_format_is_refused(form: str) -> None:
    with pytest.raises(ValueError, match="no operator begins"):
        text(form)


def test_json_has_numbers_and_nulls() -> None:
    form = {
        "code": "%RESPONSE_CODE%",
        "missing": "%REQ(X-B)%",
        "both": "%REQ(:METHOD)% %REQ(X-B)%",
        "own": "x",
    }
    line = as_json({**form, "agent": "%REQ(USER-AGENT)%"})(ENDED)
    assert line.endswith(b"}\n")
    assert json.loads(line) == {"code": 200, "missing": None, "both": "GET -", "own": "x", "agent": "café"}


def test_a_header_makes_no_second_line_in_json() -> None:
    head = RequestHead("GET", "http", "a", "/", [(b"user-agent", b'x"\n{"code":1}')])
    line = as_json({"agent": "%REQ(USER-AGENT)%"})(Ended(head, 200, 0.0, 0.0))
    assert line.count(b"\n") == 1
    assert json.loads(line) == {"agent": 'x"\n{"code":1}'}


@pytest.mark.parametrize("value", [b"x\n[2026] GET", b"x\r[2026] GET", b"x\r\n[2026] GET"])
def test_a_header_makes_no_second_line_in_text(value: bytes) -> None:
    head = RequestHead("GET", "http", "a", "/", [(b"user-agent", value)])
    assert text('"%REQ(USER-AGENT)%"\n')(Ended(head, 200, 0.0, 0.0)) == b'"x [2026] GET"\n'


def test_json_may_be_deep_and_leave_out_what_is_empty() -> None:
    form = {
        "b": "%RESPONSE_CODE%",
        "n": {"z": "%BYTES_SENT%", "y": "x %BYTES_SENT%"},
        "list": ["%PROTOCOL%", 1, True, None],
        "num": 1.5,
        "mix": "%REQ(X-MISSING)% x",
        "none": "%REQ(X-MISSING)%",
        "plain": "\N{RIGHTWARDS ARROW}%%",
    }
    whole = {
        "b": 200,
        "n": {"z": 0, "y": "x 0"},
        "list": ["HTTP/1.1", 1, True, None],
        "num": 1.5,
        "mix": "- x",
        "none": None,
        "plain": "\N{RIGHTWARDS ARROW}%",
    }
    assert json.loads(as_json(form)(ENDED)) == whole
    sparse = {name: value for name, value in whole.items() if name != "none"}
    assert json.loads(as_json(form, omit_empty=True)(ENDED)) == {**sparse, "mix": " x"}
    assert text("%REQ(X-MISSING)%|%PROTOCOL%", omit_empty=True)(ENDED) == b"|HTTP/1.1"


def test_the_contract_knows_what_is_written() -> None:
    assert set(accesslog._OPERATORS) == PLAIN
    assert {one.name for one in operators(TEXT)} == {one.name for one in operators(JSON)}
