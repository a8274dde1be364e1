"""What may stand where in HTTP/1.1: the same for what is written and for what is read."""

TOKEN = b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
"""The bytes of methods and of header names: RFC 9110, 5.6.2."""
VISIBLE = bytes(range(0x21, 0x7F))
"""The bytes of a target."""
TEXT = b"\t" + bytes(range(0x20, 0x7F)) + bytes(range(0x80, 0x100))
"""The bytes of a line: everything but control characters. RFC 9110, 5.5."""
MOST_DIGITS = 18
"""Of a Content-Length: it fits into 64 bits everywhere."""

SWITCHING = 101
"""The status after which a connection speaks another protocol, both ways."""


class Unsendable(Exception):
    """The application's request can't be written as HTTP: it is the application that is told."""


class Malformed(Exception):
    """The peer's bytes are not HTTP, or they ended too early."""


def says_close(value: bytes) -> bool:
    """Whether a Connection header ends the connection."""
    lower = value.lower()
    return b"close" in lower and b"close" in [option.strip() for option in lower.split(b",")]
