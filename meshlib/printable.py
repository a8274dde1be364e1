"""Texts of others, made fit for a terminal or a log: the one place where that is done.

Of what a peer, a file or an argument chose, all that is not printed as itself is shown as Python writes it
(`\\x1b`, `\\n`, `\\u202e`): it could move the cursor, forge a line, or turn the direction of one.
"""


def printable(text: str) -> str:
    """One line of what can be read."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
