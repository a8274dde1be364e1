"""The lines of the access log: Envoy's operators, in text and JSON, and where lines go."""

import json
import os
from pathlib import Path

import pytest

from meshlib.core.request import RequestHead
from meshlib.dataplane.telemetry.accesslog import Log, as_json, text
from meshlib.dataplane.telemetry.ended import Ended
from meshlib.errors import ConfigError

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
    ],
)
def test_text(form: str, line: bytes) -> None:
    assert text(form)(ENDED) == line


@pytest.mark.parametrize("form", ["%WHAT%", "%REQ(%", "%REQ(A):x%", "%RESP(A)b%", "%START_TIME(%s)%", "50%"])
def test_what_is_no_format_is_refused(form: str) -> None:
    with pytest.raises(ConfigError, match="access log"):
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


def test_a_log_is_appended_to(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("before\n")
    for _ in range(2):
        Log(str(path), text("%RESPONSE_CODE%\n")).write(ENDED)
    assert path.read_text() == "before\n200\n200\n"


def test_a_log_that_can_not_be_opened_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none" / "log"):
        with pytest.raises(ConfigError, match="access_log"):
            Log(str(path), text())


def test_a_log_that_breaks_warns_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = Log("/dev/full", text())
    for _ in range(3):
        log.write(ENDED)
    assert [record.message for record in caplog.records] == [
        f"the access log /dev/full can't be written: {os.strerror(28)}"
    ]
