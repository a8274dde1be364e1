"""What AuthorizationPolicy and RequestAuthentication are compiled to, a real Envoy takes and applies."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc.aio
from joserfc import jwt
from joserfc.jwk import RSAKey
from support.mesh_cases import mesh_cases
from support.ports import free_port
from support.security_envoy import filters_of, secured_envoy, tcp_filters_of

from meshlib.control.compile.security import Security, connection_filters, security_filters
from meshlib.control.graph.policies import KeySource
from meshlib.xds import pb

SLEEP = "spiffe://cluster.local/ns/foo/sa/sleep"
OTHER = "spiffe://cluster.local/ns/bar/sa/other"
DOTTED = "spiffe://cluster.local/ns/foo/sa/web.a"
NEAR = "spiffe://cluster.local/ns/foo/sa/web-a"
OLD = "spiffe://td-old/ns/foo/sa/sleep"
DENIED = ("RBAC: access denied", "Audiences in Jwt are not allowed")

KEY = RSAKey.generate_key(2048, {"kid": "one"})
JWKS = json.dumps({"keys": [KEY.as_dict(private=False)]})


def token(**claims: object) -> str:
    """A signed token that ends in an hour."""
    said = {"iss": "https://issuer.example", "sub": "me", "exp": int(time.time()) + 3600, **claims}
    return jwt.encode({"alg": "RS256", "kid": "one"}, said, KEY)


@dataclass
class Ask:
    """A request and the status that it gets."""

    status: int
    path: str = "/"
    method: str = "GET"
    who: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    got: dict[str, str] = field(default_factory=dict)
    """Headers of the answer."""


def bearer(status: int, path: str = "/", *, got: dict[str, str] | None = None, **claims: object) -> Ask:
    return Ask(status, path, headers={"authorization": f"Bearer {token(**claims)}"}, got=got or {})


AUTHENTICATION = f"""---
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {{name: jwt, namespace: foo}}
spec:
  jwtRules:
  - issuer: https://issuer.example
    jwks: '{JWKS}'
    outputPayloadToHeader: x-payload
    outputClaimToHeaders: [{{header: x-sub, claim: sub}}, {{header: x-role, claim: realm.role}}]
"""

VERDICTS: dict[str, tuple[str, list[Ask]]] = {
    "no policy": ("", [Ask(200), Ask(200, who=SLEEP)]),
    "empty": ("allow(nothing):\n", [Ask(403), Ask(403, who=SLEEP)]),
    "everything": ("allow(all):\n  rules: [{}]\n", [Ask(200), Ask(200, who=SLEEP)]),
    "deny wins": ("allow(all):\n  rules: [{}]\ndeny(none):\n  rules: [{}]\n", [Ask(403)]),
    "audit decides nothing": ("audit(all):\n  rules: [{}]\n", [Ask(200)]),
    "dry run decides nothing": (
        """---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: tried, namespace: foo, annotations: {istio.io/dry-run: "true"}}
spec: {action: DENY, rules: [{}]}
""",
        [Ask(200)],
    ),
    "principals": (
        "allow(p):\n  rules: [{from: [{source: {principals: [cluster.local/ns/foo/sa/sleep]}}]}]\n",
        [Ask(200, who=SLEEP), Ask(403, who=OTHER), Ask(403)],
    ),
    "a principal of some kind": (
        'allow(p):\n  rules: [{from: [{source: {principals: ["*"]}}]}]\n',
        [Ask(200, who=SLEEP), Ask(403)],
    ),
    "without principal": (
        'deny(p):\n  rules: [{from: [{source: {notPrincipals: ["*"]}}]}]\n',
        [Ask(200, who=SLEEP), Ask(403)],
    ),
    "a namespace": (
        'allow(p):\n  rules: [{from: [{source: {namespaces: ["f*"]}}]}]\n',
        [Ask(200, who=SLEEP), Ask(403, who=OTHER), Ask(403)],
    ),
    "not of a namespace": (
        "deny(p):\n  rules: [{from: [{source: {notNamespaces: [foo]}}]}]\n",
        [Ask(200, who=SLEEP), Ask(403, who=OTHER), Ask(403)],
    ),
    "a service account": (
        "allow(p):\n  rules: [{from: [{source: {serviceAccounts: [web.a, bar/other]}}]}]\n",
        [Ask(200, who=DOTTED), Ask(403, who=NEAR), Ask(200, who=OTHER), Ask(403, who=SLEEP), Ask(403)],
    ),
    "not a service account": (
        "deny(p):\n  rules: [{from: [{source: {notServiceAccounts: [web.a, bar/other]}}]}]\n",
        [Ask(200, who=DOTTED), Ask(403, who=NEAR), Ask(200, who=OTHER), Ask(403, who=SLEEP), Ask(403)],
    ),
    "the end of a principal": (
        'allow(p):\n  rules: [{from: [{source: {principals: ["*/sa/web.a"]}}]}]\n',
        [Ask(200, who=DOTTED), Ask(403, who=NEAR)],
    ),
    "a trust domain": (
        "allow(p):\n  rules: [{from: [{source: {trustDomains: [td-old]}}]}]\n",
        [Ask(200, who=OLD), Ask(403, who=SLEEP), Ask(403)],
    ),
    "an alias": (
        """apiVersion: mesh.istio.io/v1alpha1
kind: MeshConfig
metadata: {name: mesh}
trustDomainAliases: [td-old]
allow(p):
  rules: [{from: [{source: {principals: [cluster.local/ns/foo/sa/sleep]}}]}]
""",
        [Ask(200, who=SLEEP), Ask(200, who=OLD), Ask(403, who=OTHER)],
    ),
    "addresses": (
        "allow(a):\n  rules: [{from: [{source: {ipBlocks: [127.0.0.0/8], notIpBlocks: [127.0.0.2]}}]}]\n",
        [Ask(200)],
    ),
    "no such address": (
        "allow(a):\n  rules: [{from: [{source: {remoteIpBlocks: [10.0.0.0/8]}}]}]\n",
        [Ask(403)],
    ),
    "a path": (
        "allow(o):\n  rules: [{to: [{operation: {paths: [/a, /b*, '*/z']}}]}]\n",
        [
            Ask(200, "/a"),
            Ask(200, "/a?x"),
            Ask(403, "/a/"),
            Ask(200, "/bc"),
            Ask(200, "/y/z"),
            Ask(403, "/c"),
        ],
    ),
    "a path template": (
        'allow(o):\n  rules: [{to: [{operation: {paths: ["/{*}/x", "/v1.0/{**}", "/s/{**}/end"]}}]}]\n',
        [
            Ask(200, "/a/x"),
            Ask(403, "/a/b/x"),
            Ask(403, "/a/x/y"),
            Ask(200, "/v1.0/a/b"),
            Ask(403, "/v1x0/a"),
            Ask(200, "/s/a/b/end"),
            Ask(403, "/s/a/b"),
        ],
    ),
    "a method, but not there": (
        "allow(o):\n  rules: [{to: [{operation: {methods: [GET, 'P*'], notPaths: ['/private*']}}]}]\n",
        [Ask(200), Ask(200, method="PUT"), Ask(403, method="DELETE"), Ask(403, "/private/x")],
    ),
    "a host": (
        "allow(o):\n  rules: [{to: [{operation: {hosts: [Web.Example, '*.corp']}}]}]\n",
        [
            Ask(200, headers={"host": "web.eXample"}),
            Ask(200, headers={"host": "A.CORP"}),
            Ask(403, headers={"host": "corp"}),
            Ask(403),
        ],
    ),
    "a header": (
        """allow(h):
  rules:
  - when:
    - {key: "request.headers[X-Role]", values: [admin, "dev*"], notValues: [dev-x]}
    - {key: "request.headers[x-any]", values: ["*"]}
""",
        [
            Ask(200, headers={"x-role": "admin", "x-any": "1"}),
            Ask(200, headers={"x-role": "dev-y", "x-any": ""}),
            Ask(403, headers={"x-role": "dev-x", "x-any": "1"}),
            Ask(403, headers={"x-role": "admin"}),
            Ask(403),
        ],
    ),
    "a port that is not this one": (
        "deny(o):\n  rules: [{to: [{operation: {notPorts: ['1']}}]}]\n",
        [Ask(403)],
    ),
    "from and to and when": (
        """allow(all):
  rules:
  - from: [{source: {namespaces: [foo]}}, {source: {namespaces: [bar]}}]
    to: [{operation: {paths: [/a]}}, {operation: {methods: [PUT]}}]
    when: [{key: "request.headers[x-k]", values: [v]}]
""",
        [
            Ask(200, "/a", who=SLEEP, headers={"x-k": "v"}),
            Ask(200, "/b", "PUT", who=OTHER, headers={"x-k": "v"}),
            Ask(403, "/a", who=SLEEP),
            Ask(403, "/b", who=SLEEP, headers={"x-k": "v"}),
            Ask(403, "/a", headers={"x-k": "v"}),
        ],
    ),
    "tokens": (
        AUTHENTICATION,
        [
            Ask(200),
            bearer(200, got={"x-got-x-sub": "me", "x-got-x-role": "boss"}, realm={"role": "boss"}),
            bearer(401, iss="https://other.example"),
            bearer(401, exp=1),
            Ask(401, headers={"authorization": "Bearer nonsense"}),
            Ask(200, headers={"authorization": "Basic YTpi"}),
            Ask(200, f"/?access_token={token()}"),
            Ask(401, "/?access_token=nonsense"),
        ],
    ),
    "a token is required": (
        AUTHENTICATION + 'deny(t):\n  rules: [{from: [{source: {notRequestPrincipals: ["*"]}}]}]\n',
        [Ask(403), bearer(200)],
    ),
    "claims": (
        AUTHENTICATION
        + """allow(t):
  rules:
  - to: [{operation: {paths: [/p]}}]
    from: [{source: {requestPrincipals: ["https://issuer.example/m*"]}}]
  - to: [{operation: {paths: [/q]}}]
    when: [{key: "request.auth.claims[realm][roles]", values: [admin]}]
  - to: [{operation: {paths: [/r]}}]
    when: [{key: request.auth.audiences, values: [us, them]}]
  - to: [{operation: {paths: [/s]}}]
    when: [{key: "request.auth.claims[scope]", values: [write], notValues: ["no"]}]
  - to: [{operation: {paths: [/t]}}]
    when: [{key: request.auth.presenter, values: [app]}]
  - to: [{operation: {paths: [/u]}}]
    when: [{key: request.auth.principal, values: ["*"]}]
""",
        [
            Ask(403, "/p"),
            bearer(200, "/p"),
            bearer(403, "/p", sub="you"),
            bearer(200, "/q", realm={"roles": ["user", "admin"]}),
            bearer(200, "/q", realm={"roles": "admin"}),
            bearer(403, "/q", realm={"roles": ["user"]}),
            bearer(403, "/q", roles=["admin"]),
            bearer(200, "/r", aud=["x", "them"]),
            bearer(200, "/r", aud="us"),
            bearer(403, "/r", aud="x"),
            bearer(200, "/s", scope="read write"),
            bearer(403, "/s", scope="read write no"),
            bearer(200, "/t", azp="app"),
            bearer(200, "/u"),
            bearer(403, "/u", sub=""),
        ],
    ),
    "other places": (
        f"""---
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {{name: jwt, namespace: foo}}
spec:
  jwtRules:
  - issuer: https://issuer.example
    audiences: [us]
    jwks: '{JWKS}'
    forwardOriginalToken: true
    fromHeaders: [{{name: x-jwt, prefix: "JWT "}}]
    fromCookies: [session]
    fromParams: [tok]
deny(none):
  rules: [{{from: [{{source: {{notRequestPrincipals: ["*"]}}}}]}}]
""",
        [
            Ask(200, headers={"x-jwt": f"JWT {token(aud='us')}"}),
            Ask(403, headers={"x-jwt": f"JWT {token(aud='them')}"}),
            Ask(200, headers={"cookie": f"session={token(aud='us')}"}),
            Ask(200, f"/?tok={token(aud='us')}"),
            Ask(403, headers={"authorization": f"Bearer {token(aud='us')}"}),
        ],
    ),
    "two issuers": (
        f"""{AUTHENTICATION}  - issuer: https://second.example
    jwks: '{JWKS}'
""",
        [
            Ask(200),
            bearer(200),
            bearer(200, iss="https://second.example"),
            bearer(401, iss="https://third.example"),
        ],
    ),
    "keys that were never fetched": (
        """---
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: jwt, namespace: foo}
spec: {jwtRules: [{issuer: https://issuer.example, jwksUri: https://issuer.example/keys}]}
""",
        [Ask(200), bearer(401), Ask(401, headers={"authorization": "Bearer x"})],
    ),
}


async def test_verdicts(tmp_path: Path) -> None:
    http = {name: filters_of(text) for name, (text, _) in VERDICTS.items()}
    wrong = []
    async with secured_envoy(http, {}, {}, tmp_path) as envoy:
        for name, (_, asked) in VERDICTS.items():
            for ask in asked:
                answer = await envoy.ask(name, ask.method, ask.path, ask.headers, ask.who)
                told = {key: answer.headers.get(key) for key in ask.got}
                if answer.status_code != ask.status or told != ask.got:
                    wrong.append((name, ask, answer.status_code, answer.text, told))
                if answer.status_code == 403:
                    assert answer.text in DENIED
    assert wrong == []


async def test_keys_that_were_fetched_stand_in_the_configuration(tmp_path: Path) -> None:
    text = VERDICTS["keys that were never fetched"][0]
    keys = {KeySource("https://issuer.example/keys", ""): JWKS}
    async with secured_envoy({"jwt": filters_of(text, keys)}, {}, {}, tmp_path) as envoy:
        assert (await envoy.ask("jwt", headers={"authorization": f"Bearer {token()}"})).status_code == 200
        assert (await envoy.ask("jwt", headers={"authorization": "Bearer x"})).status_code == 401


async def test_without_an_issuer_the_keys_are_those_of_any(tmp_path: Path) -> None:
    text = VERDICTS["keys that were never fetched"][0].replace("issuer: https://issuer.example, ", "")
    keys = {KeySource("https://issuer.example/keys", ""): JWKS}
    async with secured_envoy({"jwt": filters_of(text, keys)}, {}, {}, tmp_path) as envoy:
        for issuer in ("https://issuer.example", "somebody"):
            headers = {"authorization": f"Bearer {token(iss=issuer)}"}
            assert (await envoy.ask("jwt", headers=headers)).status_code == 200
        assert (await envoy.ask("jwt", headers={"authorization": "Bearer x"})).status_code == 401


async def test_envoy_takes_the_filters_of_every_golden_case(tmp_path: Path) -> None:
    http: dict[str, Security] = {}
    tcp: dict[str, Security] = {}
    clusters = {}
    for case in mesh_cases():
        if not case.name.startswith(("authz", "ext-authz", "request-authentication")):
            continue
        graph, who = case.graph(), case.who
        http[case.name] = security_filters(graph, who.namespace, who.label_map)
        tcp[f"{case.name}-tcp"] = connection_filters(graph, who.namespace, who.label_map)
        for name in (*http[case.name].clusters, *tcp[f"{case.name}-tcp"].clusters):
            clusters[name] = (free_port(), "9000" in name)
    assert len(http) >= 12
    async with secured_envoy(http, tcp, clusters, tmp_path) as envoy:
        assert set(envoy.ports) == {*http, *tcp}


# Those who are asked

PROVIDERS = """apiVersion: mesh.istio.io/v1alpha1
kind: MeshConfig
metadata: {name: mesh}
extensionProviders:
- name: http
  envoyExtAuthzHttp:
    service: authz.foo.svc.cluster.local
    port: 8000
    pathPrefix: /check
    includeRequestHeadersInCheck: [x-token]
    includeAdditionalHeadersInCheck: {x-from: mesh}
    headersToUpstreamOnAllow: [x-user]
    headersToDownstreamOnDeny: [x-why]
- name: grpc
  envoyExtAuthzGrpc: {service: authz.foo.svc.cluster.local, port: 9000}
- name: open
  envoyExtAuthzHttp: {service: authz.foo.svc.cluster.local, port: 7000, failOpen: true}
- name: closed
  envoyExtAuthzGrpc: {service: authz.foo.svc.cluster.local, port: 7000, statusOnError: "503"}
---
apiVersion: v1
kind: Service
metadata: {name: authz, namespace: foo}
spec:
  selector: {app: authz}
  ports: [{name: http, port: 8000}, {name: grpc, port: 9000}, {name: tcp, port: 7000}]
"""
CUSTOM = "custom(ask):\n  provider: {name: %s}\n  rules: [{to: [{operation: {paths: ['/admin*']}}]}]\n"


@asynccontextmanager
async def http_authorizer() -> AsyncIterator[tuple[int, list[str]]]:
    """Allows what has `x-token: good`; its port, and the heads that it saw."""
    seen: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        seen.append(head)
        good = "x-token: good" in head
        status = "200 OK\r\nx-user: me" if good else "401 Unauthorized\r\nx-why: token\r\nx-secret: 1"
        writer.write(f"HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".encode())
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1], seen


@asynccontextmanager
async def grpc_authorizer() -> AsyncIterator[int]:
    """Allows what has `x-token: good`, and every connection."""

    async def check(request: Any, context: Any) -> Any:
        made = pb.CheckResponse()
        headers = request.attributes.request.http.headers
        if request.attributes.request.HasField("http") and headers.get("x-token") != "good":
            made.status.code = 7
            made.denied_response.status.code = 418
        return made

    handler = grpc.unary_unary_rpc_method_handler(
        check, pb.CheckRequest.FromString, lambda made: made.SerializeToString()
    )
    server = grpc.aio.server()
    service = grpc.method_handlers_generic_handler("envoy.service.auth.v3.Authorization", {"Check": handler})
    server.add_generic_rpc_handlers((service,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield port
    finally:
        await server.stop(0)


async def test_others_are_asked(tmp_path: Path) -> None:
    http = {
        name: filters_of(PROVIDERS + CUSTOM % name) for name in ("http", "grpc", "open", "closed", "none")
    }
    assert http["http"].clusters == ("outbound|8000||authz.foo.svc.cluster.local",)
    assert http["none"].clusters == ()
    good = {"x-token": "good"}
    async with http_authorizer() as (port, seen), grpc_authorizer() as grpc_port:
        clusters = {
            "outbound|8000||authz.foo.svc.cluster.local": (port, False),
            "outbound|9000||authz.foo.svc.cluster.local": (grpc_port, True),
            "outbound|7000||authz.foo.svc.cluster.local": (free_port(), False),
        }
        async with secured_envoy(http, {}, clusters, tmp_path) as envoy:

            async def status(name: str, path: str, headers: dict[str, str] | None = None) -> int:
                return (await envoy.ask(name, path=path, headers=headers)).status_code

            for name in http:
                assert await status(name, "/elsewhere") == 200
            assert seen == []
            denied = await envoy.ask("http", path="/admin/x")
            assert (denied.status_code, denied.headers["x-why"]) == (401, "token")
            assert "x-secret" not in denied.headers
            assert seen[0].startswith("GET /check/admin/x HTTP/1.1")
            assert "x-from: mesh" in seen[0]
            allowed = await envoy.ask("http", path="/admin/x", headers=good)
            assert (allowed.status_code, allowed.headers["x-got-x-user"]) == (200, "me")
            assert await status("grpc", "/admin") == 418
            assert await status("grpc", "/admin", good) == 200
            assert await status("open", "/admin") == 200
            assert await status("closed", "/admin") == 503
            assert await status("none", "/admin", good) == 403


async def test_tcp(tmp_path: Path) -> None:
    tcp = {
        "allow-http": "allow(a):\n  rules: [{to: [{operation: {methods: [GET]}}]}]\n",
        "deny-http": "deny(a):\n  rules: [{to: [{operation: {methods: [GET]}}]}]\n",
        "deny-http-elsewhere": "deny(a):\n  rules: [{to: [{operation: {methods: [GET], ports: ['1']}}]}]\n",
        "allow-address": "allow(a):\n  rules: [{from: [{source: {ipBlocks: [127.0.0.1]}}]}]\n",
        "ask-http": PROVIDERS + "custom(a):\n  provider: {name: http}\n  rules: [{}]\n",
        "ask-grpc": PROVIDERS + "custom(a):\n  provider: {name: grpc}\n  rules: [{}]\n",
        "ask-nobody": PROVIDERS + "custom(a):\n  provider: {name: none}\n  rules: [{}]\n",
    }
    expected = {
        "allow-http": b"",
        "deny-http": b"",
        "deny-http-elsewhere": b"hi",
        "allow-address": b"hi",
        "ask-http": b"hi",
        "ask-grpc": b"hi",
        "ask-nobody": b"",
    }
    async with grpc_authorizer() as port:
        clusters = {"outbound|9000||authz.foo.svc.cluster.local": (port, True)}
        made = {name: tcp_filters_of(text) for name, text in tcp.items()}
        async with secured_envoy({}, made, clusters, tmp_path) as envoy:
            for name in tcp:
                reader, writer = await asyncio.open_connection("127.0.0.1", envoy.ports[name])
                writer.write(b"hi")
                try:
                    found = await asyncio.wait_for(reader.read(2), 5)
                except ConnectionResetError:
                    found = b""
                writer.close()
                assert (name, found) == (name, expected[name])
