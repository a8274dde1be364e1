"""The parts of gRPC's server in the mesh that need no I/O, and its ports."""

import socket
import tempfile
from collections import namedtuple
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from support.security_envoy import filters_of
from support.small_ca import SmallCa

import meshlib
from meshlib import socket_folder
from meshlib.bootstrap import bootstrap
from meshlib.core.actions import Facts, Reply
from meshlib.core.authz.question import Question
from meshlib.core.request import Peer
from meshlib.dataplane.decode.authz import decode_rbac
from meshlib_grpc.inbound.arrival import UNKNOWN, AuthorityUnknown, believed, given, head_of, tellable
from meshlib_grpc.inbound.door import Passage
from meshlib_grpc.inbound.peers import address_of, chain_of, shown
from meshlib_grpc.inbound.refusal import refusal
from meshlib_grpc.inbound.serving import peer_text
from meshlib_grpc.inbound.standing import bind, settings_of, shares

Details = namedtuple("Details", "method invocation_metadata")
NOBODY = Peer(("10.0.0.1", 1), ("10.0.0.2", 2))


def test_a_call_as_a_request() -> None:
    head = head_of("/a.B/C", "reviews", True, (("x", "1"), ("y-bin", b"\xff\0")), 1.5)
    assert (head.method, head.scheme, head.authority, head.path) == ("POST", "https", "reviews", "/a.B/C")
    assert head.headers == [
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
        (b"x", b"1"),
        (b"y-bin", b"/wA"),
        (b"grpc-timeout", b"1500m"),
    ]
    assert given(head.headers) == (("x", "1"), ("y-bin", b"\xff\0"))
    for forever in (None, 9.2e18):
        assert b"grpc-timeout" not in head_of("/a.B/C", "reviews", False, (), forever).index


def test_an_authority_that_is_not_known_answers_no_question() -> None:
    head = head_of("/a.B/C", "", False, None, None)
    assert head.authority is UNKNOWN
    assert f"{head.scheme}://{head.authority}{head.path}" == "http:///a.B/C"
    for ask in (
        lambda: head.authority == "a",
        lambda: head.authority != "a",
        lambda: "a" in head.authority,
        lambda: {head.authority: 1},
        lambda: head.header(b":authority"),
        lambda: head.header(b"host"),
    ):
        with pytest.raises(AuthorityUnknown):
            ask()
    assert tellable(head).authority == ""
    known = head_of("/a.B/C", "reviews", False, None, None)
    assert tellable(known) is known


@pytest.mark.parametrize("action", ["allow", "deny"])
@pytest.mark.parametrize("field", ["hosts", "notHosts"])
@pytest.mark.parametrize("host", ["a", "a*", "*a", "*"])
def test_no_policy_on_hosts_has_an_answer_then(action: str, field: str, host: str) -> None:
    text = f"{action}(p):\n  rules: [{{to: [{{operation: {{{field}: ['{host}']}}}}]}}]\n"
    ((name, config),) = filters_of(text).filters
    with pytest.raises(AuthorityUnknown):
        decode_rbac(name, config).judge(Question(head_of("/a.B/C", "", False, None, None), NOBODY))


def test_other_interceptors_see_no_claims() -> None:
    kept = (("a", "1"), ("x-user", "2"), ("key-bin", b"\xff"))
    claims = (
        ("x-forwarded-client-cert", "URI=a"),
        ("x-envoy-a", "b"),
        ("x_envoy_b", "c"),
        ("x-istio-d", "e"),
    )
    clean = Details("/a.B/C", kept)
    assert believed(clean) is clean
    assert believed(Details("/a.B/C", claims + kept)) == clean
    assert believed(Details("/a.B/C", None)).invocation_metadata is None


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, grpc.StatusCode.INTERNAL),
        (401, grpc.StatusCode.UNAUTHENTICATED),
        (403, grpc.StatusCode.PERMISSION_DENIED),
        (404, grpc.StatusCode.UNIMPLEMENTED),
        (429, grpc.StatusCode.UNAVAILABLE),
        (503, grpc.StatusCode.UNAVAILABLE),
        (500, grpc.StatusCode.UNKNOWN),
        (307, grpc.StatusCode.UNKNOWN),
    ],
)
def test_a_refusal_is_a_status(status: int, code: grpc.StatusCode) -> None:
    head = head_of("/a.B/C", "reviews", False, None, None)
    headers = (
        (b"content-type", b"text/plain"),
        (b"connection", b"close"),
        (b"content-length", b"3"),
        (b"grpc-other", b"1"),
        (b"x-text", b"\xff"),
        (b"X-Why", b"so"),
    )
    found = refusal(head, Reply(status, Facts(detail="d"), headers, "nö 100%".encode()))
    assert found.status == (code, "nö 100%", (("x-why", "so"),))
    assert (found.reply.status, found.reply.facts.detail) == (200, "d")


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:10.0.0.1:80", ("10.0.0.1", 80)),
        ("ipv6:[::1]:80", ("::1", 80)),
        ("ipv6:%5B::1%5D:80", ("::1", 80)),
        ("ipv6:[fe80::1%25eth0]:80", ("fe80::1%eth0", 80)),
        ("unix:/tmp/a:80", ("", 0)),
        ("unix-abstract:a", ("", 0)),
        ("ipv4:10.0.0.1", ("", 0)),
        ("", ("", 0)),
    ],
)
def test_who_is_at_the_other_end(peer: str, address: tuple[str, int]) -> None:
    assert address_of(peer) == address


def test_how_a_peer_is_told() -> None:
    assert peer_text(NOBODY, "unix:x") == "ipv4:10.0.0.1:1"
    assert peer_text(replace(NOBODY, address=("::1", 5)), "unix:x") == "ipv6:%5B::1%5D:5"
    assert peer_text(replace(NOBODY, address=("", 0)), "unix:x") == "unix:x"


class Shown:
    """gRPC's word for a connection of its own."""

    def __init__(self, **found: Any) -> None:
        self._found = found

    def peer(self) -> str:
        return "ipv4:10.0.0.1:80"

    def auth_context(self) -> dict[str, Any]:
        return self._found


class Vouching:
    """A gate that vouches for one chain."""

    port = 9080

    def __init__(self, chain: str) -> None:
        self._chain = chain

    def principal(self, chain: str) -> str:
        return "spiffe://a" if chain == self._chain else ""


def test_whom_grpc_has_shaken_hands_with() -> None:
    chain = SmallCa().held("spiffe://a").chain_pem
    gate: Any = Vouching(chain)
    tls = {"transport_security_type": [b"ssl"]}
    plain = shown(Shown(transport_security_type=[b"insecure"]), gate)
    assert (plain.address, plain.local, plain.tls, plain.principal) == (
        ("10.0.0.1", 80),
        ("", 9080),
        False,
        "",
    )
    found = shown(Shown(x509_pem_cert=[chain.encode()], **tls), gate)
    assert (found.principal, found.tls, len(found.fingerprint)) == ("spiffe://a", True, 64)
    for wrong in ({}, {"x509_pem_cert": [b"no"]}, {"x509_pem_cert": [b"\xff"]}):
        other = shown(Shown(**tls, **wrong), gate)
        assert (other.principal, other.tls, other.fingerprint) == ("", True, "")


def test_a_chain_has_the_leaf_first_and_once() -> None:
    leaf, issuer = b"leaf\n", b"issuer\n"
    for found, chain in (
        ({"x509_pem_cert": [leaf], "x509_pem_cert_chain": [issuer]}, leaf + issuer),
        ({"x509_pem_cert": [leaf], "x509_pem_cert_chain": [leaf + issuer]}, leaf + issuer),
        ({"x509_pem_cert": [leaf], "x509_pem_cert_chain": []}, leaf),
        ({"x509_pem_cert": [leaf]}, leaf),
        ({"x509_pem_cert_chain": [leaf + issuer]}, leaf + issuer),
        ({}, b""),
    ):
        assert chain_of(found) == chain


def test_ports() -> None:
    with bind("127.0.0.1:0") as one:
        host, port = one.getsockname()
        assert host == "127.0.0.1"
        one.listen()
        with pytest.raises(meshlib.ConfigError, match=f"can't serve at 127.0.0.1:{port}"):
            bind(f"127.0.0.1:{port}")
    with bind("127.0.0.1:0", shared=True) as one, bind(f"127.0.0.1:{one.getsockname()[1]}", shared=True):
        pass
    with bind("[::]:0") as both:
        assert both.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 0
    with pytest.raises(meshlib.ConfigError, match="can't serve"):
        bind("no-such-host.invalid:80")
    assert shares([("grpc.so_reuseport", 1)])
    assert not shares([("grpc.so_reuseport", 0), ("a", 1)])


def test_what_is_registered_is_what_is_served() -> None:
    one, other = ("127.0.0.1", 1), ("0.0.0.0", 2)
    found = settings_of(bootstrap({}), [other, one])
    assert (found.ports, found.address) == ((("grpc", 2), ("grpc-1", 1)), "127.0.0.1")
    assert settings_of(bootstrap({}), [other]).address == ""
    own = bootstrap({}, ports={"api": 80}, address="10.0.0.9")
    assert settings_of(own, [one]) == own


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder whose path is short."""
    with tempfile.TemporaryDirectory(prefix="m-", dir="/tmp") as made:
        yield Path(made)


def passed(at: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Leads a connection through a passage, with temporary files at that place; where its folder was."""
    at.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(at))
    passage = Passage()
    address = passage.open().removeprefix("unix:")
    folder = Path(address).parent
    assert folder.stat().st_mode & 0o777 == 0o700
    with pytest.raises(OSError):
        passage.connect(NOBODY)
    assert len(passage.met) == 0
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(address)
        listening.listen()
        made, name = passage.connect(NOBODY)
        assert passage.met.find(name) is NOBODY
        made.close()
    assert [one.name for one in folder.iterdir()] == ["grpc"]
    passage.close()
    assert not folder.exists()
    assert list(at.iterdir()) == []
    return folder.parent


def test_a_passage_under_a_path_of_any_length(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [passed(place / ("x" * length), monkeypatch) for length in range(1, 120)]
    assert found[0] == place / "x"
    assert str(found[-1]) == "/tmp"
    assert len(set(found)) > 30


@pytest.mark.parametrize("name", ["a b", "a%41b", "a%b", "a#b", "a?b", "ü", "ü" * 30])
def test_a_passage_under_a_path_that_grpc_would_spell_otherwise(
    name: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert str(passed(place / name, monkeypatch)) == "/tmp"


def test_no_passage(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = place / ("x" * 100)
    monkeypatch.setattr(tempfile, "tempdir", str(place / "none"))
    monkeypatch.setattr(socket_folder, "ELSEWHERE", str(long))
    with pytest.raises(meshlib.ConfigError, match=r"no place for gRPC's socket: .*No such file"):
        Passage().open()
    long.mkdir()
    with pytest.raises(meshlib.ConfigError, match="path too long"):
        Passage().open()
    assert list(long.iterdir()) == []
