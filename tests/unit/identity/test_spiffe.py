"""SPIFFE identities: the one form that is taken, and everything near it that is not."""

import pytest

from meshlib.identity.spiffe import MAX_BYTES, SpiffeId


def test_an_identity_is_parsed_and_written() -> None:
    parsed = SpiffeId.parse("spiffe://cluster.local/ns/default/sa/reviews")
    assert parsed == SpiffeId("cluster.local", "default", "reviews")
    assert str(parsed) == "spiffe://cluster.local/ns/default/sa/reviews"


def test_scheme_and_trust_domain_ignore_case_and_the_path_does_not() -> None:
    assert SpiffeId.parse("SPIFFE://Cluster.Local/ns/A/sa/b") == SpiffeId("cluster.local", "A", "b")


def test_an_at_sign_in_a_configured_trust_domain_is_a_dot() -> None:
    assert SpiffeId.of("me@example.org", "a", "b").trust_domain == "me.example.org"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "https://cluster.local/ns/a/sa/b",
        "spiffe:/cluster.local/ns/a/sa/b",
        "spiffe:///ns/a/sa/b",
        "spiffe://cluster.local/ns/a/sa/",
        "spiffe://cluster.local/ns//sa/b",
        "spiffe://cluster.local/ns/a/sa/b/",
        "spiffe://cluster.local/ns/a/sa/b/c",
        "spiffe://cluster.local/sa/b/ns/a",
        "spiffe://cluster.local:80/ns/a/sa/b",
        "spiffe://user@cluster.local/ns/a/sa/b",
        "spiffe://cluster.local/ns/a/sa/b?x=1",
        "spiffe://cluster.local/ns/a/sa/b#c",
        "spiffe://cluster.local/ns/%61/sa/b",
        "spiffe://cluster.local/ns/../sa/b",
        "spiffe://cluster.local/ns/a/sa/b\0",
        "spiffe://cluster.local/ns/a\n/sa/b",
        "spiffe://cluster.lokal/ns/ä/sa/b",
        " spiffe://cluster.local/ns/a/sa/b",
        "spiffe://cluster.local/ns/a/sa/" + "b" * MAX_BYTES,
    ],
)
def test_what_is_no_identity_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"SPIFFE|form|trust domain|name of"):
        SpiffeId.parse(text)


@pytest.mark.parametrize("parts", [("", "a", "b"), ("td", "a/b", "c"), ("td", "a", ""), ("t d", "a", "b")])
def test_parts_that_make_no_identity_are_refused(parts: tuple[str, str, str]) -> None:
    with pytest.raises(ValueError, match=r"SPIFFE|form|trust domain|name of"):
        SpiffeId.of(*parts)
