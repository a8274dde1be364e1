"""Join tokens, and each way to forge or misuse one."""

import base64
import hmac
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from joserfc import jwt
from joserfc.jwk import ECKey, RSAKey

from meshlib.control.ca import tokens as module
from meshlib.control.ca.jwt import TokenRefused
from meshlib.control.ca.tokens import ALGORITHM, JoinTokens
from meshlib.errors import ConfigError
from meshlib.identity.spiffe import SpiffeId

CART = SpiffeId("cluster.local", "shop", "cart")
NOW = 1_800_000_000.0


@pytest.fixture
def made(tmp_path: Path) -> JoinTokens:
    return JoinTokens.open(tmp_path)


def part(value: Any) -> str:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def parts(token: str) -> tuple[dict[str, Any], dict[str, Any], str]:
    head, body, signature = token.split(".")
    read = [json.loads(base64.urlsafe_b64decode(one + "==")) for one in (head, body)]
    return read[0], read[1], signature


def signed(made: JoinTokens, header: dict[str, Any] | None = None, **claims: Any) -> str:
    """A token signed by the right key that says something else; None leaves a claim out."""
    _, said, _ = parts(made.issue(CART, 60, NOW))
    said = {name: value for name, value in {**said, **claims}.items() if value is not None}
    return jwt.encode({"alg": ALGORITHM, "kid": made.name, **(header or {})}, said, made._key, [ALGORITHM])


def refused(made: JoinTokens, token: str, now: float = NOW) -> str:
    with pytest.raises(TokenRefused) as caught:
        made.verify(token, now)
    assert token not in str(caught.value) or not token
    return str(caught.value)


def test_a_token_proves_who_its_bearer_is(made: JoinTokens) -> None:
    proof = made.verify(made.issue(CART, 60, NOW), NOW)
    assert (proof.identity, proof.ends, proof.once) == (CART, NOW + 60, "")


def test_its_claims_are_as_documented(made: JoinTokens) -> None:
    head, body, _ = parts(made.issue(CART, 60, NOW, single_use=True))
    assert head == {"alg": "ES256", "typ": "JWT", "kid": made.name}
    assert len(body.pop("jti")) == 32
    assert body == {
        "iss": "meshlib-ca",
        "sub": "spiffe://cluster.local/ns/shop/sa/cart",
        "aud": "meshlib-control",
        "iat": NOW,
        "nbf": NOW,
        "exp": NOW + 60,
        "use": "once",
    }


def test_the_key_is_kept_and_is_the_owners_alone(tmp_path: Path) -> None:
    token = JoinTokens.open(tmp_path).issue(CART, 60, NOW)
    assert JoinTokens.open(tmp_path).verify(token, NOW).identity == CART
    key = tmp_path / module.KEY_FILE
    assert key.stat().st_mode & 0o777 == 0o600
    key.chmod(0o644)
    with pytest.raises(ConfigError, match="open to other users"):
        JoinTokens.open(tmp_path)


@pytest.mark.parametrize("content", [b"", b"nonsense", ECKey.generate_key("P-384").as_pem(private=True)])
def test_a_broken_key_is_told(content: bytes, tmp_path: Path) -> None:
    JoinTokens.open(tmp_path)
    (tmp_path / module.KEY_FILE).write_bytes(content)
    with pytest.raises(ConfigError, match="is no private key"):
        JoinTokens.open(tmp_path)


@pytest.mark.parametrize("life", [0, -1, 367 * 86400])
def test_no_such_lifetime(life: int, made: JoinTokens) -> None:
    with pytest.raises(ConfigError, match="lifetime"):
        made.issue(CART, life, NOW)


# Attacks


@pytest.mark.parametrize("name", ["none", "None", "NONE", "nOnE", "noNE", "nonE", "NoNe", "", " none"])
def test_attack_alg_none(name: str, made: JoinTokens) -> None:
    head, body, signature = parts(made.issue(CART, 60, NOW))
    for last in ("", signature, part(b"x")):
        why = refused(made, f"{part(head | {'alg': name})}.{part(body)}.{last}")
        assert "is not taken" in why or "three parts" in why


@pytest.mark.parametrize("name", ["HS256", "HS384", "HS512"])
def test_attack_public_key_as_hmac_secret(name: str, made: JoinTokens) -> None:
    head, body, _ = parts(made.issue(CART, 60, NOW))
    text = f"{part(head | {'alg': name})}.{part(body)}"
    digest = hmac.digest(made._key.as_pem(private=False), text.encode(), name.replace("HS", "sha"))
    assert refused(made, f"{text}.{part(digest)}") == f"algorithm '{name}' is not taken; only ES256 is"


def test_attack_another_algorithm(made: JoinTokens) -> None:
    _, body, _ = parts(made.issue(CART, 60, NOW))
    for name, key in (("RS256", RSAKey.generate_key(2048)), ("ES384", ECKey.generate_key("P-384"))):
        token = jwt.encode({"alg": name, "kid": made.name}, body, key, [name])
        assert refused(made, token) == f"algorithm '{name}' is not taken; only ES256 is"


@pytest.mark.parametrize("name", ["jwk", "jku", "x5u", "x5c", "x5t", "crit", "b64", "zip", "enc", "cty"])
def test_attack_header_that_brings_a_key_or_changes_the_meaning(name: str, made: JoinTokens) -> None:
    own = ECKey.generate_key("P-256")
    _, body, _ = parts(made.issue(CART, 60, NOW))
    value: Any = own.as_dict(private=False) if name == "jwk" else "https://evil.example/key"
    text = f"{part({'alg': ALGORITHM, 'kid': made.name, name: value})}.{part(body)}"
    assert refused(made, f"{text}.{part(b'x' * 64)}") == (
        f"header parameter '{name}' is not taken; only alg, typ and kid are"
    )


@pytest.mark.parametrize(
    "name",
    ["../../../../dev/null", "/etc/passwd", "' OR 1=1 --", "x' UNION SELECT 'k", "", "http://evil/", "\0"],
)
def test_attack_kid(name: str, made: JoinTokens) -> None:
    _, body, _ = parts(made.issue(CART, 60, NOW))
    blank = f"{part({'alg': ALGORITHM, 'kid': name})}.{part(body)}.{part(bytes(64))}"
    assert refused(made, blank) == "the token is signed by a key that is not known here"


@pytest.mark.parametrize("value", [None, 1, [], {}, True])
def test_attack_header_values_that_are_no_text(value: Any, made: JoinTokens) -> None:
    _, body, signature = parts(made.issue(CART, 60, NOW))
    for name in ("alg", "kid", "typ"):
        head = {"alg": ALGORITHM, "kid": made.name, name: value}
        assert refused(made, f"{part(head)}.{part(body)}.{signature}") == (
            "the token's header has a value that is no text"
        )


@pytest.mark.parametrize("secret", ["", "\0" * 32])
def test_attack_blank_key(secret: str, made: JoinTokens) -> None:
    head, body, _ = parts(made.issue(CART, 60, NOW))
    text = f"{part(head | {'alg': 'HS256'})}.{part(body)}"
    digest = hmac.digest(secret.encode(), text.encode(), "sha256")
    assert "is not taken" in refused(made, f"{text}.{part(digest)}")


@pytest.mark.parametrize(
    "signature",
    [b"\0", bytes(64), b"\0" * 63 + b"\1", b"\xff" * 64, b"\x30\x06\x02\x01\x00\x02\x01\x00", b"x" * 65],
)
def test_attack_null_signature(signature: bytes, made: JoinTokens) -> None:
    head, body, _ = made.issue(CART, 60, NOW).split(".")
    assert refused(made, f"{head}.{body}.{part(signature)}") == "the token's signature is not right"


def test_attack_another_key_of_the_same_name(made: JoinTokens) -> None:
    head, body, _ = parts(made.issue(CART, 60, NOW))
    token = jwt.encode(head, body, ECKey.generate_key("P-256"), [ALGORITHM])
    assert refused(made, token) == "the token's signature is not right"


def test_attack_another_subject_under_the_same_signature(made: JoinTokens) -> None:
    head, body, signature = parts(made.issue(CART, 60, NOW))
    changed = body | {"sub": "spiffe://cluster.local/ns/istio-system/sa/operator"}
    assert refused(made, f"{part(head)}.{part(changed)}.{signature}") == "the token's signature is not right"


def test_attack_expired_to_the_second(made: JoinTokens) -> None:
    token = made.issue(CART, 60, NOW)
    assert made.verify(token, NOW + 59.9).identity == CART
    assert refused(made, token, NOW + 60) == "the token expired 0 s ago"
    assert refused(made, token, NOW + 120) == "the token expired 60 s ago"


def test_attack_future(made: JoinTokens) -> None:
    token = made.issue(CART, 600, NOW)
    assert made.verify(token, NOW - 60).identity == CART
    assert refused(made, token, NOW - 61) == "the token is valid in 61 s only (nbf)"
    assert refused(made, signed(made, nbf=None), NOW - 61) == "the token is valid in 61 s only (iat)"


@pytest.mark.parametrize(
    "value", ["istio-ca", "", None, [], ["istio-ca"], {"meshlib-control": 1}, 1, "MESHLIB-CONTROL"]
)
def test_attack_wrong_audience(value: Any, made: JoinTokens) -> None:
    assert refused(made, signed(made, aud=value)) == "the token is not for audience 'meshlib-control'"


@pytest.mark.parametrize(
    ("claims", "why"),
    [
        ({"exp": None}, "the token has no end (exp)"),
        ({"exp": "9999999999"}, "the token's claim exp is no time"),
        ({"exp": True}, "the token's claim exp is no time"),
        ({"exp": 1e300}, "the token's claim exp is no time of this era"),
        ({"nbf": [0]}, "the token's claim nbf is no time"),
        ({"iss": "somebody"}, "the token is not from meshlib-ca"),
        ({"iss": None}, "the token is not from meshlib-ca"),
        ({"jti": None}, "the token's claim jti is no text of 1 to 64 characters"),
        ({"jti": "a b\nc"}, "the token's claims use or jti are not of our making"),
        ({"use": "twice"}, "the token's claims use or jti are not of our making"),
        ({"sub": "cart"}, "the token's subject is no identity of a workload"),
        ({"sub": None}, "the token's claim sub is no text of 1 to 2048 characters"),
        ({"sub": "spiffe://cluster.local/ns/../sa/x"}, "the token's subject is no identity of a workload"),
    ],
)
def test_attack_claims(claims: dict[str, Any], why: str, made: JoinTokens) -> None:
    assert refused(made, signed(made, **claims)) == why


@pytest.mark.parametrize(
    "spoil",
    [
        lambda token: "",
        lambda token: "..",
        lambda token: token.rsplit(".", 1)[0],
        lambda token: token + ".x",
        lambda token: token + "=",
        lambda token: token + "\n",
        lambda token: "é" + token,
        lambda token: part(b"[" * 700) + token[token.index(".") :],
        lambda token: part([]) + token[token.index(".") :],
        lambda token: part(b"\xff") + token[token.index(".") :],
        lambda token: json.dumps({"payload": token, "signatures": []}),
    ],
)
def test_attack_what_is_no_token(spoil: Callable[[str], str], made: JoinTokens) -> None:
    assert refused(made, spoil(made.issue(CART, 60, NOW)))


def test_attack_a_huge_token(made: JoinTokens) -> None:
    assert refused(made, "a" * 10_000) == "the token has 10000 characters; at most 8192 are allowed"


def test_attack_replayed_single_use_token(tmp_path: Path) -> None:
    made = JoinTokens.open(tmp_path)
    token = made.issue(CART, 60, NOW, single_use=True)
    proof = made.verify(token, NOW)
    made.verify(token, NOW)  # a look does not spend it
    made.spend(proof, NOW)
    used = "the token is for single use and was used"
    assert refused(made, token) == used
    with pytest.raises(TokenRefused, match=used):
        made.spend(proof, NOW)
    again = JoinTokens.open(tmp_path)  # after a restart
    assert refused(again, token) == used
    assert (tmp_path / module.SPENT_FILE).stat().st_mode & 0o777 == 0o600


def test_a_line_that_was_not_finished_hides_none_after_it(tmp_path: Path) -> None:
    (tmp_path / module.SPENT_FILE).write_text("1800000")
    made = JoinTokens.open(tmp_path)
    token = made.issue(CART, 60, NOW, single_use=True)
    made.spend(made.verify(token, NOW), NOW)
    assert refused(JoinTokens.open(tmp_path), token) == "the token is for single use and was used"


def test_a_record_torn_at_any_byte_never_makes_a_used_token_good(tmp_path: Path) -> None:
    made = JoinTokens.open(tmp_path)
    first, second, third = (made.issue(CART, 60, NOW, single_use=True) for _ in range(3))
    for used in (first, second):
        made.spend(made.verify(used, NOW), NOW)
    record = tmp_path / module.SPENT_FILE
    whole = record.read_bytes()
    line = len(whole) // 2
    for size in range(line - 1, len(whole) + 1):
        record.write_bytes(whole[:size])
        torn = JoinTokens.open(tmp_path)
        torn.spend(torn.verify(third, NOW), NOW)
        again = JoinTokens.open(tmp_path)
        # The second was not used before all of its line but the end was on disk.
        used_by_then = (first, third) if size < len(whole) - 1 else (first, second, third)
        for used in used_by_then:
            assert refused(again, used) == "the token is for single use and was used", size
        assert record.read_bytes().endswith(b"\n")


def test_what_is_remembered_is_bounded_and_nothing_is_forgotten_early(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_SPENT", 3)
    made = JoinTokens.open(tmp_path)
    used = [made.issue(CART, 60, NOW, single_use=True) for _ in range(3)]
    for token in used:
        made.spend(made.verify(token, NOW), NOW)
    later = made.verify(made.issue(CART, 600, NOW, single_use=True), NOW)
    with pytest.raises(TokenRefused, match="no further one is taken"):
        made.spend(later, NOW + 119)
    made.spend(later, NOW + 120)  # the first three have ended, leeway and all
    assert len((tmp_path / module.SPENT_FILE).read_text().splitlines()) == 1


def test_the_secret_is_in_no_repr(made: JoinTokens) -> None:
    assert "PRIVATE" not in repr(made)
