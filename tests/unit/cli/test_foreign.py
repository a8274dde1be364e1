"""Texts of others on a terminal of ours."""

import json
import logging
import sys

import pytest
from rich.console import Console

from meshlib.cli.check import as_json
from meshlib.cli.foreign import Format, escape, paragraph
from meshlib.control.istio.problem import Problem, Severity
from meshlib.printable import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("reviews:9080 ü 漢 🔒", "reviews:9080 ü 漢 🔒"),
        ("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
        ("one\nmeshlib: two\r\tthree\x00", r"one\nmeshlib: two\r\tthree\x00"),
        ("a\u202eb\u200bc\u2028d\x9be\udcff", r"a\u202eb\u200bc\u2028d\x9be\udcff"),
    ],
)
def test_only_what_can_be_read_is_printed(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert printable(shown) == shown


def test_markup_is_none_of_theirs() -> None:
    console = Console(record=True, width=200)
    console.print("[red]refused[/] " + escape("[bold]x[/] \x1b[2J"), highlight=False)
    assert console.export_text() == "refused [bold]x[/] \\x1b[2J\n"


def test_lines_are_set_in() -> None:
    assert paragraph("no\nmeshlib: yes\x1b") == "no\n  meshlib: yes\\x1b"


def test_a_log_record_is_one_line_and_its_traceback_keeps_its_own() -> None:
    shown = Format("%(levelname)s %(message)s")
    record = logging.LogRecord("x", logging.ERROR, "f.py", 1, "%s ended: %s", ("a\nERROR b", "\x1b[2J"), None)
    assert shown.format(record) == r"ERROR a\nERROR b ended: \x1b[2J"
    try:
        raise ValueError("\x1b[2J")
    except ValueError:
        record = logging.LogRecord("x", logging.ERROR, "f.py", 1, "failed", (), sys.exc_info())
    first, *_, last = shown.format(record).split("\n")
    assert (first, last) == ("ERROR failed", r"ValueError: \x1b[2J")


def test_json_is_ascii() -> None:
    told = as_json([Problem(Severity.ERROR, "IST0106", "no \x1b[2J \x9b \u202e", found="ü")])
    assert told.isascii()
    assert told.replace("\n", "").isprintable()
    assert json.loads(told)[0]["message"] == "no \x1b[2J \x9b \u202e"
