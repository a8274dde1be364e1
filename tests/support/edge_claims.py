"""Routes of a gateway that look at a token's claims, and who takes which."""

from typing import Any

HOST = "claims.example"
RULES = """
  - match: [{uri: {prefix: /dotted}, headers: {"@request.auth.claims.realm.group": {exact: admins}}}]
    directResponse: {status: 250}
  - match: [{uri: {prefix: /squares}, headers: {"@Request.Auth.Claims[https://x.example][id]": {prefix: ad}}}]
    directResponse: {status: 251}
  - match: [{uri: {prefix: /regex}, headers: {"@request.auth.claims.group": {regex: "ad.*s"}}}]
    directResponse: {status: 252}
  - match: [{uri: {prefix: /there}, headers: {"@request.auth.claims.group": {}}}]
    directResponse: {status: 253}
  - match: [{uri: {prefix: /scope}, headers: {"@request.auth.claims.scope": {exact: write}}}]
    directResponse: {status: 254}
  - match:
    - uri: {prefix: /both}
      headers: {"@request.auth.claims.group": {exact: admins}, x-test: {exact: "1"}}
      withoutHeaders: {"@request.auth.claims.left": {exact: "yes"}}
    directResponse: {status: 255}
  - match: [{uri: {prefix: /without}, withoutHeaders: {"@request.auth.claims.group": {exact: users}}}]
    directResponse: {status: 256}
  - match: [{uri: {prefix: /absent}, withoutHeaders: {"@request.auth.claims.group": {}}}]
    directResponse: {status: 257}
  - match: [{uri: {prefix: /deep}, headers: {"@request.auth.claims.deep.down.here": {exact: ""}}}]
    directResponse: {status: 258}
"""
DOCUMENTS = f"""
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: claims}}
spec:
  hosts: [{HOST}]
  gateways: [one]
  http: {RULES}
  - directResponse: {{status: 209}}
"""
OTHER = 209
"""What no rule with claims takes."""

CASES: list[tuple[dict[str, Any] | None, str, dict[str, str], int]] = [
    ({"realm": {"group": "admins"}}, "/dotted", {}, 250),
    ({"realm": {"group": ["users", "admins"]}}, "/dotted", {}, 250),
    ({"realm": {"group": "users"}}, "/dotted", {}, OTHER),
    ({"realm": {"group": "Admins"}}, "/dotted", {}, OTHER),
    ({"realm": "admins"}, "/dotted", {}, OTHER),
    ({"realm.group": "admins"}, "/dotted", {}, OTHER),
    ({}, "/dotted", {}, OTHER),
    (None, "/dotted", {}, OTHER),
    ({"https://x.example": {"id": "admin"}}, "/squares", {}, 251),
    ({"https://x.example": {"id": ["x", "adam"]}}, "/squares", {}, 251),
    ({"https://x.example": {"id": "bad"}}, "/squares", {}, OTHER),
    ({"group": "adxs"}, "/regex", {}, 252),
    ({"group": "adx"}, "/regex", {}, OTHER),
    ({"group": [["admins"]]}, "/regex", {}, OTHER),
    ({"group": "x"}, "/there", {}, 253),
    ({"group": ["x"]}, "/there", {}, 253),
    ({"group": {"a": 1}}, "/there", {}, 253),
    ({"group": 7}, "/there", {}, 253),
    ({}, "/there", {}, OTHER),
    (None, "/there", {}, OTHER),
    ({"scope": "read write"}, "/scope", {}, 254),
    ({"scope": "readwrite"}, "/scope", {}, OTHER),
    ({"group": "admins"}, "/both", {"x-test": "1"}, 255),
    ({"group": "admins"}, "/both", {}, OTHER),
    ({"group": "admins", "left": "yes"}, "/both", {"x-test": "1"}, OTHER),
    ({"group": "admins"}, "/without", {}, 256),
    ({"group": "users"}, "/without", {}, OTHER),
    ({"group": ["admins", "users"]}, "/without", {}, OTHER),
    ({"group": 7}, "/without", {}, 256),
    (None, "/without", {}, 256),
    ({}, "/absent", {}, 257),
    (None, "/absent", {}, 257),
    ({"group": "x"}, "/absent", {}, OTHER),
    ({"group": ["x"]}, "/absent", {}, OTHER),
    ({"deep": {"down": {"here": ""}}}, "/deep", {}, 258),
    ({"deep": {"down": {}}}, "/deep", {}, OTHER),
]
"""Claims of the token (None: there is none), path, headers, and the status."""
