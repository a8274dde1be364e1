"""Where lines go: the application's own setting, and what configuration may have written, and may not."""

import os
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from meshlib.bootstrap import bootstrap
from meshlib.core.request import RequestHead
from meshlib.core.telemetry import AccessLog, Telling
from meshlib.core.view import View
from meshlib.dataplane.telemetry import logs
from meshlib.dataplane.telemetry.accesslog import text
from meshlib.dataplane.telemetry.ended import Ended
from meshlib.dataplane.telemetry.logs import Configured, Log
from meshlib.dataplane.telemetry.watch import Telemetry
from meshlib.errors import ConfigError
from meshlib.xds.names import inbound_listener

WHO = bootstrap({}, service="productpage", state_dir="")
ENDED = Ended(RequestHead("GET", "http", "reviews:9080", "/"), 200, 0.0, 0.0)
CODE = "%RESPONSE_CODE%\n"
TARGET = "reviews:9080"


def written(asked: AccessLog, folder: Path | None, *ended: Ended) -> Configured:
    made = Configured(folder)
    for log in made.of([(asked,)])[0]:
        for one in ended or (ENDED,):
            log.write(one)
    return made


def test_a_log_of_the_settings_is_appended_to(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("before\n")
    for _ in range(2):
        (log,) = logs.of_settings(replace(WHO, access_log=str(path))) or ()
        log.write(ENDED)
    lines = path.read_text().splitlines()
    assert [line[:6] for line in lines] == ["before", "[1970-", "[1970-"]


def test_settings_say_where_or_nowhere_or_nothing(tmp_path: Path) -> None:
    assert logs.of_settings(WHO) is None
    assert logs.of_settings(replace(WHO, access_log="none")) == ()
    for path in (tmp_path, tmp_path / "none" / "log"):
        with pytest.raises(ConfigError, match="access_log"):
            logs.of_settings(replace(WHO, access_log=str(path)))


def test_a_log_that_breaks_warns_once(caplog: pytest.LogCaptureFixture) -> None:
    log = Log("/dev/full", text(CODE), os.open("/dev/full", os.O_WRONLY))
    for _ in range(3):
        log.write(ENDED)
    assert [record.message for record in caplog.records] == [
        f"the access log /dev/full can't be written: {os.strerror(28)}"
    ]


def test_configuration_writes_to_the_standard_streams(capfd: pytest.CaptureFixture[str]) -> None:
    written(AccessLog("/dev/stdout", CODE), None)
    written(AccessLog("/dev/stderr", json='{"code": "%RESPONSE_CODE%"}'), None)
    assert capfd.readouterr() == ("200\n", '{"code":200}\n')


def test_configuration_writes_files_of_the_allowed_folder(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    for path in (tmp_path / "log", tmp_path / "below" / "log", tmp_path / "below" / ".." / "log"):
        written(AccessLog(str(path), CODE), tmp_path)
    assert (tmp_path / "log").read_text() == "200\n200\n"
    assert (tmp_path / "below" / "log").read_text() == "200\n"
    assert (tmp_path / "log").stat().st_mode & 0o777 == 0o640


def test_a_condition_says_which_requests(tmp_path: Path) -> None:
    asked = AccessLog(str(tmp_path / "log"), CODE, condition="response.code >= 400")
    written(asked, tmp_path, ENDED, replace(ENDED, status=404), replace(ENDED, status=0))
    assert (tmp_path / "log").read_text() == "404\n"


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """One with everything that a hostile configuration could name."""
    made = tmp_path / "allowed"
    made.mkdir()
    (made / "link").symlink_to(tmp_path / "secret")
    (made / "out").symlink_to(tmp_path)
    (made / "folder").mkdir()
    os.mkfifo(made / "pipe")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(made / "socket"))
        yield made


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("{folder}/../secret", "is not below"),
        ("{folder}/out/secret", "is not below"),
        ("/etc/passwd", "is not below"),
        ("{folder}", "is not below"),
        ("{folder}/..", "is not below"),
        ("/dev/tty", "is not below"),
        ("{folder}/link", os.strerror(40)),
        ("{folder}/folder", os.strerror(21)),
        ("{folder}/pipe", os.strerror(6)),
        ("{folder}/socket", os.strerror(6)),
        ("{folder}/none/log", os.strerror(2)),
        ("log", "no absolute path"),
        ("", "no absolute path"),
        ("{folder}/a\0b", "no absolute path"),
    ],
)
def test_nothing_else_is_written(
    folder: Path, path: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    asked = AccessLog(path.format(folder=folder), CODE, source="mesh.yaml:7")
    made = written(asked, folder)
    assert made.of([(asked,)]) == [()]
    (record,) = caplog.records
    assert "(mesh.yaml:7) is not written" in record.message
    assert reason in record.message
    assert not (folder.parent / "secret").exists()


def test_without_a_folder_no_file_is_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    written(AccessLog(str(tmp_path / "log"), CODE), None)
    assert "access_log_dir" in caplog.text
    assert not (tmp_path / "log").exists()


def test_what_only_an_envoy_can_do_is_not_written(caplog: pytest.LogCaptureFixture) -> None:
    written(AccessLog("/dev/stdout", CODE, unusable="envoy.access_loggers.otel is not supported"), None)
    assert "is not written: envoy.access_loggers.otel is not supported" in caplog.text


def test_a_log_is_opened_once_and_closed_when_nobody_wants_it(tmp_path: Path) -> None:
    made = Configured(tmp_path)
    asked = AccessLog(str(tmp_path / "log"), CODE)
    (first,), (second,) = made.of([(asked,), (asked,)])
    assert first is second
    number = first._to
    assert made.of([(asked,)]) == [(first,)]
    made.of([])
    del first, second
    with pytest.raises(OSError, match=os.strerror(9)):
        os.fstat(number)


def test_telemetry_takes_what_the_configuration_says_by_target_and_port(tmp_path: Path) -> None:
    telemetry = Telemetry(replace(WHO, access_log_dir=tmp_path), View)
    assert not telemetry.wants(TARGET)
    one, other = (Telling((AccessLog(str(tmp_path / name), CODE),)) for name in ("out", "in"))
    telemetry.take({TARGET: one, inbound_listener(9080): other})
    assert [telemetry.wants(name) for name in (TARGET, "else:80", 9080, 9081)] == [True, False, True, False]
    assert [log.path for log in telemetry.told(9080).logs] == [str(tmp_path / "in")]
    assert repr(telemetry).endswith(f": <Log to {tmp_path}/in>, <Log to {tmp_path}/out>>")
    telemetry.take({})
    assert not telemetry.wants(TARGET)


@pytest.mark.parametrize(("own", "paths"), [("none", []), ("/dev/stderr", ["/dev/stderr"])])
def test_the_applications_own_setting_is_instead(own: str, paths: list[str], tmp_path: Path) -> None:
    telemetry = Telemetry(replace(WHO, access_log=own, access_log_dir=tmp_path), View)
    telemetry.take({TARGET: Telling((AccessLog(str(tmp_path / "log"), CODE),))})
    assert [log.path for log in telemetry.told(TARGET).logs] == paths
    assert not (tmp_path / "log").exists()
