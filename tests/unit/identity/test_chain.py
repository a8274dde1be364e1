"""A peer's certificate: the right one is taken, and each way to be wrong is refused for its own reason."""

from collections.abc import Callable

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID
from support.pki import (
    HOUR,
    ID,
    NOW,
    Pair,
    ca,
    ec_key,
    leaf,
    rsa_key,
    self_signed,
    usage,
    weakly_signed,
)

from meshlib.identity.chain import MAX_CHAIN, BadCertificate, Purpose, Reason, check_peer, verify_chain
from meshlib.identity.spiffe import SpiffeId

ROOT = ca("root")
BETWEEN = ca("issuer", ROOT, path_length=0)
GOOD = leaf(BETWEEN)
RSA_CA = ca("rsa", ROOT, key=rsa_key())


def peer(
    pair: Pair, *, now: float = NOW, purpose: Purpose = Purpose.CLIENT, domains: tuple[str, ...] = ()
) -> SpiffeId:
    return check_peer(pair.chain_der, trust_domains=domains, now=now, purpose=purpose)


def refused(call: Callable[[], object]) -> Reason:
    with pytest.raises(BadCertificate) as caught:
        call()
    assert caught.value.reason.value in str(caught.value)
    return caught.value.reason


def peer_refused(pair: Pair, **options: object) -> Reason:
    return refused(lambda: peer(pair, **options))  # type: ignore[arg-type]


def chain_refused(pair: Pair, root: Pair = ROOT, now: float = NOW) -> Reason:
    return refused(lambda: verify_chain(pair.chain_der, root.pem, now, purpose=Purpose.CLIENT))


@pytest.mark.parametrize("purpose", Purpose)
def test_a_good_peer_is_taken(purpose: Purpose) -> None:
    assert peer(GOOD, purpose=purpose) == SpiffeId("cluster.local", "default", "reviews")
    path = verify_chain(GOOD.chain_der, ROOT.pem, NOW, purpose=purpose)
    assert path == (GOOD.certificate, BETWEEN.certificate, ROOT.certificate)


def test_a_leaf_alone_is_enough_after_a_handshake() -> None:
    assert (
        check_peer([GOOD.der], trust_domains=(), now=NOW, purpose=Purpose.SERVER).service_account == "reviews"
    )


def test_a_dns_name_beside_the_identity_is_no_second_one() -> None:
    assert str(peer(leaf(BETWEEN, dns=("reviews.default.svc",)))) == ID


def test_other_strong_keys_are_taken() -> None:
    assert str(peer(leaf(RSA_CA, key=rsa_key()))) == ID
    verify_chain(leaf(RSA_CA, key=rsa_key()).chain_der, ROOT.pem, NOW)
    p384 = leaf(BETWEEN, key=ec.generate_private_key(ec.SECP384R1()))
    assert str(peer(p384)) == ID
    verify_chain(p384.chain_der, ROOT.pem, NOW)


# The attacks, each against the check after a handshake and against the check without one.


def test_expired() -> None:
    old = leaf(BETWEEN, begin=NOW - 2 * HOUR, end=NOW - 1)
    assert peer_refused(old) is chain_refused(old) is Reason.EXPIRED


def test_expired_issuer() -> None:
    old = leaf(ca("issuer", ROOT, begin=NOW - 2 * HOUR, end=NOW - 1))
    assert peer_refused(old) is chain_refused(old) is Reason.EXPIRED


def test_expired_root() -> None:
    root = ca("root", begin=NOW - 2 * HOUR, end=NOW - 1)
    assert chain_refused(leaf(root), root) is Reason.EXPIRED


def test_not_yet_valid() -> None:
    early = leaf(BETWEEN, begin=NOW + 61)
    assert peer_refused(early) is chain_refused(early) is Reason.NOT_YET_VALID


def test_a_little_early_is_taken_and_a_little_late_is_not() -> None:
    early = leaf(BETWEEN, begin=NOW + 59)
    assert str(peer(early)) == ID
    assert verify_chain(early.chain_der, ROOT.pem, NOW)[0] == early.certificate
    assert str(peer(GOOD, now=NOW + HOUR)) == ID
    assert peer_refused(GOOD, now=NOW + HOUR + 1) is chain_refused(GOOD, now=NOW + HOUR + 1) is Reason.EXPIRED


def test_other_root() -> None:
    assert chain_refused(GOOD, ca("other")) is Reason.UNKNOWN_ISSUER


def test_other_root_of_the_same_name() -> None:
    assert chain_refused(GOOD, ca("root")) is Reason.UNKNOWN_ISSUER


def test_no_root_at_all() -> None:
    assert refused(lambda: verify_chain(GOOD.chain_der, "", NOW)) is Reason.UNKNOWN_ISSUER


def test_other_trust_domain() -> None:
    foreign = leaf(BETWEEN, uris=("spiffe://evil.example/ns/default/sa/reviews",))
    assert peer_refused(foreign, domains=("cluster.local",)) is Reason.OTHER_TRUST_DOMAIN
    assert peer(foreign, domains=("cluster.local", "EVIL@example")).trust_domain == "evil.example"


def test_a_trust_domain_is_compared_whole() -> None:
    longer = leaf(BETWEEN, uris=("spiffe://cluster.local.evil/ns/default/sa/reviews",))
    assert peer_refused(longer, domains=("cluster.local",)) is Reason.OTHER_TRUST_DOMAIN


def test_self_signed() -> None:
    assert chain_refused(self_signed()) is Reason.SELF_SIGNED


def test_self_signed_ca_as_a_peer() -> None:
    assert peer_refused(ROOT) is chain_refused(ROOT) is Reason.SELF_SIGNED


def test_missing_intermediate() -> None:
    assert refused(lambda: verify_chain([GOOD.der], ROOT.pem, NOW)) is Reason.UNKNOWN_ISSUER
    with pytest.raises(BadCertificate, match="'CN=issuer' is neither trusted nor in the chain"):
        verify_chain([GOOD.der], ROOT.pem, NOW)


def test_two_uri_names() -> None:
    assert peer_refused(leaf(BETWEEN, uris=(ID, ID))) is Reason.SEVERAL_IDENTITIES
    assert peer_refused(leaf(BETWEEN, uris=(ID, "https://x.example"))) is Reason.SEVERAL_IDENTITIES


@pytest.mark.parametrize("dns", [(), ("cluster.local",)])
def test_no_uri_name(dns: tuple[str, ...]) -> None:
    assert peer_refused(leaf(BETWEEN, uris=(), dns=dns)) is Reason.NO_IDENTITY


@pytest.mark.parametrize(
    "uri",
    [
        "https://cluster.local/ns/default/sa/reviews",
        "spiffe://cluster.local/reviews",
        f"{ID}/more",
        f"{ID}?a=b",
        "",
    ],
)
def test_a_uri_that_is_no_identity(uri: str) -> None:
    assert peer_refused(leaf(BETWEEN, uris=(uri,))) is Reason.NO_IDENTITY


def test_a_ca_as_leaf() -> None:
    assert peer_refused(BETWEEN) is chain_refused(BETWEEN) is Reason.CA_AS_LEAF
    named = leaf(BETWEEN, is_ca=True)
    assert peer_refused(named) is chain_refused(named) is Reason.CA_AS_LEAF


def test_a_leaf_with_the_usage_of_a_ca() -> None:
    assert peer_refused(leaf(BETWEEN, key_usage=usage(leaf=True, signs=True))) is Reason.CA_AS_LEAF


def test_a_leaf_as_issuer() -> None:
    below = leaf(GOOD)
    assert peer_refused(below) is chain_refused(below) is Reason.NOT_A_CA


def test_an_issuer_that_may_not_sign() -> None:
    below = leaf(ca("mute", ROOT, signs=False))
    assert peer_refused(below) is chain_refused(below) is Reason.NOT_A_CA


def test_an_issuer_below_its_path_length() -> None:
    assert chain_refused(leaf(ca("deeper", BETWEEN))) is Reason.UNKNOWN_ISSUER


def test_a_trusted_root_that_may_not_sign() -> None:
    mute = ca("root", signs=False)
    assert chain_refused(leaf(mute), mute) is Reason.UNKNOWN_ISSUER


@pytest.mark.parametrize(
    ("purposes", "purpose"),
    [
        ((ExtendedKeyUsageOID.SERVER_AUTH,), Purpose.CLIENT),
        ((ExtendedKeyUsageOID.CLIENT_AUTH,), Purpose.SERVER),
        ((ExtendedKeyUsageOID.CODE_SIGNING,), Purpose.SERVER),
    ],
)
def test_wrong_extended_key_usage(purposes: tuple[x509.ObjectIdentifier, ...], purpose: Purpose) -> None:
    wrong = leaf(BETWEEN, purposes=purposes)
    assert peer_refused(wrong, purpose=purpose) is Reason.WRONG_USAGE
    assert (
        refused(lambda: verify_chain(wrong.chain_der, ROOT.pem, NOW, purpose=purpose)) is Reason.WRONG_USAGE
    )


def test_an_issuer_for_another_use() -> None:
    narrow = leaf(ca("servers", ROOT, purposes=(ExtendedKeyUsageOID.SERVER_AUTH,)))
    assert chain_refused(narrow) is Reason.UNKNOWN_ISSUER
    assert verify_chain(narrow.chain_der, ROOT.pem, NOW, purpose=Purpose.SERVER)[0] == narrow.certificate


def test_no_extended_key_usage_is_for_any_use() -> None:
    assert str(peer(leaf(BETWEEN, purposes=None))) == ID


@pytest.mark.parametrize("key_usage", [None, usage(leaf=False)])
def test_wrong_key_usage(key_usage: x509.KeyUsage | None) -> None:
    assert peer_refused(leaf(BETWEEN, key_usage=key_usage)) is Reason.WRONG_USAGE


@pytest.mark.parametrize("algorithm", ["md5", "sha1"])
def test_weak_hash(algorithm: str) -> None:
    weak = weakly_signed(leaf(RSA_CA), rsa_key(), algorithm)
    assert peer_refused(weak) is chain_refused(weak) is Reason.WEAK_HASH


@pytest.mark.parametrize("algorithm", ["md5", "sha1"])
def test_weak_hash_of_an_issuer(algorithm: str) -> None:
    root = ca("rsa root", key=rsa_key())
    issuer = weakly_signed(ca("issuer", root), rsa_key(), algorithm)
    below = leaf(issuer)
    assert peer_refused(below) is chain_refused(below, root) is Reason.WEAK_HASH


def test_short_rsa_key() -> None:
    weak = leaf(BETWEEN, key=rsa_key(1024))
    assert peer_refused(weak) is chain_refused(weak) is Reason.WEAK_KEY


def test_short_rsa_key_of_an_issuer() -> None:
    weak = leaf(ca("issuer", ROOT, key=rsa_key(1024)))
    assert peer_refused(weak) is chain_refused(weak) is Reason.WEAK_KEY


def test_small_curve() -> None:
    weak = leaf(BETWEEN, key=ec.generate_private_key(ec.SECP224R1()))
    assert peer_refused(weak) is chain_refused(weak) is Reason.WEAK_KEY


def test_a_critical_extension_that_nobody_knows() -> None:
    odd = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.55555.1"), b"\x05\x00")
    assert chain_refused(leaf(BETWEEN, extra=((odd, True),))) is Reason.UNKNOWN_ISSUER
    harmless = leaf(BETWEEN, extra=((odd, False),))
    assert verify_chain(harmless.chain_der, ROOT.pem, NOW)[0] == harmless.certificate


def test_a_changed_byte_anywhere() -> None:
    der = GOOD.der
    for at in range(0, len(der), 7):
        changed = der[:at] + bytes([der[at] ^ 1]) + der[at + 1 :]
        with pytest.raises(BadCertificate):
            verify_chain([changed, BETWEEN.der], ROOT.pem, NOW)


def test_no_certificate_and_no_der() -> None:
    assert refused(lambda: check_peer([], trust_domains=(), now=NOW, purpose=Purpose.CLIENT)) is Reason.NONE
    for junk in (b"", b"\x30", b"0" * 500, GOOD.der[:-1], GOOD.pem.encode()):
        assert refused(lambda junk=junk: verify_chain([junk], ROOT.pem, NOW)) is Reason.MALFORMED  # type: ignore[misc]


def test_an_endless_chain() -> None:
    assert refused(lambda: verify_chain([GOOD.der] * (MAX_CHAIN + 1), ROOT.pem, NOW)) is Reason.TOO_LONG


def test_issuers_in_any_order_and_some_too_many() -> None:
    upper = ca("upper", ROOT)
    lower = ca("lower", upper)
    pair = leaf(lower)
    stray = ca("stray", key=ec_key())
    shown = [pair.der, stray.der, upper.der, ROOT.der, lower.der]
    path = verify_chain(shown, stray.pem + ROOT.pem, NOW)
    assert [one.public_bytes(Encoding.DER) for one in path] == [pair.der, lower.der, upper.der, ROOT.der]
