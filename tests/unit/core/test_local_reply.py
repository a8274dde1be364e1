"""Replies of the mesh's own, in the language of who asks."""

import pytest

from meshlib.core.actions import Facts
from meshlib.core.local_reply import local_reply
from meshlib.core.request import Header, RequestHead

PLAIN = (b"content-type", b"text/plain")
GRPC = (b"content-type", b"application/grpc")


def head(method: str = "GET", kind: bytes = b"") -> RequestHead:
    return RequestHead(method, "http", "a", "/", [(b"content-type", kind)] if kind else [])


@pytest.mark.parametrize(
    ("asked", "status", "text", "headers", "body"),
    [
        (head(), 503, b"no", (PLAIN,), b"no"),
        (head(), 503, b"", (), b""),
        (head("HEAD"), 503, b"no", (PLAIN,), b""),
        (head(), 204, b"no", (PLAIN,), b""),
        (head(), 304, b"no", (PLAIN,), b""),
        (head(kind=b"application/json"), 503, b"no", (PLAIN,), b"no"),
    ],
)
def test_plain(
    asked: RequestHead, status: int, text: bytes, headers: tuple[Header, ...], body: bytes
) -> None:
    reply = local_reply(asked, status, Facts(), text)
    assert (reply.status, reply.headers, reply.body) == (status, headers, body)


@pytest.mark.parametrize(
    ("status", "grpc", "told"),
    [(503, None, b"14"), (404, None, b"12"), (200, None, b"2"), (418, None, b"2"), (503, 5, b"5")],
)
def test_grpc(status: int, grpc: int | None, told: bytes) -> None:
    reply = local_reply(head("POST", b"application/grpc+proto"), status, Facts(), b"5 % \xff", grpc=grpc)
    assert (reply.status, reply.body) == (200, b"")
    assert reply.headers == (GRPC, (b"grpc-status", told), (b"grpc-message", b"5 %25 %FF"))
    assert local_reply(head("HEAD", b"application/grpc"), 503, Facts(), b"no").headers == (
        GRPC,
        (b"grpc-status", b"14"),
    )


def test_an_edit_may_say_what_a_text_is_but_not_of_nothing() -> None:
    kind = (b"Content-Type", b"text/html")
    edited = local_reply(head(), 503, Facts(), b"no", ((b"x-a", b"1"),), lambda headers: [*headers, kind])
    assert edited.headers == ((b"x-a", b"1"), kind)
    assert local_reply(head(), 503, Facts(), edit=lambda headers: [*headers, kind]).headers == ()
