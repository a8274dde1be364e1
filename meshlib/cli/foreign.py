"""Texts that a peer, a file or an argument chose, made fit for a terminal: the one place where that is done.

Of theirs, whatever is not printed as itself is shown as Python writes it (`\\x1b`, `\\n`, `\\u202e`): it
could move the cursor, forge a line, or turn the direction of one.
"""

import logging

import rich.markup


def printable(text: str) -> str:
    """One line of what can be read."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


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
