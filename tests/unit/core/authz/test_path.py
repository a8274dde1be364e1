"""Paths before policies look at them; a real Envoy does the same (tests/envoy/test_authorization.py)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshlib.core.authz import path
from meshlib.core.authz.path import (
    GO_ON,
    NOT_FOUND,
    REDIRECT,
    REFUSE,
    EscapedSlashes,
    PathOptions,
    normalize,
    origin_form,
)

ISTIO = PathOptions()
STRICT = PathOptions(True, True, EscapedSlashes.REJECT)
FORWARD = PathOptions(True, True, EscapedSlashes.FORWARD)


@pytest.mark.parametrize(
    ("asked", "becomes"),
    [
        ("/a/b", "/a/b"),
        ("/a/../admin", "/admin"),
        ("/a/%2e%2E/admin", "/admin"),
        ("/a/./b", "/a/b"),
        ("/../../admin", "/admin"),
        ("/a/..", "/"),
        ("/a/.", "/a/"),
        ("/a\\..\\admin", "/admin"),
        ("/a/..;x=1/admin", "/admin"),
        ("/%61dmin", "/admin"),
        ("/a//b", "/a//b"),
        ("/a%2Fb", "/a%2Fb"),
        ("/a%5cb", "/a%5cb"),
        ("/a|b^c", "/a%7Cb%5Ec"),
        ("/%%32e", "/%252e"),
        ("/%2525", "/%2525"),
        ("/a?x=/../b", "/a?x=/../b"),
        ("/ADMIN", "/ADMIN"),
        ("/a/...", "/a/..."),
    ],
)
def test_a_path_as_istio_has_it_normalised(asked: str, becomes: str) -> None:
    assert normalize(asked, ISTIO) == (GO_ON, becomes)


@pytest.mark.parametrize("path", ["/a%00b", "/a#b", "/\x80", "/a b", "/a\x00", "admin", "", "ftp://h/x"])
def test_what_can_be_no_path_is_refused(path: str) -> None:
    assert normalize(path, ISTIO)[0] == REFUSE


def test_the_server_as_a_whole_is_no_resource() -> None:
    assert normalize("*", ISTIO)[0] == NOT_FOUND


@pytest.mark.parametrize(
    ("options", "asked", "status", "becomes"),
    [
        (STRICT, "/a%2fb", REFUSE, "/a%2fb"),
        (STRICT, "//a///b", GO_ON, "/a/b"),
        (STRICT, "///", GO_ON, "//"),
        (FORWARD, "/a%2F..%5cadmin", GO_ON, "/admin"),
        (PathOptions(escaped_slashes=EscapedSlashes.REDIRECT), "/a%2fb?c%2fd", REDIRECT, "/a/b?c%2fd"),
        (PathOptions(normalize=False), "/a/../b", GO_ON, "/a/../b"),
    ],
)
def test_options(options: PathOptions, asked: str, status: int, becomes: str) -> None:
    assert normalize(asked, options) == (status, becomes)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/a", ("h", "/a")),
        ("http://o:80/a?b", ("o:80", "/a?b")),
        ("HTTPS://o", ("o", "/")),
        ("http://u:p@o/x", ("o", "/x")),
        ("ftp://o/x", ("h", "ftp://o/x")),
    ],
)
def test_a_whole_url_holds_the_authority(path: str, expected: tuple[str, str]) -> None:
    assert origin_form("h", path) == expected


class Nothing:
    """No path is plain."""

    @staticmethod
    def Match(_: str) -> None:  # noqa: N802 - RE2's
        pass


@given(st.text(alphabet="/a.%25;?#~é\\", max_size=12), st.sampled_from([ISTIO, STRICT, FORWARD]))
def test_a_plain_path_is_one_in_which_there_is_nothing_to_do(tail: str, options: PathOptions) -> None:
    asked = "/" + tail
    with pytest.MonkeyPatch.context() as patch:
        found = normalize(asked, options)
        patch.setattr(path, "_PLAIN", Nothing)
        assert normalize(asked, options) == found


def test_a_long_path_is_no_work() -> None:
    assert normalize("/ab" * 100_000 + "\0", ISTIO)[0] == REFUSE
