"""TLS contexts: made once for a policy and a certificate, and what is checked after a handshake."""

import os
import ssl
from pathlib import Path
from typing import Any

import pytest
from support.small_ca import SmallCa

from meshlib.core.mtls import ClientTls, InboundMode, SanMatch, ServerTls, Trust
from meshlib.core.request import Failure
from meshlib.dataplane import tls
from meshlib.dataplane.http.failures import not_connected
from meshlib.dataplane.http.limits import NO_TIMEOUTS, Limits
from meshlib.dataplane.tls import (
    BadFile,
    Contexts,
    Held,
    NotTrusted,
    asked_name,
    control_context,
    stranger_context,
)

REVIEWS = "spiffe://cluster.local/ns/default/sa/reviews"
PAGE = "spiffe://cluster.local/ns/default/sa/productpage"
STRICT = ServerTls(InboundMode.STRICT, ("cluster.local",))


@pytest.fixture(scope="module")
def ca() -> SmallCa:
    return SmallCa()


def shaken(
    server: ssl.SSLContext, client: ssl.SSLContext, name: str | None = "reviews"
) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    """Server's and client's end after a handshake in memory."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    asking = client.wrap_bio(to_client, to_server, server_hostname=name)
    answering = server.wrap_bio(to_server, to_client, server_side=True)
    for end in (asking, answering, asking, answering):
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            continue
    return answering, asking


def test_a_context_is_made_once_for_a_policy_and_a_certificate(ca: SmallCa) -> None:
    held = [ca.held(PAGE)]
    contexts = Contexts(lambda: held[0])
    first, other = contexts.client(ClientTls()), contexts.client(ClientTls(sni="x"))
    assert contexts.client(ClientTls()) is first
    assert other is not first
    serving = contexts.server(STRICT)
    held[0] = ca.held(PAGE)
    assert contexts.client(ClientTls()) is not first
    assert contexts.server(STRICT) is not serving


def test_contexts_do_not_pile_up(ca: SmallCa) -> None:
    held = ca.held(PAGE)
    contexts = Contexts(lambda: held)
    for number in range(300):
        contexts.client(ClientTls(trust=Trust.NOBODY, mesh_identity=False, sni=str(number)))
    assert len(contexts._made) <= 256


def test_both_ends_are_known(ca: SmallCa) -> None:
    ours, theirs = ca.held(REVIEWS), ca.held(PAGE)
    server, client = Contexts(lambda: ours), Contexts(lambda: theirs)
    answering, asking = shaken(server.server(STRICT), client.client(ClientTls()))
    assert server.caller(STRICT, answering) == PAGE
    assert client.check(ClientTls(), asking) == REVIEWS
    assert asked_name(answering) == "reviews"
    assert asked_name(None) == ""


@pytest.mark.parametrize(
    ("how", "wanted", "good"),
    [
        (SanMatch.EXACT, REVIEWS, True),
        (SanMatch.EXACT, REVIEWS + "2", False),
        (SanMatch.EXACT, REVIEWS.upper(), False),
        (SanMatch.PREFIX, "spiffe://cluster.local/ns/default/", True),
        (SanMatch.PREFIX, "cluster.local", False),
        (SanMatch.SUFFIX, "/sa/reviews", True),
        (SanMatch.SUFFIX, "/sa/review", False),
        (SanMatch.CONTAINS, "/ns/default/", True),
        (SanMatch.CONTAINS, "/ns/other/", False),
        (SanMatch.EXACT, "reviews.default.svc", True),
    ],
)
def test_secure_naming(ca: SmallCa, how: SanMatch, wanted: str, good: bool) -> None:
    ours, theirs = ca.held(REVIEWS, dns=["reviews.default.svc"]), ca.held(PAGE)
    client = Contexts(lambda: theirs)
    policy = ClientTls(sans=((how, wanted),))
    _, asking = shaken(Contexts(lambda: ours).server(STRICT), client.client(policy))
    if good:
        assert client.check(policy, asking) == REVIEWS
    else:
        with pytest.raises(NotTrusted, match=r"its certificate is for spiffe:.*; allowed is "):
            client.check(policy, asking)


def test_a_caller_of_another_trust_domain_is_not_served(ca: SmallCa) -> None:
    ours, theirs = ca.held(REVIEWS), ca.held("spiffe://other/ns/default/sa/productpage")
    server = Contexts(lambda: ours)
    answering, _ = shaken(server.server(STRICT), Contexts(lambda: theirs).client(ClientTls()))
    with pytest.raises(NotTrusted, match="its trust domain is not taken"):
        server.caller(STRICT, answering)
    assert server.caller(ServerTls(InboundMode.STRICT), answering).startswith("spiffe://other/")


def test_without_a_certificate_there_is_no_mesh(ca: SmallCa) -> None:
    contexts = Contexts(lambda: None)
    for make in (lambda: contexts.client(ClientTls()), lambda: contexts.server(STRICT)):
        with pytest.raises(OSError, match="this process has no certificate of the mesh"):
            make()
    assert (
        contexts.client(ClientTls(trust=Trust.SYSTEM, mesh_identity=False)).verify_mode is ssl.CERT_REQUIRED
    )


def test_versions_and_protocols(ca: SmallCa) -> None:
    held = ca.held(PAGE)
    contexts = Contexts(lambda: held)
    assert contexts.client(ClientTls()).minimum_version is ssl.TLSVersion.TLSv1_2
    assert contexts.client(ClientTls(min_version="TLSv1_3")).minimum_version is ssl.TLSVersion.TLSv1_3
    server = contexts.server(ServerTls(InboundMode.STRICT, min_version="TLSv1_3", alpn=("http/1.1",)))
    assert server.minimum_version is ssl.TLSVersion.TLSv1_3
    answering, _ = shaken(server, contexts.client(ClientTls(alpn=("h2", "http/1.1"))))
    assert (answering.version(), answering.selected_alpn_protocol()) == ("TLSv1.3", "http/1.1")


def test_only_strangers_are_not_verified(ca: SmallCa) -> None:
    known = control_context(None, ca.pem)
    assert (known.verify_mode, known.check_hostname) == (ssl.CERT_REQUIRED, True)
    stranger = stranger_context()
    assert (stranger.verify_mode, stranger.check_hostname) == (ssl.CERT_NONE, False)


def test_a_chain_that_another_server_took_is_checked_once_more(ca: SmallCa) -> None:
    held = ca.held(REVIEWS)
    contexts = Contexts(lambda: held)
    assert contexts.vouched(STRICT, ca.held(PAGE).chain_pem) == PAGE
    for chain in (
        "",
        "no certificate",
        SmallCa().held(PAGE).chain_pem,
        ca.held(PAGE, ends=-100.0).chain_pem,
        ca.held("spiffe://other/ns/a/sa/b").chain_pem,
        ca.held(PAGE, authority=True).chain_pem,
        ca.issue(dns=["page"]).pem,
    ):
        assert contexts.vouched(STRICT, chain) == ""
    assert Contexts(lambda: None).vouched(STRICT, ca.held(PAGE).chain_pem) == ""


def test_a_chain_is_checked_again_when_time_or_trust_has_changed(
    ca: SmallCa, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, held, looked = [ca.now.timestamp()], [ca.held(REVIEWS)], []
    whole = tls._vouch

    def counted(*asked: Any) -> Any:
        looked.append(asked)
        return whole(*asked)

    monkeypatch.setattr(tls, "_vouch", counted)
    contexts = Contexts(lambda: held[0], lambda: now[0])
    chain = ca.held(PAGE, ends=90.0).chain_pem

    def vouched(policy: ServerTls = STRICT) -> tuple[str, int]:
        found = [contexts.vouched(policy, chain) for _ in range(3)]
        assert len(set(found)) == 1
        return found[0], len(looked)

    assert vouched() == (PAGE, 1)
    now[0] += 59
    assert vouched() == (PAGE, 1)
    now[0] += 2
    assert vouched() == (PAGE, 2), "it is looked at again from time to time"
    now[0] += 29.5
    assert vouched() == ("", 5), "it has ended; what is bad is not kept"
    now[0] -= 60
    assert vouched() == (PAGE, 6), "a clock that was put back"
    held[0] = ca.held(REVIEWS)
    assert vouched() == (PAGE, 7), "another certificate of one's own"
    assert vouched(ServerTls(InboundMode.STRICT, ("other",))) == ("", 10)
    held[0] = SmallCa().held(REVIEWS)
    assert vouched() == ("", 13), "the root is not trusted any more"


def test_chains_that_were_good_do_not_pile_up(ca: SmallCa, monkeypatch: pytest.MonkeyPatch) -> None:
    held = ca.held(REVIEWS)
    contexts = Contexts(lambda: held)
    monkeypatch.setattr(tls, "_vouch", lambda *_: tls._Vouched(PAGE, held, 0.0, 1e12))
    for number in range(1000):
        assert contexts.vouched(STRICT, str(number)) == PAGE
    assert len(contexts._vouched) <= 256


def test_no_key_is_shown_or_left_behind(ca: SmallCa, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = ca.held(PAGE)
    assert "PRIVATE" not in repr(held)
    assert "CERTIFICATE" not in repr(Held("", b"secret", "-----BEGIN CERTIFICATE-----"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.delattr("os.memfd_create")
    Contexts(lambda: held).client(ClientTls())
    assert list(tmp_path.iterdir()) == []


class Mutual:
    """A client with files of its own, as MUTUAL has it, and a server that says whom it sees."""

    def __init__(self, folder: Path) -> None:
        self.now = 0.0
        self.held: Held | None = None
        names = ("roots.pem", "chain.pem", "key.pem")
        self.roots, self.chain, self.key = (folder / name for name in names)
        self.contexts = Contexts(lambda: self.held, clock=lambda: self.now)
        self.policy = ClientTls(
            trust=Trust.FILE,
            ca_file=str(self.roots),
            mesh_identity=False,
            certificate_file=str(self.chain),
            key_file=str(self.key),
        )

    def show(self, ca: SmallCa, uri: str) -> None:
        """Writes the files; what is replaced is another file."""
        made = ca.issue(uri)
        texts = {self.roots: ca.pem, self.chain: made.pem, self.key: made.key_pem.decode()}
        for path, text in texts.items():
            path.unlink(missing_ok=True)
            path.write_text(text)

    def seen(self, ca: SmallCa) -> str:
        """As whom a server of that authority sees it, on a new connection."""
        ours = ca.held(REVIEWS)
        server = Contexts(lambda: ours)
        answering, _ = shaken(server.server(STRICT), self.contexts.client(self.policy))
        return server.caller(STRICT, answering)


@pytest.fixture
def mutual(tmp_path: Path) -> Mutual:
    return Mutual(tmp_path)


def test_files_of_a_policy_are_read_anew_when_they_change(ca: SmallCa, mutual: Mutual) -> None:
    mutual.show(ca, PAGE)
    assert mutual.seen(ca) == PAGE
    other = "spiffe://cluster.local/ns/default/sa/other"
    mutual.show(ca, other)
    mutual.now = 0.9
    assert mutual.seen(ca) == PAGE  # it was looked at within a second
    mutual.now = 1.0
    assert mutual.seen(ca) == other
    new = SmallCa("new")
    mutual.show(new, PAGE)
    mutual.now = 2.0
    assert mutual.seen(new) == PAGE


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("roots", None, "^caCertificates {} can't be used: No such file or directory$"),
        ("roots", "nonsense", "^caCertificates {} can't be used: no certificate or crl found$"),
        ("chain", None, "^clientCertificate {} can't be used: No such file or directory$"),
        ("key", None, "^privateKey {} can't be used: No such file or directory$"),
        ("key", "nonsense", "^clientCertificate .* with privateKey {} can't be used: "),
    ],
)
def test_a_file_that_can_not_be_used_is_named(
    ca: SmallCa, mutual: Mutual, name: str, text: str | None, said: str
) -> None:
    mutual.show(ca, PAGE)
    path: Path = getattr(mutual, name)
    path.unlink()
    if text is not None:
        path.write_text(text)
    with pytest.raises(BadFile, match=said.format(path)) as found:
        mutual.contexts.client(mutual.policy)
    failed = not_connected(found.value, Limits(lambda: 0.0, NO_TIMEOUTS, None, None), 1.0)
    assert (failed.how, failed.detail) == (Failure.CONNECT_FAILED, f"TLS: {found.value}")


def test_files_are_looked_at_once_a_second_at_most(
    ca: SmallCa, mutual: Mutual, monkeypatch: pytest.MonkeyPatch
) -> None:
    mutual.show(ca, PAGE)
    first = mutual.contexts.client(mutual.policy)
    looks: list[str] = []
    stat = os.stat
    monkeypatch.setattr(os, "stat", lambda path, **more: looks.append(path) or stat(path, **more))
    for mutual.now in (0.1, 0.5, 0.9, 1.0, 1.1, 1.9):
        assert mutual.contexts.client(mutual.policy) is first
    assert len([one for one in looks if one == str(mutual.chain)]) == 1


@pytest.mark.parametrize("spoil", ["chain", "key", "roots", "gone"])
def test_a_broken_file_leaves_the_last_good_one(
    ca: SmallCa, mutual: Mutual, caplog: pytest.LogCaptureFixture, spoil: str
) -> None:
    mutual.show(ca, PAGE)
    assert mutual.seen(ca) == PAGE
    if spoil == "gone":
        mutual.chain.unlink()
    elif spoil == "key":
        mutual.key.write_bytes(ca.issue(PAGE).key_pem)  # of another certificate: half of a replacement
    else:
        getattr(mutual, spoil).write_text("-----BEGIN CERTIFICATE-----\nMIIB")
    for mutual.now in (1.0, 2.0, 3.0):
        assert mutual.seen(ca) == PAGE
    mutual.held = ca.held(REVIEWS)  # the workload's own is renewed meanwhile
    assert mutual.seen(ca) == PAGE
    (record,) = caplog.records
    assert (record.levelname, "what was read before stays: " in record.getMessage()) == (
        "WARNING",
        True,
    )
    spoilt: Path = mutual.chain if spoil == "gone" else getattr(mutual, spoil)
    assert str(spoilt) in record.getMessage()
    other = "spiffe://cluster.local/ns/default/sa/other"
    mutual.show(ca, other)
    mutual.now = 4.0
    assert mutual.seen(ca) == other
    assert len(caplog.records) == 1


def test_files_that_were_never_good_are_an_error_until_they_are(ca: SmallCa, mutual: Mutual) -> None:
    with pytest.raises(BadFile):
        mutual.contexts.client(mutual.policy)
    mutual.show(ca, PAGE)
    assert mutual.seen(ca) == PAGE


def test_a_link_that_leads_elsewhere_is_a_change(ca: SmallCa, tmp_path: Path) -> None:
    """As Kubernetes replaces a secret's files: all at once, by a link to their folder."""
    mutual = Mutual(tmp_path / "now")
    other = "spiffe://cluster.local/ns/default/sa/other"
    for name, who in (("one", PAGE), ("two", other)):
        (tmp_path / name).mkdir()
        Mutual(tmp_path / name).show(ca, who)
    (tmp_path / "now").symlink_to("one")
    assert mutual.seen(ca) == PAGE
    (tmp_path / "new").symlink_to("two")
    (tmp_path / "new").rename(tmp_path / "now")
    mutual.now = 1.0
    assert mutual.seen(ca) == other
