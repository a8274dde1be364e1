"""Which certificates are a workload's: the attack matrix, each case by name."""

from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID
from support.small_ca import SmallCa

from meshlib.identity.chain import BadCertificate, check_peer, fingerprint, leaf_of, split_pem, verify_chain
from meshlib.identity.spiffe import SpiffeId

NOW = 1_800_000_000.0
REVIEWS = "spiffe://cluster.local/ns/default/sa/reviews"


@pytest.fixture(scope="module")
def ca() -> SmallCa:
    return SmallCa(now=NOW)


def check(der: bytes, *domains: str, now: float = NOW) -> SpiffeId:
    return check_peer([der], trust_domains=domains, now=now)


def test_a_good_certificate_names_its_workload(ca: SmallCa) -> None:
    assert check(ca.issue(REVIEWS).der) == SpiffeId("cluster.local", "default", "reviews")


def test_a_dns_name_beside_the_identity_does_not_matter(ca: SmallCa) -> None:
    assert str(check(ca.issue(REVIEWS, dns=["reviews.default.svc"]).der)) == REVIEWS


def test_nothing_shown() -> None:
    with pytest.raises(BadCertificate, match="no certificate was shown"):
        check_peer([], trust_domains=(), now=NOW)


def test_expired(ca: SmallCa) -> None:
    with pytest.raises(BadCertificate, match=r"it expired at 2027-01-15T07:59:59Z"):
        check(ca.issue(REVIEWS, ends=-1).der)


def test_the_last_second(ca: SmallCa) -> None:
    der = ca.issue(REVIEWS, ends=10).der
    assert check(der, now=NOW + 9.9)
    with pytest.raises(BadCertificate, match="expired"):
        check(der, now=NOW + 10)


def test_not_yet_valid(ca: SmallCa) -> None:
    with pytest.raises(BadCertificate, match="it is not valid before"):
        check(ca.issue(REVIEWS, begins=3600, ends=7200).der)


def test_a_minute_of_difference_between_clocks_is_forgiven(ca: SmallCa) -> None:
    assert check(ca.issue(REVIEWS, begins=59, ends=7200).der)


def test_another_trust_domain(ca: SmallCa) -> None:
    der = ca.issue("spiffe://evil.local/ns/default/sa/reviews").der
    assert check(der, "cluster.local", "evil.local")
    with pytest.raises(BadCertificate, match=r"trust domain evil\.local; allowed is cluster\.local"):
        check(der, "cluster.local")


def test_two_uri_names(ca: SmallCa) -> None:
    with pytest.raises(BadCertificate, match="2 URI names"):
        check(ca.issue(REVIEWS, "spiffe://cluster.local/ns/default/sa/admin").der)


def test_no_uri_name(ca: SmallCa) -> None:
    with pytest.raises(BadCertificate, match="0 URI names"):
        check(ca.issue(dns=["reviews"]).der)


def test_no_names_at_all(ca: SmallCa) -> None:
    with pytest.raises(BadCertificate, match="no subject alternative name"):
        check(ca.issue().der)


def test_a_uri_that_is_no_identity(ca: SmallCa) -> None:
    with pytest.raises(BadCertificate, match="no SPIFFE identity"):
        check(ca.issue("https://cluster.local/ns/default/sa/reviews").der)


def test_an_authority_used_as_a_leaf(ca: SmallCa) -> None:
    with pytest.raises(BadCertificate, match="authority's"):
        check(ca.issue(REVIEWS, authority=True).der)


@pytest.mark.parametrize(
    "usages",
    [
        (ExtendedKeyUsageOID.CODE_SIGNING,),
        (ExtendedKeyUsageOID.SERVER_AUTH,),
        (ExtendedKeyUsageOID.CLIENT_AUTH,),
    ],
)
def test_a_wrong_extended_key_usage(ca: SmallCa, usages: tuple[x509.ObjectIdentifier, ...]) -> None:
    with pytest.raises(BadCertificate, match="extended key usage"):
        check(ca.issue(REVIEWS, usages=usages).der)


def test_a_weak_hash(ca: SmallCa) -> None:
    # SHA-1 and MD5 can't be made any more by the library that would make them; SHA-224 is refused likewise.
    with pytest.raises(BadCertificate, match="hash that is too weak"):
        check(ca.issue(REVIEWS, algorithm=hashes.SHA224()).der)


@pytest.mark.parametrize(
    ("key", "said"),
    [
        (lambda: rsa.generate_private_key(65537, 1024), "RSA key has 1024 bits"),
        (lambda: ec.generate_private_key(ec.SECP192R1()), "EC key has 192 bits"),
        (lambda: dsa.generate_private_key(2048), "of a kind that is not taken"),
    ],
)
def test_a_short_or_strange_key(ca: SmallCa, key: Any, said: str) -> None:
    with pytest.raises(BadCertificate, match=said):
        check(ca.issue(REVIEWS, key=key()).der)


def test_other_good_keys(ca: SmallCa) -> None:
    for key in (ed25519.Ed25519PrivateKey.generate(), rsa.generate_private_key(65537, 2048)):
        assert str(check(ca.issue(REVIEWS, key=key).der)) == REVIEWS


@pytest.mark.parametrize("der", [b"", b"\0", b"0\x82", b"garbage" * 100])
def test_garbage(der: bytes) -> None:
    with pytest.raises(BadCertificate, match="can't be read"):
        check(der)


# Chains


def test_a_chain_through_an_intermediate(ca: SmallCa) -> None:
    middle = SmallCa("middle", ca, now=NOW)
    made = middle.issue(REVIEWS)
    leaf = verify_chain([made.pem, middle.pem], ca.pem, made.key_pem, NOW)
    assert (str(leaf.identity), leaf.not_after) == (REVIEWS, NOW + 3600)


def test_a_missing_intermediate(ca: SmallCa) -> None:
    made = SmallCa("middle", ca, now=NOW).issue(REVIEWS)
    with pytest.raises(BadCertificate, match="leads to no root"):
        verify_chain([made.pem], ca.pem, made.key_pem, NOW)


def test_another_root_of_the_same_name(ca: SmallCa) -> None:
    made = SmallCa(now=NOW).issue(REVIEWS)
    with pytest.raises(BadCertificate, match="leads to no root"):
        verify_chain([made.pem], ca.pem, made.key_pem, NOW)


def test_self_signed(ca: SmallCa) -> None:
    with pytest.raises(BadCertificate, match=r"no subject alternative name|authority's"):
        verify_chain([ca.pem], ca.pem, b"", NOW)


def test_a_leaf_that_signs_another(ca: SmallCa) -> None:
    rogue = ca.issue("spiffe://cluster.local/ns/default/sa/rogue")
    below = SmallCa("rogue", now=NOW)
    below.key, below.name = rogue.key, rogue.certificate.subject
    made = below.issue(REVIEWS)
    with pytest.raises(BadCertificate, match="chain is broken"):
        verify_chain([made.pem, rogue.pem], ca.pem, made.key_pem, NOW)


def test_of_another_key(ca: SmallCa) -> None:
    with pytest.raises(BadCertificate, match="not of the key"):
        verify_chain([ca.issue(REVIEWS).pem], ca.pem, ca.issue(REVIEWS).key_pem, NOW)


def test_two_roots_are_trusted_while_one_follows_the_other(ca: SmallCa) -> None:
    new = SmallCa("new", now=NOW)
    for signer in (ca, new):
        made = signer.issue(REVIEWS)
        assert verify_chain([made.pem], ca.pem + new.pem, made.key_pem, NOW)


# Texts


def test_a_bundle_is_split_and_too_many_are_refused(ca: SmallCa) -> None:
    assert split_pem("words\n" + ca.pem + "more\n" + ca.pem) == [ca.pem, ca.pem]
    assert split_pem("") == []
    with pytest.raises(BadCertificate, match="40 certificates"):
        split_pem(ca.pem * 40)
    with pytest.raises(BadCertificate, match="bytes of certificates"):
        split_pem("x" * 300_000)


def test_a_fingerprint_is_of_the_der(ca: SmallCa) -> None:
    assert fingerprint(ca.pem) == f"sha256:{ca.certificate.fingerprint(hashes.SHA256()).hex()}"
    with pytest.raises(BadCertificate, match="can't be read"):
        fingerprint("no certificate")


def test_what_a_leaf_says(ca: SmallCa) -> None:
    leaf = leaf_of(ca.issue(REVIEWS, begins=-10, ends=20).pem, NOW)
    assert (leaf.not_before, leaf.not_after) == (NOW - 10, NOW + 20)
