"""Texts of others on a terminal of ours: in paragraphs, between markup, in log records."""

import logging

import rich.markup

from meshlib.printable import printable


def paragraph(text: str) -> str:
    """Several lines, each after the first set in: none can pass for one of ours."""
    return "\n  ".join(map(printable, text.split("\n")))


def escape(text: str) -> str:
    """The same between rich's markup."""
    return rich.markup.escape(printable(text))


class Format(logging.Formatter):
    """Log records, whose messages may hold such texts. Only a traceback has lines."""

    def format(self, record: logging.LogRecord) -> str:
        """The record's own line, and the lines of its traceback."""
        whole = logging.makeLogRecord(record.__dict__)
        whole.msg, whole.args = "%s", (printable(record.getMessage()),)
        return "\n".join(map(printable, super().format(whole).split("\n")))
