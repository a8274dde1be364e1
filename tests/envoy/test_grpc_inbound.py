"""Whom a gRPC server of the mesh lets in, and what it tells the others: as a real Envoy before a server does.

The same documents and calls, from the same callers, with gRPC's own client. What Envoy lets in its route
answers itself, as nothing that gRPC knows.
"""

import asyncio
import contextlib
import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from joserfc import jwt
from joserfc.jwk import RSAKey
from support.grpc_inbound import KINDS, SERVICE, serving
from support.policed_mesh import DNS, OWN, PolicedMesh
from support.security_envoy import filters_of, secured_envoy
from support.small_ca import SmallCa

SLEEP = "spiffe://cluster.local/ns/foo/sa/sleep"
OTHER = "spiffe://cluster.local/ns/bar/sa/other"
KEY = RSAKey.generate_key(2048, {"kid": "one"})
STRANGE = RSAKey.generate_key(2048, {"kid": "one"})
JWKS = json.dumps({"keys": [KEY.as_dict(private=False)]})


def bearer(key: Any = KEY, **claims: Any) -> tuple[tuple[str, str], ...]:
    said = {"iss": "https://issuer.example", "sub": "me", "exp": int(time.time()) + 3600, **claims}
    return (("authorization", f"Bearer {jwt.encode({'alg': 'RS256', 'kid': 'one'}, said, key)}"),)


@dataclass(frozen=True)
class Ask:
    """A call."""

    method: str = "given"
    who: str = ""
    metadata: tuple[tuple[str, str | bytes], ...] = ()
    service: str = SERVICE


GIVEN, OTHERS = Ask(), Ask("coded")
TOKENS = f"""---
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {{name: jwt, namespace: foo}}
spec:
  jwtRules:
  - issuer: https://issuer.example
    jwks: '{JWKS}'
"""
IDENTITIES = [Ask(), Ask(who=SLEEP), Ask(who=OTHER)]
CASES: dict[str, tuple[str, list[Ask]]] = {
    "no policy": ("", IDENTITIES),
    "nobody": ("allow(nothing):\n", IDENTITIES),
    "everybody": ("allow(all):\n  rules: [{}]\n", IDENTITIES),
    "deny wins": ("allow(all):\n  rules: [{}]\ndeny(none):\n  rules: [{}]\n", IDENTITIES),
    "a method": (
        "allow(m):\n  rules: [{to: [{operation: {paths: [/test.Service/given]}}]}]\n",
        [GIVEN, OTHERS, Ask("nothing"), Ask("given", service="test.Other")],
    ),
    "a service": (
        "deny(s):\n  rules: [{to: [{operation: {paths: ['/test.Service/*']}}]}]\n",
        [GIVEN, OTHERS, Ask("nothing"), Ask("given", service="test.Other")],
    ),
    "a template": (
        "deny(t):\n  rules: [{to: [{operation: {paths: ['/{*}/given']}}]}]\n",
        [GIVEN, OTHERS, Ask("given", service="test.Other")],
    ),
    "a verb": (
        "allow(p):\n  rules: [{to: [{operation: {methods: [POST]}}]}]\n",
        [GIVEN],
    ),
    "another verb": ("allow(g):\n  rules: [{to: [{operation: {methods: [GET]}}]}]\n", [GIVEN]),
    "principals": (
        "allow(p):\n  rules: [{from: [{source: {principals: [cluster.local/ns/foo/sa/sleep]}}]}]\n",
        IDENTITIES,
    ),
    "namespaces": ("allow(n):\n  rules: [{from: [{source: {namespaces: [bar]}}]}]\n", IDENTITIES),
    "no principal": ("deny(p):\n  rules: [{from: [{source: {notPrincipals: ['*']}}]}]\n", IDENTITIES),
    "addresses": ("allow(a):\n  rules: [{from: [{source: {ipBlocks: [127.0.0.0/8]}}]}]\n", IDENTITIES),
    "other addresses": ("allow(a):\n  rules: [{from: [{source: {ipBlocks: [10.0.0.0/8]}}]}]\n", IDENTITIES),
    "the destination's address": (
        "allow(d):\n  rules: [{when: [{key: destination.ip, values: [127.0.0.1]}]}]\n",
        IDENTITIES,
    ),
    "metadata": (
        "deny(h):\n  rules: [{when: [{key: 'request.headers[x-a]', values: ['b*']}]}]\n",
        [
            GIVEN,
            Ask(metadata=(("x-a", "bc"),)),
            Ask(metadata=(("x-a", "cb"),)),
            Ask(metadata=(("x-a", "c"), ("x-a", "b"))),
        ],
    ),
    "metadata of bytes": (
        "allow(h):\n  rules: [{when: [{key: 'request.headers[x-bin]', values: ['/gA']}]}]\n",
        [GIVEN, Ask(metadata=(("x-bin", b"\xfe\x00"),)), Ask(metadata=(("x-bin", b"\xfe\x01"),))],
    ),
    "what gRPC writes itself": (
        """allow(c):
  rules:
  - when:
    - {key: "request.headers[content-type]", values: [application/grpc]}
    - {key: "request.headers[te]", values: [trailers]}
    - {key: "request.headers[user-agent]", values: ["grpc-python/*"]}
""",
        IDENTITIES,
    ),
    "a deadline": (
        "deny(t):\n  rules: [{when: [{key: 'request.headers[grpc-timeout]', values: ['*']}]}]\n",
        [GIVEN],
    ),
    "a host": (
        "allow(h):\n  rules: [{to: [{operation: {hosts: ['reviews*']}}]}]\n",
        [GIVEN],
    ),
    "another host": ("deny(h):\n  rules: [{to: [{operation: {notHosts: ['reviews*']}}]}]\n", [GIVEN]),
    "tokens": (
        TOKENS,
        [
            GIVEN,
            Ask(metadata=bearer()),
            Ask(metadata=bearer(STRANGE)),
            Ask(metadata=bearer(exp=1)),
            Ask(metadata=bearer(iss="https://else.example")),
            Ask(metadata=(("authorization", "Bearer x"),)),
            Ask(metadata=(("authorization", "Basic x"),)),
        ],
    ),
    "a token is needed": (
        TOKENS + "allow(t):\n  rules: [{from: [{source: {requestPrincipals: ['*']}}]}]\n",
        [GIVEN, Ask(metadata=bearer()), Ask(metadata=bearer(STRANGE)), Ask(who=SLEEP)],
    ),
    "claims": (
        TOKENS + "allow(c):\n  rules: [{when: [{key: 'request.auth.claims[role]', values: [a]}]}]\n",
        [GIVEN, Ask(metadata=bearer(role="a")), Ask(metadata=bearer(role="b"))],
    ),
}
OF_HOSTS = ("a host", "another host")
"""gRPC does not tell a server for tasks which host was asked for: it lets nobody in by that."""
LET_IN = "let in"
ENVOYS = ("date", "server")
"""Headers of every answer of Envoy's."""


@contextlib.contextmanager
def channels(port: int, ca: SmallCa) -> Iterator[dict[str, grpc.Channel]]:
    """One for each caller."""
    alone = ("grpc.use_local_subchannel_pool", 1)
    host = ("grpc.default_authority", "reviews")
    with contextlib.ExitStack() as stack:
        address = f"127.0.0.1:{port}"
        made = {"": stack.enter_context(grpc.insecure_channel(address, (alone, host)))}
        for who in (SLEEP, OTHER):
            issued = ca.issue(who)
            credentials = grpc.ssl_channel_credentials(ca.pem.encode(), issued.key_pem, issued.pem.encode())
            options = (alone, ("grpc.ssl_target_name_override", DNS))
            made[who] = stack.enter_context(grpc.secure_channel(address, credentials, options))
        yield made


def answer(made: dict[str, grpc.Channel], ask: Ask) -> tuple[str, str, list[Any]]:
    """The status, its words and what comes with it; of who is let in, that."""
    call = made[ask.who].unary_unary(f"/{ask.service}/{ask.method}").future(b"", metadata=ask.metadata)
    if call.code() in (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED):
        return (
            call.code().name,
            call.details(),
            sorted(one for one in call.trailing_metadata() if one[0] not in ENVOYS),
        )
    assert call.code() is not grpc.StatusCode.UNAVAILABLE, call.details()
    return LET_IN, "", []


def without_host(said: tuple[str, str, list[Any]]) -> tuple[str, str, list[Any]]:
    code, words, trailing = said
    return code, words, [(key, re.sub("://[^/]*/", ":///", value)) for key, value in trailing]


async def test_as_envoy(tmp_path: Path) -> None:
    http = {name: filters_of(text) for name, (text, _) in CASES.items()}
    async with secured_envoy(http, {}, {}, tmp_path) as envoy:
        await asyncio.to_thread(compare, envoy.ca, envoy.ports)


def compare(ca: SmallCa, ports: Any) -> None:
    own = ca.held(OWN, dns=[DNS])
    denied = let_in = 0
    for name, (text, asks) in CASES.items():
        with channels(ports[name], ca) as made:
            wanted = [answer(made, ask) for ask in asks]
        for kind in KINDS:
            with serving(kind, PolicedMesh(text, own)) as server, channels(server.port, ca) as made:
                found = [answer(made, ask) for ask in asks]
            if name in OF_HOSTS and kind == "tasks":
                assert [one[0] for one in found] == ["PERMISSION_DENIED"] * len(asks)
                continue
            # Of the realm that a refused token is for, tasks do not know the host.
            assert found == (wanted if kind == "threads" else list(map(without_host, wanted))), (name, kind)
        denied += sum(one[0] != LET_IN for one in wanted)
        let_in += sum(one[0] == LET_IN for one in wanted)
    assert (denied > 25, let_in > 25) == (True, True), (denied, let_in)


@pytest.mark.parametrize("kind", KINDS)
def test_what_passes_is_served(kind: str) -> None:
    ca = SmallCa()
    text = TOKENS + "allow(t):\n  rules: [{from: [{source: {requestPrincipals: ['*']}}]}]\n"
    with (
        serving(kind, PolicedMesh(text, ca.held(OWN, dns=[DNS]))) as server,
        channels(server.port, ca) as made,
    ):
        told = json.loads(made[SLEEP].unary_unary("/test.Service/given")(b"", metadata=bearer(role="a")))
    assert (told["principal"], told["claims"]["role"]) == (SLEEP, "a")
    assert "authorization" not in dict(told["metadata"])  # the token was used up
