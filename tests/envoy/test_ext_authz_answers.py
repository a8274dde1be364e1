"""What an external authority's answer does to a request: a real Envoy and we do the same."""

import asyncio
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import httpx
from support.oracle_authz import sorted_query
from support.scripted_authorities import scripted
from support.security_envoy import documents, filters_of, secured_envoy

import meshlib
from meshlib.dataplane.gate import Gate
from meshlib.xds import pb
from meshlib_asgi import MeshMiddleware

DOCUMENTS = """apiVersion: mesh.istio.io/v1alpha1
kind: MeshConfig
metadata: {name: mesh}
extensionProviders:
- name: http
  envoyExtAuthzHttp:
    service: authz.mesh
    port: 8000
    includeRequestHeadersInCheck: [x-case]
    headersToUpstreamOnAllow: [x-user, "x-up-*"]
    headersToDownstreamOnDeny: [x-why, "*-id"]
    headersToDownstreamOnAllow: [x-seen, set-cookie]
- name: bare
  envoyExtAuthzHttp: {service: authz.mesh, port: 8000, includeRequestHeadersInCheck: [x-case]}
- name: open
  envoyExtAuthzHttp:
    {service: authz.mesh, port: 8000, includeRequestHeadersInCheck: [x-case], failOpen: true}
- name: grpc
  envoyExtAuthzGrpc: {service: authz.mesh, port: 9000, statusOnError: "503"}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: authz, namespace: foo}
spec:
  hosts: [authz.mesh]
  resolution: STATIC
  ports: [{number: 8000, name: http, protocol: HTTP}, {number: 9000, name: grpc, protocol: GRPC}]
  endpoints: [{address: 127.0.0.1, ports: {http: %d, grpc: %d}}]
custom(ask):
  provider: {name: %s}
  rules: [{}]
deny(told):
  rules:
  - when: [{key: "experimental.envoy.filters.http.ext_authz[kind]", values: [guest, "[guests]"]}]
"""
SENT = [("x-user", "forged"), ("x-up-a", "1"), ("x-mine", "1"), ("cookie", "a=b"), ("authorization", "me")]


def plain(status: int, *headers: str, body: str = "") -> bytes:
    lines = [f"HTTP/1.1 {status} Said", *headers, f"content-length: {len(body)}"]
    return ("\r\n".join(lines) + "\r\n\r\n" + body).encode("latin-1")


HEADERS = (
    "x-user: jason",
    "x-up-a: 2",
    "x-up-b: 3",
    "x-why: so",
    "x-seen: 1",
    "set-cookie: s=1",
    "x-some-id: 7",
)
MORE = ("location: /login", "www-authenticate: Basic", "content-type: text/html", "proxy-authenticate: Basic")
HTTP: Mapping[str, bytes] = {
    "let in": plain(200, *HEADERS, *MORE),
    "twice": plain(
        200, "x-user: a", "x-user: b", "x-seen: 1", "x-seen: 2", "set-cookie: a=1", "set-cookie: b=2"
    ),
    "created": plain(201, *HEADERS, body="made"),
    "no content": plain(200),
    "moved": plain(302, *HEADERS, *MORE, body="go"),
    "unknown": plain(401, *HEADERS, *MORE, body="who?"),
    "forbidden": plain(403, body="no"),
    "not found": plain(404, *HEADERS),
    "too many": plain(429, "retry-after: 5", "x-why: often"),
    "broken": plain(500, *HEADERS, body="oh"),
    "busy": plain(503, "x-why: busy"),
}


def option(key: str, value: str, **more: Any) -> dict[str, Any]:
    return {"header": {"key": key, "value": value}, **more}


ALLOWED: Mapping[str, dict[str, Any]] = {
    "let in": {},
    "set": {"headers": [option("X-User", "jason"), option("x-new", "1"), option("x-new", "2")]},
    "append": {
        "headers": [
            option("x-up-a", "2", append=True),
            option("x-absent", "1", append=True),
            option("x-off", "1", append=False),
        ]
    },
    "actions": {
        "headers": [
            option("x-up-a", "2", append_action="APPEND_IF_EXISTS_OR_ADD"),
            option("x-app", "1", append_action="APPEND_IF_EXISTS_OR_ADD"),
            option("x-user", "2", append_action="ADD_IF_ABSENT"),
            option("x-add", "1", append_action="ADD_IF_ABSENT"),
            option("x-mine", "2", append_action="OVERWRITE_IF_EXISTS"),
            option("x-over", "1", append_action="OVERWRITE_IF_EXISTS"),
        ]
    },
    "remove": {"headers_to_remove": ["X-User", "cookie", "x-absent", ":path", "host"]},
    "set and remove": {"headers": [option("x-user", "jason")], "headers_to_remove": ["x-user"]},
    "to the client": {
        "response_headers_to_add": [option("x-seen", "1"), option("x-seen", "2"), option("x-app", "3")]
    },
    "to the client by actions": {
        "response_headers_to_add": [
            option("x-app", "1", append_action="OVERWRITE_IF_EXISTS_OR_ADD"),
            option("x-two", "1", append_action="ADD_IF_ABSENT"),
            option("x-app", "9", append_action="ADD_IF_ABSENT"),
            option("x-three", "1", append_action="OVERWRITE_IF_EXISTS"),
            option("x-four", "1", append=True),
            option("x-four", "2", append=True),
            option("x-five", "1", append=False),
            option("x-five", "2", append=False),
        ]
    },
    "query": {
        "query_parameters_to_set": [{"key": "b", "value": "9"}, {"key": "new", "value": "x"}],
        "query_parameters_to_remove": ["a", "none"],
    },
}
DENIED: Mapping[str, dict[str, Any]] = {
    "denied": {},
    "as it says": {
        "status": {"code": 418},
        "body": "no",
        "headers": [option("x-why", "so"), option("x-why", "too")],
    },
    "moved": {"status": {"code": 302}, "headers": [option("location", "/login")]},
    "created": {"status": {"code": 201}, "body": "made"},
}
OVER_GRPC: Mapping[str, Mapping[str, Any]] = {
    **{name: {"status": {"code": 0}, "ok_response": said} for name, said in ALLOWED.items()},
    "nothing said": {},
    "a code alone": {"status": {"code": 7}},
    "another code": {"status": {"code": 13}},
    **{f"{name}!": {"status": {"code": 16}, "denied_response": said} for name, said in DENIED.items()},
    "a guest": {"dynamic_metadata": {"kind": "guest"}},
    "one of the guests": {"ok_response": {}, "dynamic_metadata": {"kind": ["others", "guests"]}},
    "a friend": {"ok_response": {}, "dynamic_metadata": {"kind": "friend"}},
}
OWN = (
    "date",
    "server",
    "content-length",
    "transfer-encoding",
    "x-envoy",
    "x-request-id",
    "x-forwarded-proto",
)
"""How headers begin that each adds as it likes."""


async def echo(scope: Any, receive: Any, send: Any) -> None:
    path = scope["raw_path"].decode() + (
        "?" + scope["query_string"].decode() if scope["query_string"] else ""
    )
    headers = [(b":path", path.encode()), *scope["headers"]]
    body = b"\n".join(name + b"\t" + value for name, value in headers)
    said = [(b"x-app", b"own"), (b"content-type", b"text/plain")]
    await send({"type": "http.response.start", "status": 200, "headers": said})
    await send({"type": "http.response.body", "body": body})


def kept(headers: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """The headers that count, the values of each as one list."""
    found: dict[str, list[str]] = {}
    for name, value in headers:
        if not name.lower().startswith(OWN):
            found.setdefault(name.lower(), []).extend(part.strip() for part in value.split(","))
    return found


def told(answer: httpx.Response) -> tuple[Any, ...]:
    """Status, headers and body; the body of an echo as headers."""
    headers = kept(answer.headers.multi_items())
    if answer.status_code != 200:
        return answer.status_code, headers, answer.text
    lines = (line.partition("\t") for line in answer.text.split("\n"))
    seen = kept((name, sorted_query(value) if name == ":path" else value) for name, _, value in lines)
    return 200, headers, {name: found for name, found in seen.items() if not name.startswith(NOT_SEEN)}


async def test_an_answer_does_the_same(tmp_path: Path) -> None:
    cases = {name: OVER_GRPC if name == "grpc" else HTTP for name in ("http", "bare", "open", "grpc")}
    replies = {name: pb.from_dict(pb.CheckResponse, dict(said)) for name, said in OVER_GRPC.items()}
    wrong = []
    async with scripted(HTTP, replies) as ports:
        texts = {name: documents(DOCUMENTS % (*ports, name)) for name in cases}
        clusters = {
            "outbound|8000||authz.mesh": (ports[0], False),
            "outbound|9000||authz.mesh": (ports[1], True),
        }
        filters = {name: filters_of(text) for name, text in texts.items()}
        async with secured_envoy(filters, {}, clusters, tmp_path, echo=True) as envoy:
            for name, text in texts.items():
                folder = tmp_path / name
                folder.mkdir()
                (folder / "mesh.yaml").write_text(text)
                with meshlib.connect(str(folder), namespace="foo", labels="app=httpbin,version=v1") as mesh:
                    guarded: Any = MeshMiddleware(echo, Gate(mesh, 8080))
                    transports = (None, httpx.ASGITransport(guarded))
                    for case in cases[name]:
                        url = f"http://127.0.0.1:{envoy.ports[name]}/p?a=1&b=2&c=%20d"
                        theirs, ours = [await ask(url, case, how) for how in transports]
                        if theirs != ours:
                            wrong.append((name, case, theirs, ours))
                await asyncio.sleep(0)
    assert wrong == []


async def ask(url: str, case: str, transport: Any) -> tuple[Any, ...]:
    async with httpx.AsyncClient(transport=transport, trust_env=False) as client:
        return told(await client.get(url, headers=[*SENT, ("x-case", case)]))


NOT_SEEN = ("host", ":authority", ":scheme", ":method", "x-case", "accept", "connection", "user-agent")
