"""Random security policies as documents, compiled, and requests near to what they ask for.

Tokens are signed by three keys of the issuer, or by somebody else, and broken in every way that is known.
"""

import base64
import json
import random
import time
from collections.abc import Callable
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from joserfc.jwk import ECKey, OKPKey, RSAKey
from support.oracle_authz import IDENTITIES, JWT, SLOTS, Ask, Case, World
from support.oracle_http import Call
from support.oracle_rbac import make_ask

from meshlib.control.compile.security import security_filters
from meshlib.control.graph import build_graph
from meshlib.control.istio.problem import Severity
from meshlib.control.sources.text import documents_in

Values = dict[str, Any]
NAMESPACE, LABELS = "default", {"app": "server"}
ASKS = 6


def encoded(value: Any) -> str:
    """base64url of bytes, or of a value as JSON."""
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class Signers:
    """The keys of the issuers, and a stranger's."""

    def __init__(self) -> None:
        self.rsa = rsa.generate_private_key(65537, 2048)
        self.ec = ec.generate_private_key(ec.SECP256R1())
        self.ed = ed25519.Ed25519PrivateKey.generate()
        self.stranger = rsa.generate_private_key(65537, 2048)
        keys = [
            {**RSAKey.import_key(self.rsa).as_dict(private=False), "kid": "r"},
            {**ECKey.import_key(self.ec).as_dict(private=False), "kid": "e"},
            {**OKPKey.import_key(self.ed).as_dict(private=False), "kid": "d"},
        ]
        self.jwks = json.dumps({"keys": keys})
        self.public_pem = RSAKey.import_key(self.rsa).as_pem(private=False)

    def sign(self, algorithm: str, signed: bytes) -> bytes:
        """A signature; of an algorithm that is none of ours, something that looks like one."""
        match algorithm:
            case "RS256":
                return self.rsa.sign(signed, padding.PKCS1v15(), SHA256())
            case "PS256":
                pss = padding.PSS(padding.MGF1(SHA256()), SHA256.digest_size)
                return self.rsa.sign(signed, pss, SHA256())
            case "ES256":
                r, s = decode_dss_signature(self.ec.sign(signed, ec.ECDSA(SHA256())))
                return r.to_bytes(32, "big") + s.to_bytes(32, "big")
            case "EdDSA":
                return self.ed.sign(signed)
            case "stranger":
                return self.stranger.sign(signed, padding.PKCS1v15(), SHA256())
        return b"\0" * 32

    def token(self, header: Values, claims: Any, algorithm: str = "") -> str:
        """A token signed by the algorithm of its header, unless another is given."""
        signed = f"{encoded(header)}.{encoded(claims)}"
        return f"{signed}.{encoded(self.sign(algorithm or str(header.get('alg')), signed.encode()))}"


def make_token(dice: random.Random, signers: Signers, issuer: str, now: float) -> str:
    """A token, good or bad."""
    claims: Values = {"iss": issuer, "sub": dice.choice(("sub1", "sub2")), "exp": int(now) + 3600}
    if dice.random() < 0.5:
        claims["aud"] = dice.choice(("aud1", "aud2", ["aud1", "aud3"], "https://aud1/", []))
    if dice.random() < 0.5:
        claims |= {
            "groups": dice.choice((["g1", "g2"], "g1", ["g3"], 5, "g1 g2")),
            "azp": dice.choice(("p1", "p2")),
        }
    if dice.random() < 0.5:
        claims |= {
            "scope": dice.choice(("read write", "read")),
            "a": {"b": dice.choice(("x", ["x", "y"], {"c": 1}))},
        }
    if dice.random() < 0.5:
        claims |= {"n": dice.choice((1, -7, 1.5, 10**12, 0)), "flag": dice.random() < 0.5}
    algorithm, kid = dice.choice((("RS256", "r"), ("PS256", "r"), ("ES256", "e"), ("EdDSA", "d")))
    header: Values = {"alg": algorithm, "typ": "JWT"}
    if dice.random() < 0.6:
        header["kid"] = kid
    if dice.random() < 0.55:
        return signers.token(header, claims)
    return dice.choice(BREAKS)(signers, header, claims, now)


Break = Callable[[Signers, Values, Values, float], str]
BREAKS: tuple[Break, ...] = (
    lambda s, h, c, n: s.token(h, {**c, "exp": int(n) - 3600}),
    lambda s, h, c, n: s.token(h, {**c, "exp": int(n) - 30}),
    lambda s, h, c, n: s.token(h, {**c, "nbf": int(n) + 3600}),
    lambda s, h, c, n: s.token(h, {**c, "nbf": int(n) + 30}),
    lambda s, h, c, n: s.token(h, {**c, "iss": "https://else.example"}),
    lambda s, h, c, n: s.token(h, {k: v for k, v in c.items() if k != "iss"}),
    lambda s, h, c, n: s.token(h, {k: v for k, v in c.items() if k != "exp"}),
    lambda s, h, c, n: s.token(h, {**c, "aud": "else"}),
    lambda s, h, c, n: s.token(h, {**c, "aud": [1]}),
    lambda s, h, c, n: s.token(h, {**c, "exp": "soon"}),
    lambda s, h, c, n: s.token(h, {**c, "exp": -5}),
    lambda s, h, c, n: s.token(h, {**c, "iat": "x"}),
    lambda s, h, c, n: s.token(h, {**c, "sub": 5}),
    lambda s, h, c, n: s.token(h, {**c, "iss": 5}),
    lambda s, h, c, n: s.token(h, {**c, "jti": 5}),
    lambda s, h, c, n: s.token(h, [c]),
    lambda s, h, c, n: s.token({**h, "alg": "none"}, c),
    lambda s, h, c, n: s.token({**h, "alg": "NONE"}, c).rpartition(".")[0] + ".",
    lambda s, h, c, n: s.token({**h, "alg": "HS256"}, c),
    lambda s, h, c, n: s.token({**h, "alg": 5}, c),
    lambda s, h, c, n: s.token({"typ": "JWT"}, c),
    lambda s, h, c, n: s.token({**h, "kid": "unknown"}, c),
    lambda s, h, c, n: s.token({**h, "kid": 5}, c),
    lambda s, h, c, n: s.token({**h, "alg": "RS256", "kid": "r"}, c, "stranger"),
    lambda s, h, c, n: s.token({**h, "alg": "RS256", "kid": "e"}, c, "RS256"),
    lambda s, h, c, n: s.token({**h, "alg": "EdDSA", "kid": "d"}, c, "stranger"),
    lambda s, h, c, n: s.token({**h, "alg": "RS384"}, c, "RS256"),
    lambda s, h, c, n: s.token(h, c)[:-8],
    lambda s, h, c, n: s.token(h, c).replace(".", "", 1),
    lambda s, h, c, n: s.token(h, c) + ".x",
    lambda s, h, c, n: "!!" + s.token(h, c),
    lambda s, h, c, n: encoded(h) + "." + encoded(b"{") + ".c2ln",
    lambda s, h, c, n: encoded(b"[]") + "." + encoded(c) + ".c2ln",
    lambda s, h, c, n: encoded(h) + ".e.c2ln",
    lambda s, h, c, n: "x",
    lambda s, h, c, n: "",
)


def make_batch(dice: random.Random, world: World, signers: Signers, count: int) -> list[Case]:
    """Cases that can be asked of one Envoy: those without a token look wherever one of them looks for it."""
    places = _places(dice)
    return [_make_case(dice, world, signers, number, places) for number in range(count)]


def _places(dice: random.Random) -> Values:
    made: Values = {}
    if dice.random() < 0.4:
        made["fromHeaders"] = [{"name": "x-token", "prefix": dice.choice(("", "Token "))}]
        if dice.random() < 0.5:
            made["fromHeaders"].append({"name": "authorization", "prefix": "Bearer "})
    if dice.random() < 0.3:
        made["fromParams"] = dice.choice((["token"], ["token", "access_token"]))
    if dice.random() < 0.3:
        made["fromCookies"] = ["session"]
    return made


def _make_case(dice: random.Random, world: World, signers: Signers, number: int, places: Values) -> Case:
    """Policies of one workload, and requests."""
    issuer = f"https://issuer-{number}.example"
    port = world.ports[0]
    found: list[Values] = []
    if dice.random() < 0.6:
        found.append(_authentication(dice, signers, issuer, number, places))
    count = dice.choice((0, 1, 1, 2, 3) if found else (1, 1, 2, 3))
    found += [_authorization(dice, place, issuer, port) for place in range(count)]
    text = "\n---\n".join(json.dumps(one) for one in found)
    read = documents_in(text, "in.yaml")
    wrong = [str(problem) for problem in read.problems if problem.severity is Severity.ERROR]
    if wrong:
        raise AssertionError(f"{wrong}\n{text}")
    listed = security_filters(build_graph(read.documents), NAMESPACE, LABELS).filters
    jwt = next((config for name, config in listed if name == JWT), None)
    rbacs = [config for name, config in listed if name != JWT]
    assert len(rbacs) <= len(SLOTS)
    asks = [_ask(dice, signers, issuer, number) for _ in range(ASKS)]
    return Case(rbacs, asks, 0, text.replace(signers.jwks.replace('"', '\\"'), "…"), jwt)


def _document(kind: str, name: str, spec: Values) -> Values:
    version = "security.istio.io/v1"
    return {
        "apiVersion": version,
        "kind": kind,
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": spec,
    }


def _authentication(dice: random.Random, signers: Signers, issuer: str, case: int, places: Values) -> Values:
    rules = []
    for number in range(dice.choice((1, 1, 2))):
        rule: Values = {"issuer": issuer + "/2" * number, "jwks": signers.jwks, **places}
        if dice.random() < 0.3:
            rule["audiences"] = dice.choice((["aud1"], ["aud1", "aud2"], ["http://aud1"]))
        if dice.random() < 0.4:
            rule["forwardOriginalToken"] = True
        if dice.random() < 0.2:
            rule["spaceDelimitedClaims"] = ["groups"]
        if dice.random() < 0.3:
            rule["outputPayloadToHeader"] = f"x-payload-{case}"
        if dice.random() < 0.5:
            rule["outputClaimToHeaders"] = [
                {"header": f"x-sub-{case}", "claim": "sub"},
                {"header": f"x-groups-{case}", "claim": "groups"},
                {"header": f"x-nested-{case}", "claim": "a.b"},
                {"header": f"x-number-{case}", "claim": "n"},
                {"header": f"x-flag-{case}", "claim": "flag"},
            ][: dice.randint(1, 5)]
        rules.append(rule)
    return _document("RequestAuthentication", "ra", {"jwtRules": rules})


def _authorization(dice: random.Random, number: int, issuer: str, port: int) -> Values:
    rules = [_rule(dice, issuer, port) for _ in range(dice.choice((1, 1, 2)))]
    action = dice.choice(("ALLOW", "ALLOW", "DENY", "DENY", "AUDIT"))
    return _document("AuthorizationPolicy", f"p{number}", {"action": action, "rules": rules})


def _rule(dice: random.Random, issuer: str, port: int) -> Values:
    made: Values = {}
    if dice.random() < 0.6:
        made["from"] = [{"source": _some(dice, SOURCES, issuer, port)} for _ in range(dice.choice((1, 1, 2)))]
    if dice.random() < 0.6:
        made["to"] = [
            {"operation": _some(dice, OPERATIONS, issuer, port)} for _ in range(dice.choice((1, 1, 2)))
        ]
    if dice.random() < 0.4:
        made["when"] = [_condition(dice, issuer, port) for _ in range(dice.choice((1, 1, 2)))]
    return made


SOURCES: dict[str, tuple[str, ...]] = {
    "principals": (
        *(uri.removeprefix("spiffe://") for uri in IDENTITIES[1:]),
        *("*", "*/sa/web", "cluster.local/ns/default/*", "cluster.local/*"),
    ),
    "namespaces": ("default", "other", "oth*", "*", "*fault", "none"),
    "requestPrincipals": ("*", "ISS/sub1", "ISS/*", "*/sub1", "*sub2", "ISS/2/sub1"),
    "ipBlocks": ("127.0.0.1", "127.0.0.0/24", "10.0.0.0/8", "127.0.0.4/30"),
    "remoteIpBlocks": ("10.0.0.0/8", "127.0.0.0/8", "2001:db8::/32"),
    "trustDomains": ("cluster.local", "td2.example", "td2*", "*.example", "*", "td3"),
}
OPERATIONS: dict[str, tuple[str, ...]] = {
    "hosts": ("web", "web.example.com", "*.example.com", "api*", "*", "WEB"),
    "ports": ("PORT", "80"),
    "methods": ("GET", "POST", "P*", "*", "get"),
    "paths": ("/a", "/admin*", "*/b", "*", "/books/{*}/pages", "/a/{**}", "/public", "/{**}/x"),
}


def _some(dice: random.Random, fields: dict[str, tuple[str, ...]], issuer: str, port: int) -> Values:
    made: Values = {}
    while not made:
        for field, values in fields.items():
            for name in (field, f"not{field[0].upper()}{field[1:]}"):
                if dice.random() < (0.3 if name == field else 0.12):
                    made[name] = _filled(dice.sample(values, dice.randint(1, 2)), issuer, port)
    return made


CONDITIONS: dict[str, tuple[str, ...]] = {
    "request.headers[x-a]": ("1", "abc", "a*", "*c", "*"),
    "source.ip": SOURCES["ipBlocks"],
    "remote.ip": SOURCES["remoteIpBlocks"],
    "source.namespace": SOURCES["namespaces"],
    "source.principal": SOURCES["principals"],
    "source.serviceAccount": ("web", "api", "other/web", "we", "none/web"),
    "source.trustDomain": SOURCES["trustDomains"],
    "request.auth.principal": SOURCES["requestPrincipals"],
    "request.auth.audiences": ("aud1", "aud*", "https://aud1/"),
    "request.auth.presenter": ("p1", "p*"),
    "request.auth.claims[groups]": ("g1", "g*", "*", "g3"),
    "request.auth.claims[scope]": ("read", "write", "read write"),
    "request.auth.claims[a][b]": ("x", "y"),
    "destination.ip": ("127.0.0.1", "127.0.0.0/30", "10.0.0.1"),
    "destination.port": ("PORT", "80"),
    "connection.sni": ("server.example", "*.example", "other.example"),
}


def _condition(dice: random.Random, issuer: str, port: int) -> Values:
    key = dice.choice(tuple(CONDITIONS))
    name = dice.choice(("values", "values", "notValues"))
    return {"key": key, name: _filled(dice.sample(CONDITIONS[key], dice.randint(1, 2)), issuer, port)}


def _filled(values: list[str], issuer: str, port: int) -> list[str]:
    return [value.replace("ISS", issuer).replace("PORT", str(port)) for value in values]


def _ask(dice: random.Random, signers: Signers, issuer: str, case: int) -> Ask:
    ask = make_ask(dice)
    if dice.random() < 0.3:
        return ask
    call, headers, path = ask.call, list(ask.call.headers), ask.call.path
    for _ in range(dice.choice((1, 1, 1, 2))):
        whose = issuer + ("/2" if dice.random() < 0.2 else "")
        token = make_token(dice, signers, whose, time.time())
        match dice.randint(0, 7):
            case 0 if all(name != "x-token" for name, _ in headers):
                headers.append(("x-token", dice.choice(("", "Token ")) + token))
            case 1:
                path += f"{'&' if '?' in path else '?'}{dice.choice(('token', 'access_token'))}={token}&z=1"
            case 2:
                headers.append(("cookie", f"a=b; session={token}"))
            case 3:
                headers.append(("authorization", dice.choice(("bearer ", "Basic ", "", "Bearer")) + token))
            case _:
                headers.append(("Authorization", f"Bearer {token}"))
    if dice.random() < 0.2:
        headers.append((f"{dice.choice(('x-sub', 'x-payload', 'x-groups'))}-{case}", "forged"))
    made = Call(call.method, call.authority, path, tuple(headers))
    return Ask(made, ask.who)
