"""`meshlib explain` is asked about a URL, and takes the request that httpx puts on the wire for it."""

import string
from collections.abc import Iterator

import httpx
import pytest
import typer
from support.raw_server import RawServer, raw_server

from meshlib.cli.explain_request import parse_request

PATHS = [
    *("", "?q", "/a/../b", "/a/./b", "/a/..", "/a/.", "/..", "/../../a/b/../c", "//x/../y", "//", "/a//b"),
    *(
        "/%2e/a",
        "/%2E%2e/a",
        "/a%2fb",
        "/a%zz",
        "/a%",
        "/a b",
        "/ü",
        "/\u20ac?\u20ac",
        "/?q= a",
        "/a?b=%&c=%20+",
    ),
    *("/x#frag", "/x?y#frag", "/a;b=c;d", "/[a]", "/a/../?b=/../c", "/?a?b", "/:a", "/a\\b"),
]
EVERY = "".join(chr(code) for code in range(32, 127))


@pytest.fixture(scope="module")
def server() -> Iterator[RawServer]:
    with raw_server() as made:
        yield made


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    with httpx.Client(trust_env=False) as made:
        yield made


@pytest.mark.parametrize("rest", [*PATHS, *(f"/a{one}b" for one in EVERY), *(f"/?a{one}b" for one in EVERY)])
def test_the_path_and_the_host_are_what_is_sent(rest: str, server: RawServer, client: httpx.Client) -> None:
    url = f"http://127.0.0.1:{server.port}{rest}"
    assert client.get(url).status_code == 200
    sent = server.heads[-1].decode("ascii").split("\r\n")
    head, host, port = parse_request([url], ())
    assert sent[0] == f"GET {head.path} HTTP/1.1"
    assert sent[1] == f"Host: {head.authority}"
    assert (host, port) == ("127.0.0.1", server.port)


@pytest.mark.parametrize("odd", string.punctuation + " \t\r\n\x00\x7f\u00fc")
def test_a_method_is_refused_if_it_can_not_be_sent(odd: str, server: RawServer, client: httpx.Client) -> None:
    url = f"http://127.0.0.1:{server.port}/"
    try:
        client.request(f"g{odd}t", url)
    except (httpx.LocalProtocolError, TypeError):
        with pytest.raises(typer.BadParameter, match="is no method"):
            parse_request([f"g{odd}t", url], ())
    else:
        head, _, _ = parse_request([f"g{odd}t", url], ())
        assert server.heads[-1].startswith(f"{head.method} / HTTP/1.1\r\n".encode())
