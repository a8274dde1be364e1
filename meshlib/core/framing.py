"""What a message of HTTP must be, so that all who read it on its way read one and the same.

Rules (RFC 9112, RFC 9113; not every server looks at them, and Envoy answers 400 to each):

- HTTP/1 is 1.0 or 1.1. A server that lets in another version has left it open how such a message is read.
- There is one Host, and in HTTP/1.1 there must be one (9112, 3.2). Servers join several with a comma, which
  is no part of a host.
- A body has one length: chunks, in HTTP/1.1 only, or a number (9112, 6.1 and 6.3). HTTP/2 has no chunks.
- A method is in capitals. Methods are told apart by case (RFC 9110, 9.1), but Flask and Django do not.
"""

from meshlib.core.request import RequestHead

HTTP2 = ("2", "3")
"""Versions whose messages come in frames."""


def ambiguous(version: str, head: RequestHead) -> str:
    """Why others may read a request otherwise than the server did; empty: they don't.

    `version` is what stands after `HTTP/`, in HTTP/2 and 3 without a dot.
    """
    if version not in ("1.1", "1.0") and version not in HTTP2:
        return "ambiguous_version"
    index = head.index
    coded = index.get(b"transfer-encoding")
    if coded is not None and (
        version != "1.1" or coded.strip().lower() != b"chunked" or b"content-length" in index
    ):
        return "ambiguous_length"
    if b"," in index.get(b"content-length", b""):
        return "ambiguous_length"
    if "," in head.authority or (not head.authority and version == "1.1"):
        return "ambiguous_host"
    return "" if head.method.isupper() else "ambiguous_method"
