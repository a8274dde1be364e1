"""The request that is asked about, from the command line's words."""

import pytest
import typer

from meshlib.cli.explain_request import parse_caller, parse_identity, parse_labels, parse_request


@pytest.mark.parametrize(
    ("words", "method", "authority", "path", "host", "port"),
    [
        (["http://reviews:9080/reviews/0"], "GET", "reviews:9080", "/reviews/0", "reviews", 9080),
        (["post", "http://reviews"], "POST", "reviews", "/", "reviews", 80),
        (["GET", "https://a.b/c?d=e#f"], "GET", "a.b", "/c?d=e", "a.b", 443),
        (["http://u:p@Reviews:1/"], "GET", "reviews:1", "/", "reviews", 1),
        (["http://A:80/"], "GET", "a", "/", "a", 80),
        (["https://a:443"], "GET", "a", "/", "a", 443),
        (["http://a:443"], "GET", "a:443", "/", "a", 443),
        (["http://ü/"], "GET", "xn--tda", "/", "xn--tda", 80),
        (["http://a./"], "GET", "a.", "/", "a.", 80),
        (["http://a b/"], "GET", "a%20b", "/", "a%20b", 80),
        (["http://[::1]:8/?x"], "GET", "[::1]:8", "/?x", "::1", 8),
    ],
)
def test_method_and_url(
    words: list[str], method: str, authority: str, path: str, host: str, port: int
) -> None:
    head, found_host, found_port = parse_request(words, ())
    assert (head.method, head.authority, head.path) == (method, authority, path)
    assert (found_host, found_port) == (host, port)


def test_a_method_may_be_any_that_can_be_sent() -> None:
    assert parse_request(["m-search", "http://a/"], ())[0].method == "M-SEARCH"
    assert parse_request(["a%b", "http://a/"], ())[0].method == "A%B"


def test_headers_and_host() -> None:
    head, host, _ = parse_request(["http://a/"], ["End-User: jason ", "x:", "Host: b", "t: 1:2"])
    assert head.headers == [(b"End-User", b"jason"), (b"x", b""), (b"t", b"1:2")]
    assert (head.authority, host) == ("b", "b")


@pytest.mark.parametrize(
    ("words", "headers"),
    [
        (["reviews"], ()),
        (["ftp://reviews/"], ()),
        (["http://"], ()),
        (["http://a:b/"], ()),
        (["http://a:99999/"], ()),
        (["http://[::1/"], ()),
        (["http://a:0/"], ()),
        (["http:///x"], ()),
        (["http:a/"], ()),
        (["http://\u2603\ufe0f\u200d/"], ()),
        (["http://a/\udcff"], ()),
        (["http://a/" + "x" * 70000], ()),
        (["G T", "http://a/"], ()),
        (["G/T", "http://a/"], ()),
        (["ü", "http://a/"], ()),
        (["GET", "http://a/", "more"], ()),
        (["http://a/"], ("no colon",)),
        (["http://a/\x7f"], ()),
        (["", "http://a/"], ()),
        (["http://a/\r\nb"], ()),
        (["http://a/"], (": x",)),
    ],
)
def test_what_is_no_request(words: list[str], headers: tuple[str, ...]) -> None:
    with pytest.raises(typer.BadParameter):
        parse_request(words, headers)


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ("x: 1\r\nend-user: jason", "holds a control character, such as a line end"),
        ("x: 1\r\n", "holds a control character"),
        ("x: a\x00b", "holds a control character"),
        ("x: a\x7f", "holds a control character"),
        ("x\r\ny: 1", "can't be the name of a header"),
        ("end user: jason", "can't be the name of a header"),
        (" x: 1", "can't be the name of a header"),
        ("x : 1", "can't be the name of a header"),
        ("\u00fc: 1", "can't be the name of a header"),
        (":path: /", "is not 'name: value'"),
        ("Host: b c", "is no host"),
        ("Host: \u00fc", "is no host"),
    ],
)
def test_headers_that_could_not_be_sent(header: str, said: str) -> None:
    with pytest.raises(typer.BadParameter) as raised:
        parse_request(["http://a/"], [header])
    assert said in raised.value.message


def test_values_may_hold_tabs_and_any_other_byte() -> None:
    head, _, _ = parse_request(["http://a/"], ["x: a\tb", "y: \u00fc", "z: \udcff"])
    assert head.headers == [(b"x", b"a\tb"), (b"y", b"\xc3\xbc"), (b"z", b"\xff")]


def test_identity_and_labels() -> None:
    assert parse_identity(None) == ("default", "default")
    assert parse_identity("shop/cart") == ("shop", "cart")
    assert parse_labels(["a=b", "c=d=e", "f="]) == {"a": "b", "c": "d=e", "f": ""}


@pytest.mark.parametrize("text", ["", "a", "a/", "/b", "a/b/c"])
def test_what_is_no_identity(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="is not NAMESPACE/ACCOUNT"):
        parse_identity(text)


@pytest.mark.parametrize("text", ["", "a", "=b"])
def test_what_is_no_label(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="is not k=v"):
        parse_labels([text])


@pytest.mark.parametrize(
    ("text", "domain", "who"),
    [
        (None, "x", ""),
        ("shop/cart", "", "spiffe://cluster.local/ns/shop/sa/cart"),
        ("shop/cart", "my.mesh", "spiffe://my.mesh/ns/shop/sa/cart"),
        ("spiffe://other/ns/shop/sa/cart", "my.mesh", "spiffe://other/ns/shop/sa/cart"),
        ("SPIFFE://Other/ns/Shop/sa/cart", "", "spiffe://other/ns/Shop/sa/cart"),
    ],
)
def test_a_caller(text: str | None, domain: str, who: str) -> None:
    assert parse_caller(text, domain) == who


@pytest.mark.parametrize(
    "text",
    ["", "a", "a/b%c", "spiffe://", "spiffe://td/a/b", "spiffe://td/ns/a/sa/b/c", "spiffe://t d/ns/a/sa/b"],
)
def test_what_is_no_caller(text: str) -> None:
    with pytest.raises(typer.BadParameter):
        parse_caller(text, "")
