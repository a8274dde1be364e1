"""CORS by a VirtualService in every framework: preflights are answered, and responses say who may read."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.frameworks import NAMES, application
from support.policed import POLICY, gate

from meshlib.dataplane.gate import Gate

RULES = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: secret}
spec:
  selector: {matchLabels: {app: reviews}}
  action: DENY
  rules: [{to: [{operation: {paths: ["/secret"]}}]}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews}
spec:
  hosts: [reviews]
  http:
  - match: [{uri: {prefix: /plain}}]
    route: [{destination: {host: reviews}}]
  - match: [{uri: {prefix: /closed}}]
    route: [{destination: {host: reviews}}]
    corsPolicy: {allowOrigins: [{exact: "https://example.com"}], unmatchedPreflights: IGNORE}
  - route: [{destination: {host: reviews}}]
    corsPolicy:
      allowOrigins: [{exact: "https://example.com"}]
      allowMethods: [GET, POST]
      allowHeaders: [x-a]
      exposeHeaders: [x-b]
      maxAge: 1h
      allowCredentials: true
"""
PAGE = {"origin": "https://example.com"}
OTHER = {"origin": "https://other.example"}
ASKS = {"access-control-request-method": "POST"}
ALLOWED = {
    "access-control-allow-origin": "https://example.com",
    "access-control-allow-credentials": "true",
    "access-control-expose-headers": "x-b",
}
PREFLIGHT = {
    **ALLOWED,
    "access-control-allow-methods": "GET,POST",
    "access-control-allow-headers": "x-a",
    "access-control-max-age": "3600",
}
OWN = {"access-control-allow-origin": "own", "access-control-expose-headers": "own"}
CASES = [
    ("OPTIONS", "/any", {**PAGE, **ASKS}, 200, PREFLIGHT),
    ("OPTIONS", "/secret", {**PAGE, **ASKS}, 200, PREFLIGHT),
    ("OPTIONS", "/any", {**OTHER, **ASKS}, 200, OWN),
    ("OPTIONS", "/closed", {**OTHER, **ASKS}, 200, {}),
    ("OPTIONS", "/any", PAGE, 200, ALLOWED),
    ("OPTIONS", "/any", ASKS, 200, OWN),
    ("GET", "/any", PAGE, 200, ALLOWED),
    ("GET", "/any", OTHER, 200, OWN),
    ("GET", "/any", {}, 200, OWN),
    ("GET", "/plain", PAGE, 200, OWN),
    ("GET", "/secret", PAGE, 403, ALLOWED),
    ("GET", "/secret", OTHER, 403, {}),
]


@pytest.fixture
def guard(tmp_path: Path) -> Iterator[Gate]:
    made = gate(tmp_path, POLICY.split("---")[0] + "---" + RULES)
    yield made
    made.mesh.close()


@pytest.mark.parametrize("name", NAMES)
async def test_browsers_are_told(name: str, guard: Gate) -> None:
    async with application(name, guard) as ask:
        for method, path, headers, status, told in CASES:
            answer = await ask(method, path, {"host": "example.internal:9080", **headers})
            found = {k: v for k, v in answer.headers.items() if k.startswith("access-control-")}
            assert (answer.status_code, found) == (status, told), (method, path, headers)
