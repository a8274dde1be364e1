"""Tokens, good and bad, under keys of every kind: the attack matrix."""

import base64
import hashlib
import hmac
import json
from typing import Any

import pytest
from support.oracle_policies import Signers, encoded

from meshlib.core.authn.provider import HeaderPlace, Provider
from meshlib.core.authn.requirement import By, JwtAuthn, Refusal, Without
from meshlib.core.authn.token import Fault, read
from meshlib.core.authz.question import Question
from meshlib.core.request import Peer, RequestHead
from meshlib.core.route.match import RouteMatch
from meshlib.dataplane.jwt import MOST_KEPT, KeySet

NOW = 1_800_000_000.0
ISSUER = "https://issuer.example"
CLAIMS = {"iss": ISSUER, "sub": "jason", "aud": "reviews", "exp": int(NOW) + 600}
RS: dict[str, Any] = {"alg": "RS256", "kid": "r"}
PEER = Peer(("10.0.0.1", 1), ("10.0.0.2", 9080))


@pytest.fixture(scope="module")
def signers() -> Signers:
    return Signers()


def asked(signers: Signers, token: str, now: float = NOW, jwks: str = "") -> Refusal | None:
    provider = Provider("p", KeySet(jwks or signers.jwks), ISSUER, frozenset(("reviews",)))
    headers = [(b"authorization", b"Bearer " + token.encode())]
    question = Question(RequestHead("GET", "http", "h", "/", headers), PEER)
    return JwtAuthn("jwt", ((RouteMatch(), By(provider)),), (provider,)).judge(question, now)


def without_edwards(signers: Signers) -> str:
    """The keys but Ed25519's, which looks at a signature's length before anything else."""
    return json.dumps({"keys": [key for key in json.loads(signers.jwks)["keys"] if key["kty"] != "OKP"]})


def fault(signers: Signers, token: str, now: float = NOW, jwks: str = "") -> Fault | None:
    refusal = asked(signers, token, now, jwks)
    return None if refusal is None else refusal.fault


@pytest.mark.parametrize(
    "header",
    [
        RS,
        {"alg": "RS256"},
        {"alg": "PS256", "kid": "r"},
        {"alg": "ES256", "kid": "e"},
        {"alg": "EdDSA", "kid": "d"},
    ],
    ids=lambda header: str(header["alg"]),
)
def test_a_good_token_passes(signers: Signers, header: dict[str, Any]) -> None:
    assert fault(signers, signers.token(header, CLAIMS)) is None


@pytest.mark.parametrize("name", ["none", "None", "NONE", "nOnE", "", " none", "none "])
@pytest.mark.parametrize("signature", ["", "AA"])
def test_alg_none_in_any_case_is_refused(signers: Signers, name: str, signature: str) -> None:
    token = f"{encoded({'alg': name})}.{encoded(CLAIMS)}.{signature}"
    assert fault(signers, token) is (Fault.ALG_UNKNOWN if signature else Fault.FORMAT)


@pytest.mark.parametrize("algorithm", ["HS256", "HS384", "HS512"])
def test_a_public_key_is_no_shared_secret(signers: Signers, algorithm: str) -> None:
    signed = f"{encoded({'alg': algorithm, 'kid': 'r'})}.{encoded(CLAIMS)}"
    made = hmac.new(signers.public_pem, signed.encode(), getattr(hashlib, f"sha{algorithm[2:]}")).digest()
    assert fault(signers, f"{signed}.{encoded(made)}") is Fault.NOT_VERIFIED


@pytest.mark.parametrize("secret", ["", "AA", base64.urlsafe_b64encode(b"secret" * 8).decode()])
def test_a_symmetric_key_of_the_configuration_verifies_nothing(signers: Signers, secret: str) -> None:
    jwks = json.dumps({"keys": [{"kty": "oct", "k": secret, "kid": "r"}]})
    signed = f"{encoded({'alg': 'HS256', 'kid': 'r'})}.{encoded(CLAIMS)}"
    made = hmac.new(base64.urlsafe_b64decode(secret + "=="), signed.encode(), hashlib.sha256).digest()
    assert fault(signers, f"{signed}.{encoded(made)}", jwks=jwks) is Fault.NO_KEYS


def test_a_key_in_the_token_is_not_looked_at(signers: Signers) -> None:
    from joserfc.jwk import RSAKey

    own = RSAKey.import_key(signers.stranger).as_dict(private=False)
    for extra in ({"jwk": own}, {"jwk": own, "kid": "r"}, {"x5c": ["AAAA"]}, {"x5t": "AAAA"}):
        token = signers.token({"alg": "RS256", **extra}, CLAIMS, "stranger")
        assert fault(signers, token, jwks=without_edwards(signers)) is Fault.NOT_VERIFIED


@pytest.mark.parametrize("name", ["jku", "x5u"])
@pytest.mark.parametrize(
    "where", ["http://evil.example/keys", "file:///etc/passwd", "https://issuer.example@evil/"]
)
def test_keys_are_fetched_from_nowhere(signers: Signers, name: str, where: str) -> None:
    token = signers.token({"alg": "RS256", name: where}, CLAIMS, "stranger")
    assert fault(signers, token, jwks=without_edwards(signers)) is Fault.NOT_VERIFIED


@pytest.mark.parametrize(
    "kid",
    ["../../../../dev/null", "/dev/null", "r' OR '1'='1", "r; DROP TABLE keys", "r\0", "R", "r/../e", "*"],
)
def test_a_kid_is_a_name_and_nothing_else(signers: Signers, kid: str) -> None:
    for algorithm in ("RS256", "stranger"):
        token = signers.token({"alg": "RS256", "kid": kid}, CLAIMS, algorithm)
        assert fault(signers, token) is Fault.NO_SUCH_KEY


def test_the_kid_of_another_key_does_not_help(signers: Signers) -> None:
    assert (
        fault(signers, signers.token({"alg": "RS256", "kid": "e"}, CLAIMS), jwks=without_edwards(signers))
        is Fault.NOT_VERIFIED
    )


@pytest.mark.parametrize("kid", [5, None, [], {}, True])
def test_a_kid_that_is_no_text(signers: Signers, kid: object) -> None:
    assert fault(signers, signers.token({"alg": "RS256", "kid": kid}, CLAIMS)) is Fault.KID


@pytest.mark.parametrize("size", [0, 1, 64, 255, 256])
def test_a_signature_of_nothing_but_zeros(signers: Signers, size: int) -> None:
    token = f"{encoded(RS)}.{encoded(CLAIMS)}.{encoded(bytes(size))}"
    assert fault(signers, token) is (Fault.NOT_VERIFIED if size else Fault.FORMAT)


def test_zeros_are_no_signature_of_a_curve(signers: Signers) -> None:
    token = f"{encoded({'alg': 'ES256', 'kid': 'e'})}.{encoded(CLAIMS)}.{encoded(bytes(64))}"
    assert fault(signers, token) is Fault.NOT_VERIFIED


@pytest.mark.parametrize(
    ("changed", "found"),
    [
        ({"exp": int(NOW) - 61}, Fault.EXPIRED),
        ({"exp": int(NOW) - 60}, None),
        ({"nbf": int(NOW) + 61}, Fault.NOT_YET),
        ({"nbf": int(NOW) + 60}, None),
        ({"aud": "ratings"}, Fault.AUDIENCE),
        ({"aud": []}, Fault.AUDIENCE),
        ({"aud": ["ratings", "reviews"]}, None),
        ({"aud": "https://reviews/"}, None),
        ({"aud": {"reviews": 1}}, Fault.AUD),
        ({"iss": "https://issuer.example/"}, Fault.ISSUER),
        ({"iss": "HTTPS://ISSUER.EXAMPLE"}, Fault.ISSUER),
        ({"iss": ""}, Fault.ISSUER),
        ({"iss": ["https://issuer.example"]}, Fault.ISS),
        ({"exp": "2099"}, Fault.EXP),
        ({"exp": True}, Fault.EXP),
        ({"exp": -1}, Fault.EXP_RANGE),
        ({"exp": 2**70}, Fault.EXP_RANGE),
        ({"nbf": None}, Fault.NBF),
    ],
)
def test_who_when_and_for_whom(signers: Signers, changed: dict[str, Any], found: Fault | None) -> None:
    assert fault(signers, signers.token(RS, {**CLAIMS, **changed})) is found


def test_a_changed_claim_breaks_the_signature(signers: Signers) -> None:
    head, _, signature = signers.token(RS, CLAIMS).split(".")
    token = f"{head}.{encoded({**CLAIMS, 'sub': 'admin'})}.{signature}"
    assert fault(signers, token) is Fault.NOT_VERIFIED


def test_what_is_critical_and_not_known_is_refused(signers: Signers) -> None:
    token = signers.token({**RS, "crit": ["b64"], "b64": False}, CLAIMS)
    assert fault(signers, token) is Fault.NOT_VERIFIED


def test_a_stranger_signs_nothing(signers: Signers) -> None:
    assert fault(signers, signers.token(RS, CLAIMS, "stranger")) is Fault.NOT_VERIFIED


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", Fault.FORMAT),
        ("a", Fault.FORMAT),
        ("a.b", Fault.FORMAT),
        ("a.b.c.d", Fault.FORMAT),
        ("a" * 40_000 + ".b.c", Fault.FORMAT),
        ("a.b.c", Fault.HEADER_BASE64),
        (f"{encoded(b'[]')}.e30.AA", Fault.HEADER_JSON),
        (f"{encoded(b'[' * 9000)}.e30.AA", Fault.HEADER_JSON),
        (encoded(b'{"alg": NaN}') + ".e30.AA", Fault.HEADER_JSON),
        (encoded(b"\xff\xfe") + ".e30.AA", Fault.HEADER_JSON),
        (f"{encoded({})}.e30.AA", Fault.ALG),
        (f"{encoded({'alg': ['RS256']})}.e30.AA", Fault.ALG),
        (f"{encoded({'alg': 'RS256 '})}.e30.AA", Fault.ALG_UNKNOWN),
        (f"{encoded(RS)}.!.AA", Fault.PAYLOAD_BASE64),
        (encoded(RS) + "." + encoded(b'"x"') + ".AA", Fault.PAYLOAD_JSON),
        (f"{encoded(RS)}.{encoded({})}.!", Fault.SIGNATURE_BASE64),
    ],
)
def test_what_can_not_be_read(text: str, found: Fault) -> None:
    assert read(text) is found


@pytest.mark.parametrize(
    "jwks", ["", "{", "[]", '{"keys": 5}', '{"keys": []}', '{"keys": [{"kty": "RSA"}]}', "x" * 300_000]
)
def test_without_a_key_no_token_is_good(signers: Signers, jwks: str) -> None:
    assert fault(signers, signers.token(RS, CLAIMS), jwks=jwks or "{}") is Fault.NO_KEYS


def test_answers_say_what_is_wrong_as_envoy_does(signers: Signers) -> None:
    refusal = asked(signers, signers.token(RS, {**CLAIMS, "exp": 5}))
    assert refusal is not None
    assert (refusal.fault.status, refusal.body) == (401, b"Jwt is expired")
    assert dict(refusal.headers)[b"www-authenticate"] == b'Bearer realm="http://h/", error="invalid_token"'
    assert refusal.detail == "jwt_authn_access_denied{Jwt_is_expired}"
    other = asked(signers, signers.token(RS, {**CLAIMS, "aud": "x"}))
    assert other is not None
    assert (other.fault.status, other.body) == (403, b"Audiences in Jwt are not allowed")


def test_a_verified_token_is_kept_but_not_beyond_its_end(signers: Signers) -> None:
    keys = KeySet(signers.jwks)
    token = read(signers.token(RS, CLAIMS))
    assert not isinstance(token, Fault)
    assert keys.kept(token.text) is None
    keys.keep(token)
    assert keys.kept(token.text) is token
    provider = Provider("p", keys, ISSUER)
    needs = JwtAuthn("jwt", ((RouteMatch(), By(provider)),), (provider,))
    head = RequestHead("GET", "http", "h", "/", [(b"authorization", b"Bearer " + token.text.encode())])
    assert needs.judge(Question(head, PEER), NOW) is None
    late = needs.judge(Question(head, PEER), NOW + 661)
    assert late is not None
    assert late.fault is Fault.EXPIRED


def test_only_so_many_tokens_are_kept(signers: Signers) -> None:
    keys = KeySet(signers.jwks)
    tokens = [read(f"{encoded(RS)}.{encoded({'n': number})}.AA") for number in range(MOST_KEPT + 5)]
    for token in tokens:
        assert not isinstance(token, Fault)
        keys.keep(token)
    assert repr(keys) == f"<KeySet of 3, {MOST_KEPT} tokens kept>"


@pytest.mark.parametrize("number", ["1e400", "-1e400", "1" + "0" * 400, "-1" + "0" * 400, "9" * 5000])
def test_a_number_that_is_none_is_no_json(signers: Signers, number: str) -> None:
    claims = json.dumps({**CLAIMS, "n": 0})
    header = {"alg": "RS256", "kid": "r"}
    assert fault(signers, signers.token(header, claims.encode())) is None
    broken = claims.replace('"n": 0', f'"n": {number}')
    assert fault(signers, signers.token(header, broken.encode())) is Fault.PAYLOAD_JSON


FORGED = ((b"X-Sub", b"forged"), (b"x_sub", b"forged"), (b"x_payload", b"forged"), (b"x-other", b"1"))


@pytest.mark.parametrize("spelt", [b"x-sub", b"x_sub"])
@pytest.mark.parametrize("place", [b"x-token", b"x_token"])
def test_what_a_client_says_in_the_headers_of_claims_is_gone(
    signers: Signers, spelt: bytes, place: bytes
) -> None:
    provider = Provider(
        "p",
        KeySet(signers.jwks),
        ISSUER,
        headers=(HeaderPlace(place),),
        payload_header=b"x-payload",
        claim_headers=((spelt, "sub"), (b"x-none", "none")),
    )
    rules = ((RouteMatch(), Without((provider,))),)
    filter_ = JwtAuthn("jwt", rules, (provider,), bypass_preflight=True)
    preflight = ((b"origin", b"o"), (b"access-control-request-method", b"PUT"))
    for method, own in (("GET", ()), ("OPTIONS", preflight)):
        question = Question(RequestHead(method, "http", "h", "/", [*FORGED, *own]), PEER)
        assert filter_.judge(question, NOW) is None
        assert question.head.headers == [(b"x-other", b"1"), *own]
    token = signers.token(RS, CLAIMS).encode()
    question = Question(RequestHead("GET", "http", "h", "/", [*FORGED, (place, token)]), PEER)
    assert filter_.judge(question, NOW) is None
    assert question.head.headers == [
        *((b"x-other", b"1"), (b"x-payload", token.split(b".")[1]), (spelt, b"jason"))
    ]
