"""What the authority signs, for whom and how long; and what it refuses."""

import ipaddress
import logging
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.pki import NOW, ca, plugin, rsa_key

from meshlib.control.ca.authority import Authority
from meshlib.control.ca.issuer import DAY_S, ROOT_LIFE_S
from meshlib.control.ca.request import MAX_CSR, MAX_TTL_S, CsrRefused
from meshlib.errors import ConfigError
from meshlib.identity.chain import Purpose, check_peer, verify_chain
from meshlib.identity.keys import load_key, make_csr, make_key, same_key
from meshlib.identity.pem import fingerprint, load_bundle, to_der
from meshlib.identity.spiffe import SpiffeId

REVIEWS = SpiffeId("cluster.local", "default", "reviews")
KEY = make_key()
CSR = make_csr(KEY, REVIEWS).decode()
NOBODY = x509.Name([])


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.open(tmp_path / "state", trust_domain="cluster.local", now=NOW)


def csr(key: object, name: x509.Name = NOBODY, *more: x509.ExtensionType) -> str:
    builder = x509.CertificateSigningRequestBuilder(name)
    for extension in more:
        builder = builder.add_extension(extension, False)
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return builder.sign(key, algorithm).public_bytes(Encoding.PEM).decode()  # type: ignore[arg-type]


def test_a_leaf_as_istio_makes_it(authority: Authority) -> None:
    chain = authority.sign(CSR, REVIEWS, 3600, NOW, dns=("reviews.default.svc",))
    leaf, issuer, root = (load_bundle(one)[0] for one in chain)
    assert to_der(authority.roots_pem) == (root.public_bytes(Encoding.DER),)
    assert len(leaf.subject.rdns) == 0
    assert leaf.not_valid_before_utc.timestamp() == NOW - 120
    assert leaf.not_valid_after_utc.timestamp() == NOW + 3600
    assert same_key(leaf.public_key(), load_key(KEY).public_key())
    found = {extension.value.oid: extension for extension in leaf.extensions}
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert names.critical
    assert [name.value for name in names.value] == [str(REVIEWS), "reviews.default.svc"]
    usage = leaf.extensions.get_extension_for_class(x509.KeyUsage)
    assert usage.critical
    assert (usage.value.digital_signature, usage.value.key_encipherment) == (True, True)
    assert (usage.value.key_cert_sign, usage.value.crl_sign, usage.value.key_agreement) == (False,) * 3
    extended = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert set(extended) == {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
    assert leaf.extensions.get_extension_for_class(x509.BasicConstraints).value == x509.BasicConstraints(
        ca=False, path_length=None
    )
    assert len(found) == 5
    limits = [one.extensions.get_extension_for_class(x509.BasicConstraints).value for one in (issuer, root)]
    assert limits == [x509.BasicConstraints(True, 0), x509.BasicConstraints(True, None)]


@pytest.mark.parametrize("purpose", Purpose)
def test_peers_take_it(authority: Authority, purpose: Purpose) -> None:
    der = to_der("".join(authority.sign(CSR, REVIEWS, 0, NOW)))
    assert check_peer(der, trust_domains=("cluster.local",), now=NOW, purpose=purpose) == REVIEWS
    assert len(verify_chain(der, authority.roots_pem, NOW, purpose=purpose)) == 3
    assert len(verify_chain(der[:2], authority.roots_pem, NOW, purpose=purpose)) == 3


def test_serials_are_random_and_long(authority: Authority) -> None:
    serials = {load_bundle(authority.sign(CSR, REVIEWS, 0, NOW)[0])[0].serial_number for _ in range(20)}
    assert len(serials) == 20
    assert 120 <= max(serial.bit_length() for serial in serials) <= 128


def test_names_of_the_request_are_not_read(authority: Authority) -> None:
    admin = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "admin")])
    asked = csr(
        load_key(KEY),
        admin,
        x509.SubjectAlternativeName(
            [x509.UniformResourceIdentifier("spiffe://cluster.local/ns/kube-system/sa/admin")]
        ),
        x509.BasicConstraints(ca=True, path_length=None),
    )
    leaf = load_bundle(authority.sign(asked, REVIEWS, 0, NOW)[0])[0]
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [name.value for name in names] == [str(REVIEWS)]
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert len(leaf.subject.rdns) == 0


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("", "one PEM block"),
        ("junk", "one PEM block"),
        (CSR + CSR, "one PEM block"),
        (CSR.replace("REQUEST", "RUBBISH"), "can't be read"),
        (CSR.replace("\n", "\n!", 2), "can't be read"),
        (CSR + "é", "signature|"),
        ("x" * (MAX_CSR + 1), f"has {MAX_CSR + 1} bytes; at most {MAX_CSR}"),
        (csr(rsa_key(1024)), "RSA key of 1024 bits"),
        (csr(ec.generate_private_key(ec.SECP224R1())), "curve secp224r1"),
        (csr(ed25519.Ed25519PrivateKey.generate()), "neither EC nor RSA"),
    ],
)
def test_bad_requests(authority: Authority, asked: str, said: str) -> None:
    if said.endswith("|"):  # text beside the block harms nobody
        assert len(authority.sign(asked, REVIEWS, 0, NOW)) == 3
        return
    with pytest.raises(CsrRefused, match=said) as caught:
        authority.sign(asked, REVIEWS, 0, NOW)
    assert caught.value.code == "INVALID_ARGUMENT"
    assert authority.status(NOW)["refused"] == {"INVALID_ARGUMENT": 1}
    assert authority.status(NOW)["issued"] == 0


def test_a_request_for_a_key_that_the_sender_does_not_hold(authority: Authority) -> None:
    theirs, mine = (x509.load_pem_x509_csr(make_csr(make_key(), None)) for _ in range(2))
    der = theirs.public_bytes(Encoding.DER)
    assert theirs.tbs_certrequest_bytes in der
    swapped = mine.public_bytes(Encoding.DER).replace(
        mine.tbs_certrequest_bytes, theirs.tbs_certrequest_bytes
    )
    asked = x509.load_der_x509_csr(swapped).public_bytes(Encoding.PEM).decode()
    with pytest.raises(CsrRefused, match="signature of the request is wrong"):
        authority.sign(asked, REVIEWS, 0, NOW)


def test_another_trust_domain_is_refused(authority: Authority) -> None:
    with pytest.raises(CsrRefused) as caught:
        authority.sign(CSR, SpiffeId("evil.example", "default", "reviews"), 0, NOW)
    assert caught.value.code == "PERMISSION_DENIED"


@pytest.mark.parametrize("key", [rsa_key(), ec.generate_private_key(ec.SECP384R1())], ids=["rsa", "p384"])
def test_other_keys_are_signed(authority: Authority, key: object) -> None:
    der = to_der("".join(authority.sign(csr(key), REVIEWS, 0, NOW)))
    assert check_peer(der, trust_domains=(), now=NOW, purpose=Purpose.CLIENT) == REVIEWS


@pytest.mark.parametrize(("asked", "given_"), [(0, 86400), (1, 1), (3600, 3600), (MAX_TTL_S, MAX_TTL_S)])
def test_lives(authority: Authority, asked: int, given_: int) -> None:
    leaf = load_bundle(authority.sign(CSR, REVIEWS, asked, NOW)[0])[0]
    assert leaf.not_valid_after_utc.timestamp() == NOW + given_


@pytest.mark.parametrize("asked", [-1, -(2**63), MAX_TTL_S + 1, 2**63 - 1])
def test_lives_out_of_bounds(authority: Authority, asked: int) -> None:
    with pytest.raises(CsrRefused) as caught:
        authority.sign(CSR, REVIEWS, asked, NOW)
    assert caught.value.code == "INVALID_ARGUMENT"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(ttl=st.integers(0, MAX_TTL_S), after=st.integers(0, 3650 * DAY_S - 1))
def test_a_leaf_never_outlives_its_issuers(authority: Authority, ttl: int, after: int) -> None:
    now = NOW + after
    authority.reload(now)
    leaf, *above = (load_bundle(one)[0] for one in authority.sign(CSR, REVIEWS, ttl, now))
    end = leaf.not_valid_after_utc
    assert end <= min(one.not_valid_after_utc for one in above)
    assert now - 1 < end.timestamp() <= now + (ttl or 86400)
    if ROOT_LIFE_S - after > MAX_TTL_S:
        assert end.timestamp() == now + (ttl or 86400)


def test_the_issuer_is_renewed_and_an_expired_root_signs_nothing(authority: Authority) -> None:
    first = authority.status(NOW)["issuer"]["fingerprint"]
    assert authority.reload(NOW + 182 * DAY_S) is False
    assert authority.reload(NOW + 183 * DAY_S) is True
    second = authority.status(NOW + 183 * DAY_S)["issuer"]
    assert second["fingerprint"] != first
    assert second["end"] == NOW + (183 + 365) * DAY_S
    end = NOW + ROOT_LIFE_S
    authority.reload(end)
    with pytest.raises(CsrRefused, match="the signing certificate ended at 2037") as caught:
        authority.sign(CSR, REVIEWS, 0, end)
    assert caught.value.code == "FAILED_PRECONDITION"
    with pytest.raises(ConfigError, match="ended"):
        authority.server_certificate(["control"], end)
    assert authority.status(end)["warnings"] == ["the signing certificate has ended: nothing can be signed"]


def test_an_issuer_that_was_not_renewed_bounds_the_leaf(tmp_path: Path) -> None:
    root = ca("root", end=NOW + 1000)
    plugin(tmp_path / "plugin", root=root)
    authority = Authority.open(
        tmp_path / "state", trust_domain="cluster.local", now=NOW, plugin=tmp_path / "plugin"
    )
    leaf = load_bundle(authority.sign(CSR, REVIEWS, 3600, NOW)[0])[0]
    assert leaf.not_valid_after_utc.timestamp() == NOW + 1000
    with pytest.raises(CsrRefused, match="ended"):
        authority.sign(CSR, REVIEWS, 3600, NOW + 1000)


def test_a_root_with_little_left_is_told(authority: Authority) -> None:
    authority.reload(NOW + 2919 * DAY_S)
    assert authority.status(NOW + 2919 * DAY_S)["warnings"] == []
    authority.reload(NOW + 2921 * DAY_S)
    assert authority.status(NOW + 2921 * DAY_S)["warnings"] == [
        "the root ends in 729 days: run `meshlib ca rotate-root`"
    ]


def test_a_server_certificate(authority: Authority) -> None:
    made = authority.server_certificate(["Control.mesh", "127.0.0.1", "::1", "control.mesh"], NOW)
    leaf, issuer = load_bundle(made.chain_pem)
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["control.mesh"]
    assert names.get_values_for_type(x509.IPAddress) == [
        ipaddress.ip_address("127.0.0.1"),
        ipaddress.ip_address("::1"),
    ]
    assert list(leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [
        ExtendedKeyUsageOID.SERVER_AUTH
    ]
    assert same_key(leaf.public_key(), load_key(made.key_pem).public_key())
    path = verify_chain(to_der(made.chain_pem), authority.roots_pem, NOW, purpose=Purpose.SERVER)
    assert path[1] == issuer
    assert fingerprint(path[2]) == authority.fingerprint
    assert (made.term.begin, made.term.end) == (NOW, NOW + DAY_S)


@pytest.mark.parametrize(
    "names", [[], [""], ["*.mesh"], ["a b"], ["x" * 254], ["a..b"], ["über.mesh"], ["a."]]
)
def test_a_server_needs_real_names(authority: Authority, names: list[str]) -> None:
    with pytest.raises(ValueError):
        authority.server_certificate(names, NOW)


def test_keys_are_in_no_text(authority: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    made = authority.server_certificate(["control"], NOW)
    authority.rotate_root(NOW)
    held = authority._held
    texts = [repr(authority), repr(held), str(held), repr(made), str(authority.status(NOW)), caplog.text]
    stored = (tmp_path / "state/authority.json").read_text()
    assert stored.count("PRIVATE KEY") == 8
    assert [text for text in texts if "PRIVATE" in text or "PrivateKey" in text] == []
    secret = made.key_pem.decode().splitlines()[1]
    assert [text for text in texts if secret in text] == []
    assert serialization.load_pem_private_key(made.key_pem, None)
