"""Host names of documents."""

import pytest

from meshlib.control.graph.hosts import HostIndex, covers, expand, full_names, overlap, spellings


@pytest.mark.parametrize(
    ("host", "full"),
    [
        ("reviews", "reviews.shop.svc.cluster.local"),
        ("Reviews", "reviews.shop.svc.cluster.local"),
        ("reviews.prod", "reviews.prod"),
        ("*", "*"),
        ("*.example.com", "*.example.com"),
        ("::1", "::1"),
        ("", ""),
    ],
)
def test_expand(host: str, full: str) -> None:
    assert expand(host, "shop") == full


def test_wildcards() -> None:
    assert covers("*.foo.com", "a.foo.com")
    assert not covers("*.foo.com", "foo.com")
    assert covers("*foo.com", "barfoo.com")
    assert covers("*.com", "*.foo.com")
    assert not covers("*.foo.com", "*.com")
    assert not covers("foo.com", "*.com")
    assert overlap("foo.com", "*.com")
    assert covers("*", "anything")


def test_the_closest_host_is_exact_or_the_longest_wildcard() -> None:
    index: HostIndex[str] = HostIndex()
    for host in ("*", "*.com", "*.foo.com", "a.foo.com"):
        index.put(host, host)
    index.put("*.com", "late")
    assert index.closest("a.foo.com") == "a.foo.com"
    assert index.closest("b.foo.com") == "*.foo.com"
    assert index.closest("foo.com") == "*.com"
    assert index.closest("org") == "*"
    assert list(index.matching("*.foo.com")) == ["*.foo.com", "*.com", "*"]
    assert index.exact("b.foo.com") is None


def test_what_a_client_may_say() -> None:
    assert list(full_names("reviews", "shop")) == ["reviews", "reviews.shop.svc.cluster.local"]
    assert list(full_names("reviews.prod", "shop")) == ["reviews.prod", "reviews.prod.svc.cluster.local"]
    assert list(full_names("reviews.prod.svc", "shop")) == [
        "reviews.prod.svc",
        "reviews.prod.svc.cluster.local",
    ]


@pytest.mark.parametrize("host", ["reviews", "reviews.prod", "reviews.prod.svc", "www.example.com"])
def test_with_a_dot_at_its_end_a_name_is_full(host: str) -> None:
    assert list(full_names(f"{host}.", "shop")) == [host]


def test_spellings_of_a_service() -> None:
    host = "reviews.prod.svc.cluster.local"
    others = [host, f"{host}.", "reviews.prod.svc", "reviews.prod"]
    assert list(spellings(host, "prod", "shop")) == others
    assert list(spellings(host, "prod", "prod")) == [*others[:2], "reviews", *others[2:]]
    assert list(spellings("www.example.com", "prod", "prod")) == ["www.example.com", "www.example.com."]
    assert list(spellings("*.example.com", "prod", "prod")) == ["*.example.com", "*.example.com."]
    assert list(spellings("10.0.0.1", "prod", "prod")) == ["10.0.0.1"]
    assert list(spellings("fd00::1", "prod", "prod")) == ["fd00::1"]
