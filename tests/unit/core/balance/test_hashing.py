"""What of a request is hashed: by hand, with the published XXH64; tests/envoy compares with Envoy."""

import pytest
from xxhash import xxh64_intdigest

from meshlib.core.balance.hashing import (
    HashCookie,
    HashHeader,
    HashPolicy,
    HashQuery,
    HashSource,
    cookie_value,
    key_of,
)
from meshlib.core.request import RequestHead

HALF = type("Half", (), {"random": lambda self: 0.5})()


def head(*headers: tuple[bytes, bytes], path: str = "/") -> RequestHead:
    return RequestHead("GET", "http", "a:80", path, headers)


def key(request: RequestHead, *policies: HashPolicy, own: str = "10.0.0.9") -> int | None:
    found, cookies = key_of(policies, request, own, HALF)
    assert cookies == ()
    return found


def test_a_header() -> None:
    assert key(head((b"X-User", b"jason")), HashHeader(b"x-user")) == xxh64_intdigest(b"jason")
    assert key(head((b"x-user", b"")), HashHeader(b"x-user")) == xxh64_intdigest(b"")
    assert key(head(), HashHeader(b"x-user")) is None
    assert key(head(), HashHeader(b":path")) == xxh64_intdigest(b"/")
    assert key(head(), HashHeader(b"host")) == xxh64_intdigest(b"a:80")


def test_several_values_in_any_order_are_one_key() -> None:
    one = key(head((b"x-user", b"b"), (b"x-user", b"a")), HashHeader(b"x-user"))
    assert one == key(head((b"x-user", b"a"), (b"x-user", b"b")), HashHeader(b"x-user"))
    assert one == xxh64_intdigest(b"b", xxh64_intdigest(b"a"))
    # Of which Envoy has one place, they are one value.
    agents = head((b"user-agent", b"b"), (b"user-agent", b"a"))
    assert key(agents, HashHeader(b"user-agent")) == xxh64_intdigest(b"b,a")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("/?user=jason", b"jason"),
        ("/?a=1&user=jason&user=other", b"jason"),
        ("/?user=", b""),
        ("/?user", b""),
        ("/?user=a=b", b"a=b"),
        ("/?user=%6a", b"%6a"),
        ("/?users=1", None),
        ("/user=1", None),
        ("/?", None),
    ],
)
def test_a_query_parameter(path: str, value: bytes | None) -> None:
    expected = None if value is None else xxh64_intdigest(value)
    assert key(head(path=path), HashQuery(b"user")) == expected


@pytest.mark.parametrize(
    ("forwarded", "source"),
    [
        (None, "10.0.0.9"),
        (b"1.2.3.4", "1.2.3.4"),
        (b"1.2.3.4, 5.6.7.8", "5.6.7.8"),
        (b"1.2.3.4,  2001:DB8::1 ", "2001:db8::1"),
        (b"unknown", "10.0.0.9"),
        (b"1.2.3.4, ", "10.0.0.9"),
        (b"", "10.0.0.9"),
    ],
)
def test_the_source_is_the_last_that_the_caller_tells_or_this_process(
    forwarded: bytes | None, source: str
) -> None:
    request = head() if forwarded is None else head((b"x-forwarded-for", forwarded))
    assert key(request, HashSource()) == xxh64_intdigest(source.encode())


def test_no_source_is_no_key() -> None:
    assert key(head(), HashSource(), own="") is None


@pytest.mark.parametrize(
    ("cookies", "value"),
    [
        ([b"user=a"], b"a"),
        ([b"x=1; user=a; user=b"], b"a"),
        ([b'user="a b"'], b"a b"),
        ([b'user="'], b'"'),
        ([b"user"], b""),
        ([b"users=1; User=2"], b""),
        ([b"x=1", b"user=a"], b"a"),
        ([b"user=; user=b"], b""),
        ([b"user=a=b"], b"a=b"),
        ([b" user =a"], b""),
        ([], b""),
    ],
)
def test_a_cookie(cookies: list[bytes], value: bytes) -> None:
    request = head(*((b"Cookie", each) for each in cookies))
    assert cookie_value(request, b"user") == value
    assert key(request, HashCookie(b"user")) == (xxh64_intdigest(value) if value else None)


def test_a_cookie_that_is_missing_is_made_if_it_has_a_life() -> None:
    cookie = HashCookie(b"user", 90, b"/p", ((b"SameSite", b"Lax"), (b"Secure", b"")))
    found, cookies = key_of([cookie], head(), "", HALF)
    value = b"%016x" % (1 << 52)
    assert found == xxh64_intdigest(value)
    said = b'user="%s"; Max-Age=90; Path=/p; SameSite=Lax; Secure; HttpOnly' % value
    assert cookies == ((b"set-cookie", said),)
    again = head((b"cookie", said.partition(b";")[0]))
    assert key_of([cookie], again, "", HALF) == (found, ())
    assert key_of([HashCookie(b"user", 0)], head(), "", HALF)[1] == (
        (b"set-cookie", b'user="%s"; HttpOnly' % value),
    )


def test_several_policies_are_combined_and_a_terminal_one_ends_them() -> None:
    request = head((b"a", b"1"), (b"b", b"2"))
    one, two = xxh64_intdigest(b"1"), xxh64_intdigest(b"2")
    turned = (one << 1 | one >> 63) & 2**64 - 1
    assert key(request, HashHeader(b"a"), HashHeader(b"b")) == turned ^ two
    assert key(request, HashHeader(b"a"), HashHeader(b"none"), HashHeader(b"b")) == turned ^ two
    assert key(request, HashHeader(b"a", terminal=True), HashHeader(b"b")) == one
    assert key(request, HashHeader(b"none", terminal=True), HashHeader(b"b")) == two
    assert key(request, HashHeader(b"a"), HashHeader(b"none", terminal=True), HashHeader(b"b")) == one
    # The same twice does not cancel itself out.
    assert key(request, HashHeader(b"a"), HashHeader(b"a")) == turned ^ one
    assert key(request) is None
