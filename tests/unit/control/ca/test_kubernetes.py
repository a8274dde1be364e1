"""Kubernetes' service account tokens, and each way to forge one."""

import asyncio
import hmac
import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from joserfc import jwt
from joserfc.jwk import ECKey, OctKey, RSAKey

from meshlib.control.ca.jwt import TokenRefused
from meshlib.control.ca.kubernetes import (
    MAX_AGE_SECONDS,
    REFETCH_SECONDS,
    Cluster,
    KeysUnavailable,
    KubernetesTokens,
    fetch_keys,
    parse_keys,
)
from meshlib.errors import ConfigError, ControlError
from meshlib.identity.spiffe import SpiffeId

NOW = 1_800_000_000.0
ISSUER = "https://kubernetes.default.svc.cluster.local"
RSA, EC = RSAKey.generate_key(2048), ECKey.generate_key("P-256")
CLAIMS = {
    "aud": ["istio-ca"],
    "iss": ISSUER,
    "sub": "system:serviceaccount:shop:cart",
    "exp": NOW + 3600,
    "iat": NOW,
    "nbf": NOW,
    "kubernetes.io": {
        "namespace": "shop",
        "pod": {"name": "cart-1", "uid": "u"},
        "serviceaccount": {"name": "cart", "uid": "u"},
    },
}


def public(key: Any, **more: Any) -> dict[str, Any]:
    return {**key.as_dict(private=False), **more}


KEYS = {"keys": [public(RSA, kid="one", use="sig", alg="RS256"), public(EC, kid="two")]}


def token(key: Any = RSA, alg: str = "RS256", kid: str = "one", **claims: Any) -> str:
    said = {name: value for name, value in {**CLAIMS, **claims}.items() if value is not None}
    return jwt.encode({"alg": alg, "kid": kid}, said, key, [alg], default_type=None)


class Time:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Served:
    """Keys that are given when asked for, and counted."""

    def __init__(self, keys: Any = KEYS) -> None:
        self.keys, self.asked = keys, 0

    async def __call__(self, _: Cluster) -> bytes:
        self.asked += 1
        if isinstance(self.keys, Exception):
            raise self.keys
        return json.dumps(self.keys).encode()


def checker(served: Any = None, clock: Any = None, **cluster: Any) -> KubernetesTokens:
    return KubernetesTokens(
        Cluster(**{"issuer": ISSUER, **cluster}),
        "cluster.local",
        clock=clock or Time(),
        fetch=served or Served(),
    )


async def refused(given: str, **options: Any) -> str:
    with pytest.raises(TokenRefused) as caught:
        await checker(**options).verify(given, NOW)
    return str(caught.value)


async def test_a_projected_token_proves_who_the_pod_is() -> None:
    it = checker()
    for one in (token(), token(EC, "ES256", "two")):
        who, until = await it.verify(one, NOW)
        assert who == SpiffeId("cluster.local", "shop", "cart")
        with pytest.raises(TokenRefused):  # it is taken until then
            await it.verify(one, until)
        assert await it.verify(one, until - 1) == (who, until)


@pytest.mark.parametrize(
    ("claims", "why"),
    [
        ({"sub": "system:serviceaccount:shop"}, "the token's subject is no service account"),
        ({"sub": "system:serviceaccount:shop:cart:x"}, "the token's subject is no service account"),
        ({"sub": "system:node:shop:cart"}, "the token's subject is no service account"),
        ({"sub": "admin"}, "the token's subject is no service account"),
        (
            {"sub": "system:serviceaccount:bank:cart"},
            "the token's claims sub and kubernetes.io contradict each other",
        ),
        ({"kubernetes.io": "shop"}, "the token's claims sub and kubernetes.io contradict each other"),
        (
            {"sub": "system:serviceaccount:..:cart", "kubernetes.io": None},
            "the token's subject is no identity of a workload",
        ),
        ({"iss": "https://evil.example"}, f"the token is not from {ISSUER}"),
        ({"aud": ["https://kubernetes.default.svc"]}, "the token is not for audience 'istio-ca'"),
        ({"aud": None}, "the token is not for audience 'istio-ca'"),
        ({"exp": NOW - 60}, "the token expired 60 s ago"),
        ({"exp": None}, "the token has no end (exp)"),
        ({"nbf": NOW + 61}, "the token is valid in 61 s only (nbf)"),
        ({"iat": NOW + 61}, "the token is valid in 61 s only (iat)"),
    ],
)
async def test_attack_claims(claims: dict[str, Any], why: str) -> None:
    assert await refused(token(**claims)) == why


@pytest.mark.parametrize("name", ["none", "None", "NONE", "nOnE", "NoNe", "HS256", "HS512", "ES256", "PS256"])
async def test_attack_another_algorithm_than_the_keys(name: str) -> None:
    import base64

    def part(value: Any) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()

    text = f"{part({'alg': name, 'kid': 'one'})}.{part(CLAIMS)}"
    digest = hmac.digest(RSA.as_pem(private=False), text.encode(), "sha256")
    signature = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
    assert await refused(f"{text}.{signature}") == f"algorithm '{name}' is not taken; with this key RS256 is"


async def test_attack_symmetric_keys_of_a_jwks_are_no_keys() -> None:
    secret = OctKey.generate_key(256)
    keys = {"keys": [secret.as_dict(private=True) | {"kid": "shared"}, *KEYS["keys"]]}
    assert [key.name for key in parse_keys(json.dumps(keys).encode())] == ["one", "two"]
    why = await refused(token(secret, "HS256", "shared"), served=Served(keys))
    assert why == "the token is signed by a key that is not known here"


async def test_attack_kid_of_another_key() -> None:
    assert (
        await refused(token(EC, "ES256", "one")) == "algorithm 'ES256' is not taken; with this key RS256 is"
    )
    assert await refused(token(RSAKey.generate_key(2048))) == "the token's signature is not right"


@pytest.mark.parametrize("name", ["../../../dev/null", "' OR 1=1 --", "http://169.254.169.254/", ""])
async def test_attack_kid_is_only_compared(name: str) -> None:
    served = Served()
    assert "not known here" in await refused(token(kid=name), served=served)
    assert served.asked == 1


def test_short_keys_are_no_keys() -> None:
    pem = b"""-----BEGIN PUBLIC KEY-----
MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQDdlatRjRjogo3WojgGHFHYLugdUWAY9iR3fy4arWNA1KoS8kVw33cJibXr8bvwUAUparCwlvdbH6dvEOfou0/gCFQsHUfQrSDv+MuSUMAe8jzKE4qW+jK+xQU9a03GUnKHkkle+Q0pX/g6jXZ7r1/xAK5Do2kQ+X5xK9cipRgEKwIDAQAB
-----END PUBLIC KEY-----"""
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    numbers = load_pem_public_key(pem).public_numbers()  # type: ignore[union-attr]
    import base64

    def number(value: int) -> str:
        return (
            base64.urlsafe_b64encode(value.to_bytes((value.bit_length() + 7) // 8, "big"))
            .rstrip(b"=")
            .decode()
        )

    short = {"kty": "RSA", "kid": "short", "n": number(numbers.n), "e": number(numbers.e)}  # type: ignore[union-attr]
    with pytest.raises(ControlError, match="no key that is usable"):
        parse_keys(json.dumps({"keys": [short]}).encode())


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"{}", b'{"keys": 1}', b'{"keys": [1]}', b'{"keys": [{"kty": []}]}']
)
def test_what_is_no_jwks(data: bytes) -> None:
    with pytest.raises(ControlError):
        parse_keys(data)


async def test_keys_are_fetched_when_needed_and_not_oftener_than_every_few_seconds() -> None:
    served, clock = Served({"keys": [public(EC, kid="two")]}), Time()
    it = checker(served, clock)
    for _ in range(5):
        with pytest.raises(TokenRefused):
            await it.verify(token(), NOW)
    assert served.asked == 1
    served.keys = KEYS
    clock.now = REFETCH_SECONDS
    await asyncio.gather(*(it.verify(token(), NOW) for _ in range(5)))
    assert served.asked == 2
    await it.verify(token(), NOW)
    assert served.asked == 2


async def test_a_key_that_is_withdrawn_is_not_taken_for_long() -> None:
    served, clock = Served(), Time()
    it = checker(served, clock)
    await it.verify(token(), NOW)
    served.keys = {"keys": [public(EC, kid="two")]}
    clock.now = MAX_AGE_SECONDS + 1
    with pytest.raises(TokenRefused):
        await it.verify(token(), NOW)


async def test_keys_are_kept_while_none_can_be_fetched() -> None:
    served, clock = Served(), Time()
    it = checker(served, clock)
    await it.verify(token(), NOW)
    served.keys = OSError("no route")
    clock.now = 10 * MAX_AGE_SECONDS
    assert (await it.verify(token(), NOW))[0].namespace == "shop"


async def test_no_keys_at_all_is_told_apart_from_a_bad_token() -> None:
    with pytest.raises(KeysUnavailable, match="no route"):
        await checker(Served(OSError("no route"))).verify(token(), NOW)


@pytest.mark.parametrize(
    "place",
    [
        "http://kubernetes.default.svc/jwks",
        "ftp://127.0.0.1/x",
        "file:///etc/passwd",
        "https://",
        "https://a@b/",
    ],
)
def test_places_that_prove_nothing(place: str) -> None:
    with pytest.raises(ConfigError):
        KubernetesTokens(Cluster(jwks=place), "cluster.local")


@contextmanager
def serving(replies: dict[str, tuple[int, bytes]]) -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = replies.get(self.path, (404, b""))
            self.send_response(status)
            if status == 302:
                self.send_header("location", "/jwks")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Silence."""

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


async def test_keys_come_from_a_file_a_url_or_by_discovery(tmp_path: Path) -> None:
    keys = json.dumps(KEYS).encode()
    (tmp_path / "jwks.json").write_bytes(keys)
    assert await fetch_keys(Cluster(jwks=str(tmp_path / "jwks.json"))) == keys
    replies: dict[str, tuple[int, bytes]] = {"/jwks": (200, keys), "/moved": (302, b"")}
    with serving(replies) as url:
        replies["/.well-known/openid-configuration"] = (
            200,
            json.dumps({"issuer": url, "jwks_uri": f"{url}/jwks"}).encode(),
        )
        assert await fetch_keys(Cluster(jwks=f"{url}/jwks")) == keys
        assert await fetch_keys(Cluster(issuer=url)) == keys
        with pytest.raises(ControlError, match="answers 302"):
            await fetch_keys(Cluster(jwks=f"{url}/moved"))
        with pytest.raises(ControlError, match="answers 404"):
            await fetch_keys(Cluster(jwks=f"{url}/none"))
        with pytest.raises(ControlError, match="of another issuer"):
            await fetch_keys(Cluster(issuer=f"{url}/"))
        replies["/huge"] = (200, b" " * (1024 * 1024 + 1))
        with pytest.raises(ControlError, match="larger than 1048576 bytes"):
            await fetch_keys(Cluster(jwks=f"{url}/huge"))
