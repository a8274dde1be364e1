"""Which requests others may read otherwise."""

import pytest

from meshlib.core.framing import ambiguous
from meshlib.core.request import Header, RequestHead

CHUNKED = (b"Transfer-Encoding", b"chunked")
FIVE = (b"content-length", b"5")


def why(version: str, *headers: Header, host: str = "a", method: str = "GET") -> str:
    return ambiguous(version, RequestHead(method, "http", host, "/", list(headers)))


@pytest.mark.parametrize("version", ["1.0", "1.1", "2", "3"])
def test_what_is_read_in_one_way(version: str) -> None:
    assert why(version) == why(version, FIVE) == why(version, host="[::1]:80") == ""
    assert why(version, method="M-SEARCH") == ""


@pytest.mark.parametrize("version", ["", "0.9", "1", "1.2", "1.10", "2.0", "2.1", "3.0", "9.9", " 1.1", "h2"])
def test_other_versions(version: str) -> None:
    assert why(version) == "ambiguous_version"


@pytest.mark.parametrize("host", ["a,b", "a,a", ",a", "a,", "a, b"])
@pytest.mark.parametrize("version", ["1.0", "1.1", "2", "3"])
def test_a_host_is_one(version: str, host: str) -> None:
    assert why(version, host=host) == "ambiguous_host"


def test_a_host_is_needed_in_one_version() -> None:
    assert [why(version, host="") for version in ("1.0", "1.1", "2")] == ["", "ambiguous_host", ""]


@pytest.mark.parametrize(
    ("version", "headers", "found"),
    [
        ("1.1", [CHUNKED], ""),
        ("1.1", [(b"te", b"trailers"), (b"transfer-encoding", b" Chunked\t")], ""),
        ("1.0", [CHUNKED], "ambiguous_length"),
        ("2", [CHUNKED], "ambiguous_length"),
        ("1.1", [CHUNKED, FIVE], "ambiguous_length"),
        ("1.1", [CHUNKED, CHUNKED], "ambiguous_length"),
        ("1.1", [(b"transfer-encoding", b"gzip, chunked")], "ambiguous_length"),
        ("1.1", [(b"transfer-encoding", b"identity")], "ambiguous_length"),
        ("1.1", [(b"transfer-encoding", b"")], "ambiguous_length"),
        ("1.1", [FIVE, FIVE], "ambiguous_length"),
        ("1.1", [(b"content-length", b"5,5")], "ambiguous_length"),
    ],
)
def test_a_body_has_one_length(version: str, headers: list[Header], found: str) -> None:
    assert why(version, *headers) == found


@pytest.mark.parametrize("method", ["get", "Get", "", "gET", "123"])
def test_a_method_is_in_capitals(method: str) -> None:
    assert why("1.1", method=method) == "ambiguous_method"
