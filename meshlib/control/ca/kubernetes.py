"""Kubernetes' service account tokens: a pod that has one is the workload that it says.

A projected token (audience `istio-ca`, as Istio's pods have it) is checked against the cluster's public
keys: a JWKS in a file or at a URL, or where the issuer's discovery document says they are.
Rules:

- `sub` must be `system:serviceaccount:<namespace>:<account>`, and the claim `kubernetes.io`, if there, must
  say the same.
- The key decides which algorithms are right: RSA keys of 2048 bits or more RS256, RS384 or RS512, EC keys
  the one of their curve. Symmetric keys in a JWKS are no keys.
- Keys are fetched when first needed, when they are old, and when a token names one that is not known; not
  oftener than every few seconds, one fetch at a time. While they can't be fetched, those held stay good.
- Fetched is from https, or from this machine; what comes is bounded. Redirects are not followed.
"""

import asyncio
import ipaddress
import json
import logging
import ssl
import time
from base64 import urlsafe_b64decode
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from meshlib.control.ca.jwt import (
    LEEWAY_SECONDS,
    TokenRefused,
    check_audience,
    check_times,
    header,
    text,
    verified,
)
from meshlib.control.fetch import MAX_BYTES, WELL_KNOWN, get, json_object
from meshlib.errors import ConfigError, ControlError
from meshlib.identity.spiffe import SpiffeId

log = logging.getLogger(__name__)

AUDIENCE = "istio-ca"
MAX_TOKEN = 12 * 1024
MAX_KEYS = 100
MIN_RSA_BITS, MAX_RSA_BITS = 2048, 16_384
REFETCH_SECONDS = 10.0
"""At least so long between two fetches."""
MAX_AGE_SECONDS = 300.0
FETCH_TIMEOUT = 10.0
_SUBJECT = "system:serviceaccount:"
_RSA = ("RS256", "RS384", "RS512")
_CURVES = {"P-256": ("ES256",), "P-384": ("ES384",), "P-521": ("ES512",)}


class KeysUnavailable(ControlError):
    """The cluster's keys can't be had now."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """Where a cluster's keys are. One of `issuer` and `jwks` is needed."""

    issuer: str = ""
    """The `iss` of its tokens, compared if given; without `jwks` the URL of the discovery, too."""
    jwks: str = ""
    """A URL, or the path of a file."""
    credentials: Path | None = None
    """A folder with `ca.crt` and `token` for the fetch, as each pod has one."""
    audience: str = AUDIENCE


@dataclass(frozen=True, slots=True)
class _Key:
    name: str
    algorithms: tuple[str, ...]
    key: Any


class KubernetesTokens:
    """Checks the tokens of one cluster. One event loop."""

    def __init__(
        self,
        cluster: Cluster,
        trust_domain: str,
        *,
        clock: Callable[[], float] = time.monotonic,
        fetch: Callable[[Cluster], Awaitable[bytes]] | None = None,
    ) -> None:
        """`clock` in seconds; `fetch` gives the JWKS. ConfigError: keys can't come from there."""
        if not (cluster.issuer or cluster.jwks):
            raise ConfigError("an issuer or a JWKS is needed to check Kubernetes' tokens")
        place = cluster.jwks or cluster.issuer
        if "://" in place or not cluster.jwks:
            _check_url(place)
        self._cluster = cluster
        self._trust_domain = trust_domain
        self._clock = clock
        self._fetch = fetch or fetch_keys
        self._keys: tuple[_Key, ...] = ()
        self._fetched: float | None = None
        self._tried: float | None = None
        self._fetching: asyncio.Task[None] | None = None
        self._failure = ""

    async def verify(self, token: str, now: float) -> tuple[SpiffeId, float]:
        """Who shows this token, and until when it is taken; times in seconds since 1970.

        TokenRefused: the token proves nothing. KeysUnavailable: it can't be checked now.
        """
        said = header(token, MAX_TOKEN)
        key = await self._key(said.key, said.algorithm)
        claims = verified(token, key.key, said.algorithm)
        if self._cluster.issuer and claims.get("iss") != self._cluster.issuer:
            raise TokenRefused(f"the token is not from {self._cluster.issuer}")
        check_audience(claims, self._cluster.audience)
        ends = check_times(claims, now) + LEEWAY_SECONDS
        namespace, account = _account(claims)
        try:
            return SpiffeId.of(self._trust_domain, namespace, account), ends
        except ValueError:
            raise TokenRefused("the token's subject is no identity of a workload") from None

    async def _key(self, name: str, algorithm: str) -> _Key:
        if self._fetched is None or self._clock() - self._fetched > MAX_AGE_SECONDS:
            await self._renew()
        if not any(key.name == name for key in self._keys):
            await self._renew()
        if self._fetched is None:
            raise KeysUnavailable(f"the keys of Kubernetes' tokens can't be had: {self._failure}")
        for key in self._keys:
            if key.name == name:
                if algorithm not in key.algorithms:
                    right = " or ".join(key.algorithms)
                    raise TokenRefused(f"algorithm {algorithm[:20]!r} is not taken; with this key {right} is")
                return key
        raise TokenRefused("the token is signed by a key that is not known here")

    async def _renew(self) -> None:
        if self._fetching is None:
            now = self._clock()
            if self._tried is not None and now - self._tried < REFETCH_SECONDS:
                return
            self._tried = now
            self._fetching = asyncio.create_task(self._take())
        await asyncio.shield(self._fetching)

    async def _take(self) -> None:
        try:
            self._keys = parse_keys(await self._fetch(self._cluster))
            self._fetched = self._clock()
            self._failure = ""
        except (OSError, ControlError, ConfigError) as error:
            late = isinstance(error, TimeoutError)
            self._failure = f"not within {FETCH_TIMEOUT:g} s" if late else str(error)
            log.warning("the keys of Kubernetes' tokens can't be fetched: %s", self._failure)
        finally:
            self._fetching = None


def _account(claims: Mapping[str, Any]) -> tuple[str, str]:
    subject = text(claims, "sub")
    parts = subject.removeprefix(_SUBJECT).split(":")
    if not subject.startswith(_SUBJECT) or len(parts) != 2:
        raise TokenRefused("the token's subject is no service account")
    pod = claims.get("kubernetes.io")
    if pod is not None:
        account = pod.get("serviceaccount") if isinstance(pod, dict) else None
        name = account.get("name") if isinstance(account, dict) else None
        if not isinstance(pod, dict) or [pod.get("namespace"), name] != parts:
            raise TokenRefused("the token's claims sub and kubernetes.io contradict each other")
    return parts[0], parts[1]


def parse_keys(data: bytes) -> tuple[_Key, ...]:
    """The usable keys of a JWKS. ControlError: it is none, or has none."""
    try:
        found = json.loads(data)
        entries = found["keys"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ControlError("that is no JWKS") from None
    if not isinstance(entries, list) or len(entries) > MAX_KEYS:
        raise ControlError(f"a JWKS with at most {MAX_KEYS} keys is needed")
    keys = tuple(key for entry in entries if (key := _usable(entry)) is not None)
    if not keys:
        raise ControlError("the JWKS has no key that is usable")
    return keys


def _usable(entry: Any) -> _Key | None:
    from joserfc.errors import JoseError
    from joserfc.jwk import ECKey, RSAKey

    if not isinstance(entry, dict) or entry.get("use", "sig") != "sig":
        return None
    name = entry.get("kid", "")
    if not isinstance(name, str):
        return None
    try:
        public = {part: entry[part] for part in _PARTS.get(entry.get("kty", ""), ("kty",))}
        if entry.get("kty") == "RSA":
            bits = int.from_bytes(urlsafe_b64decode(public["n"] + "==")).bit_length()
            if not MIN_RSA_BITS <= bits <= MAX_RSA_BITS:
                return None
            return _Key(name, _of(entry, _RSA), RSAKey.import_key(public))
        if entry.get("kty") == "EC" and entry.get("crv") in _CURVES:
            return _Key(name, _of(entry, _CURVES[entry["crv"]]), ECKey.import_key(public))
    except (JoseError, ValueError, TypeError, KeyError):
        return None
    return None


_PARTS = {"RSA": ("kty", "n", "e"), "EC": ("kty", "crv", "x", "y")}


def _of(entry: Mapping[str, Any], algorithms: tuple[str, ...]) -> tuple[str, ...]:
    """The algorithms of a key, narrowed to the one that it is for."""
    only = entry.get("alg")
    return algorithms if only is None else tuple(name for name in algorithms if name == only)


async def fetch_keys(cluster: Cluster) -> bytes:
    """The JWKS. OSError, ConfigError, ControlError: it can't be had."""
    async with asyncio.timeout(FETCH_TIMEOUT):
        place = cluster.jwks
        if not place:
            where = cluster.issuer.rstrip("/") + WELL_KNOWN
            found = json_object(await _get(where, cluster), where)
            if found.get("issuer") != cluster.issuer:
                raise ControlError(f"the discovery document of {cluster.issuer} is of another issuer")
            place = str(found.get("jwks_uri", ""))
        elif "://" not in place:
            return await asyncio.to_thread(_read, place)
        return await _get(place, cluster)


def _read(place: str) -> bytes:
    with Path(place).open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ControlError(f"{place} is larger than {MAX_BYTES} bytes")
    return data


async def _get(url: str, cluster: Cluster) -> bytes:
    """Redirects are not followed: the token is for the cluster alone."""
    _check_url(url)
    if cluster.credentials is None:
        return await get(url, redirects=0)
    authority, token = await asyncio.to_thread(_credentials, cluster.credentials)
    secured = urlsplit(url).scheme == "https"
    return await get(
        url, tls=authority, headers=[("Authorization", f"Bearer {token}")] if secured else (), redirects=0
    )


def _credentials(folder: Path) -> tuple[ssl.SSLContext, str]:
    authority = ssl.create_default_context(cafile=str(folder / "ca.crt"))
    return authority, (folder / "token").read_text("ascii").strip()


def _check_url(url: str) -> None:
    """ConfigError: keys from there would prove nothing."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        host, parts = "", urlsplit("")
    if not host or parts.username is not None or parts.scheme not in ("https", "http"):
        raise ConfigError(f"{url!r}: https://… is needed")
    if parts.scheme == "http" and not _is_local(host):
        raise ConfigError(f"{url!r}: keys are fetched by https, or from this machine")


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
