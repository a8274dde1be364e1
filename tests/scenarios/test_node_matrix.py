"""Every rule from each of {Python in the process, node} to each of {Python in the process, node}: one table.

Two real Envoys and four pods in namespaces, two served applications, callers in this process; all are started
once, and the mesh's YAML is edited between the cases. A case says what is seen before its documents are there
and what then, so that nothing is taken for in force before it is.
"""

import http.server
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from support.commands import wait_until
from support.matrix import PAIRS, Matrix, Way, matrix
from support.node_mesh import serving
from support.oracle_policies import Signers

CALLER, OTHER = "200 default/sa/caller", "200 shop/sa/other"
ROUTES = """
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: APP}
spec: {host: HOST, subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: APP}
spec: {hosts: [HOST], http: [HTTP]}
"""
V1 = "route: [{destination: {host: HOST, subset: v1}}]"
RULES = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: APP}
spec: {selector: {matchLabels: {app: APP}}, action: ACTION, rules: RULES}
"""
MODE = """
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: APP}
spec: {selector: {matchLabels: {app: APP}}, mtls: {mode: MODE}}
"""
PORT_MODE = MODE.replace("}}\n", "}, portLevelMtls: {PORT: {mode: LEVEL}}}\n")


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Matrix]:
    with matrix(tmp_path_factory.mktemp("matrix")) as made:
        yield made


def seen(mesh: Matrix, documents: str, look: Callable[[Way], object], expected: dict[str, object]) -> None:
    """All ways see that, soon after these documents."""
    mesh.edit(documents)
    found: dict[str, object] = {}

    def as_expected() -> bool:
        found.update({pair: look(mesh.ways[pair]) for pair in PAIRS if found.get(pair) != expected[pair]})
        return found == expected

    try:
        wait_until(as_expected, 20, "it")
    except AssertionError:
        assert found == expected


# Who may


def who(way: Way) -> list[str]:
    return [
        way.status(),
        way.status("other"),
        way.status("caller", "POST"),
        way.status("caller", "GET", "/admin/x"),
    ]


def rules(action: str, text: str) -> str:
    return RULES.replace("ACTION", action).replace("RULES", text)


NO = "403"
ALL = [CALLER, OTHER, CALLER, CALLER]
ONLY_CALLER = [CALLER, NO, CALLER, CALLER]
NOBODY = [NO, NO, NO, NO]
AUTHORISATIONS = {
    "nobody may": (rules("ALLOW", "[]"), NOBODY),
    "a principal may": (
        rules("ALLOW", "[{from: [{source: {principals: [cluster.local/ns/default/sa/caller]}}]}]"),
        ONLY_CALLER,
    ),
    "a principal may not": (
        rules("DENY", "[{from: [{source: {principals: [cluster.local/ns/shop/sa/other]}}]}]"),
        ONLY_CALLER,
    ),
    "all but a principal may not": (
        rules("DENY", "[{from: [{source: {notPrincipals: [cluster.local/ns/default/*]}}]}]"),
        ONLY_CALLER,
    ),
    "a namespace may": (rules("ALLOW", "[{from: [{source: {namespaces: [shop]}}]}]"), [NO, OTHER, NO, NO]),
    "a namespace may not": (
        rules("DENY", "[{from: [{source: {namespaces: [default]}}]}]"),
        [NO, OTHER, NO, NO],
    ),
    "a method may": (rules("ALLOW", "[{to: [{operation: {methods: [GET]}}]}]"), [CALLER, OTHER, NO, CALLER]),
    "a method may not": (
        rules("DENY", "[{to: [{operation: {methods: [POST]}}]}]"),
        [CALLER, OTHER, NO, CALLER],
    ),
    "a path may": (rules("ALLOW", '[{to: [{operation: {paths: ["/admin/*"]}}]}]'), [NO, NO, NO, CALLER]),
    "a path may not": (
        rules("DENY", '[{to: [{operation: {paths: ["/admin/*"]}}]}]'),
        [CALLER, OTHER, CALLER, NO],
    ),
    "a port may": (
        rules("ALLOW", '[{to: [{operation: {ports: ["PORT"], methods: [GET]}}]}]'),
        [CALLER, OTHER, NO, CALLER],
    ),
    "another port may": (rules("ALLOW", '[{to: [{operation: {ports: ["1"]}}]}]'), NOBODY),
    "a port may not": (rules("DENY", '[{to: [{operation: {ports: ["PORT"]}}]}]'), NOBODY),
    "all at once": (
        rules(
            "ALLOW",
            "[{from: [{source: {namespaces: [default]}}], "
            'to: [{operation: {methods: [GET], paths: ["/admin/*"], ports: ["PORT"]}}]}]',
        ),
        [NO, NO, NO, CALLER],
    ),
}


@pytest.mark.parametrize("case", AUTHORISATIONS)
def test_who_may(mesh: Matrix, case: str) -> None:
    documents, expected = AUTHORISATIONS[case]
    seen(mesh, "", who, dict.fromkeys(PAIRS, ALL))
    seen(mesh, documents, who, dict.fromkeys(PAIRS, expected))


# Modes


# What stands stays what it is: each request has a connection of its own here.
ONE_EACH = """
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: APP}
spec: {host: HOST, trafficPolicy: {connectionPool: {http: {maxRequestsPerConnection: 1}}}}
"""
SECURED, OPEN, CLEAR = (CALLER, "0"), (CALLER, "200"), ("200", "200")
"""What a caller of the mesh is answered, and one in plain text."""
STRICT = MODE.replace("MODE", "STRICT")
PERMISSIVE = MODE.replace("MODE", "PERMISSIVE")
MODES = {
    "PERMISSIVE": (STRICT, SECURED, PERMISSIVE, OPEN),
    "STRICT": (PERMISSIVE, OPEN, STRICT, SECURED),
    "DISABLE": (STRICT, SECURED, MODE.replace("MODE", "DISABLE"), CLEAR),
    "PERMISSIVE at the port": (
        STRICT,
        SECURED,
        PORT_MODE.replace("MODE", "STRICT").replace("LEVEL", "PERMISSIVE"),
        OPEN,
    ),
    "STRICT at the port": (
        PERMISSIVE,
        OPEN,
        PORT_MODE.replace("MODE", "DISABLE").replace("LEVEL", "STRICT"),
        SECURED,
    ),
    "DISABLE at the port": (
        STRICT,
        SECURED,
        PORT_MODE.replace("MODE", "STRICT").replace("LEVEL", "DISABLE"),
        CLEAR,
    ),
}


@pytest.mark.parametrize("case", MODES)
def test_modes(mesh: Matrix, case: str) -> None:
    before, then, documents, expected = MODES[case]

    def look(way: Way) -> tuple[str, str]:
        return way.status(), str(mesh.plain(way.service).status)

    seen(mesh, before + ONE_EACH, look, dict.fromkeys(PAIRS, then))
    seen(mesh, documents + ONE_EACH, look, dict.fromkeys(PAIRS, expected))


# Tokens, and who is asked elsewhere


TOKENS = """
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: APP}
spec:
  selector: {matchLabels: {app: APP}}
  jwtRules: [{issuer: me, jwks: 'JWKS', forwardOriginalToken: true}]
"""
CLAIMED = """[
  {to: [{operation: {paths: [/]}}]},
  {from: [{source: {requestPrincipals: [me/*]}}],
   when: [{key: "request.auth.claims[group]", values: [good]}]}]
"""
ASKED = """
apiVersion: mesh.istio.io/v1alpha1
kind: MeshConfig
extensionProviders:
- name: door
  envoyExtAuthzHttp:
    service: door.example
    port: 9000
    timeout: 5s
    includeRequestHeadersInCheck: [x-let-me]
    headersToUpstreamOnAllow: [x-door]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: door}
spec:
  hosts: [door.example]
  location: MESH_EXTERNAL
  resolution: STATIC
  ports: [{name: http, number: 9000, protocol: HTTP}]
  endpoints: [{address: 127.0.0.1, ports: {http: DOOR}}]
"""
CUSTOM = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: APP}
spec:
  selector: {matchLabels: {app: APP}}
  action: CUSTOM
  provider: {name: door}
  rules: [{to: [{operation: {paths: ["/admin/*"]}}]}]
"""


def test_tokens(mesh: Matrix) -> None:
    words = ("APP", "HOST", "PORT")  # which stand for something
    made = next(one for one in iter(Signers, None) if not any(word in one.jwks for word in words))

    def bearer(signer: str = "", **claims: object) -> str:
        header = {"alg": "ES256", "kid": "e"}
        return "Bearer " + made.token(header, {"iss": "me", "sub": "jason", "exp": 4e9, **claims}, signer)

    shown = ["", bearer(group="good"), bearer(group="bad"), bearer("stranger", group="good"), "Bearer x.y.z"]

    def look(way: Way) -> list[str]:
        named = [{"authorization": one} if one else {} for one in shown]
        return [
            way.status("caller", "GET", path, **headers).partition(" ")[0]
            for path in ("/", "/x")
            for headers in named
        ]

    seen(mesh, ONE_EACH, look, dict.fromkeys(PAIRS, ["200"] * 10))
    documents = TOKENS.replace("JWKS", made.jwks) + "---" + rules("ALLOW", CLAIMED) + ONE_EACH
    expected = ["200", "200", "200", "401", "401", "403", "200", "403", "401", "401"]
    seen(mesh, documents, look, dict.fromkeys(PAIRS, expected))


class Door(http.server.BaseHTTPRequestHandler):
    """Lets in who says please."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200 if self.headers["x-let-me"] == "please" else 418)
        self.send_header("x-door", "open")
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        return


def test_who_is_asked_elsewhere(mesh: Matrix) -> None:
    def look(way: Way) -> list[object]:
        found = [
            way.ask("caller", "GET", path, **headers)
            for path, headers in (("/", {}), ("/admin/x", {}), ("/admin/x", {"x_let_me": "please"}))
        ]
        return [(one.status, one.told.get("headers", {}).get("x-door")) for one in found]

    unasked, refused, passed = (200, None), (418, None), (200, "open")
    asked_for: list[object] = [unasked, refused, passed]
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Door) as door, serving(door):
        asked = ASKED.replace("DOOR", str(door.server_address[1]))
        with mesh.beside(asked):
            seen(mesh, ONE_EACH, look, dict.fromkeys(PAIRS, [unasked] * 3))
            seen(mesh, CUSTOM + ONE_EACH, look, dict.fromkeys(PAIRS, asked_for))
            seen(mesh, ONE_EACH, look, dict.fromkeys(PAIRS, [unasked] * 3))


# Routes


@dataclass(frozen=True)
class Route:
    """A route, and what is seen of it; and what is with one to v1 that says nothing else."""

    http: str
    look: Callable[[Way], object]
    before: object
    expected: object


def versions(way: Way) -> list[str]:
    return [way.version(), way.version(x_user="jason")]


def spread(way: Way) -> set[str]:
    return {way.version() for _ in range(24)}


def told(*names: str) -> Callable[[Way], object]:
    def look(way: Way) -> object:
        found = way.ask(path="/path", x_removed="it")
        return [
            found.status,
            found.told.get("path"),
            found.headers.get("x-answer"),
            *(found.told.get("headers", {}).get(name) for name in names),
        ]

    return look


def tries(way: Way) -> tuple[str, int]:
    number = way.number()
    return way.version(x_id=number, x_fail="2"), len(way.heard_by(number))


def slow(way: Way) -> str:
    return str(way.ask(x_slow="0.4").status)


def mirrored(way: Way) -> set[str]:
    """A mirror may be a moment late: it is asked for again then."""
    number = way.number()
    way.ask(x_id=number)
    threading.Event().wait(0.02)
    return {line.replace(way.service, "APP") for line in way.heard_by(number)}


def redirected(way: Way) -> list[object]:
    found = way.ask(path="/path")
    return [found.status, found.headers.get("location", "").replace(way.service, "APP")]


def late(way: Way) -> tuple[int, bool]:
    found = way.ask()
    return found.status, found.seconds >= 0.3


ROUTED = {
    "a subset by a header": Route(
        "{match: [{headers: {x-user: {exact: jason}}}], "
        "route: [{destination: {host: HOST, subset: v2}}]}, {V1}",
        versions,
        ["200 v1", "200 v1"],
        ["200 v1", "200 v2"],
    ),
    "all weight": Route(
        "{route: [{destination: {host: HOST, subset: v1}, weight: 0}, "
        "{destination: {host: HOST, subset: v2}, weight: 100}]}",
        spread,
        {"200 v1"},
        {"200 v2"},
    ),
    "weights": Route(
        "{route: [{destination: {host: HOST, subset: v1}, weight: 50}, "
        "{destination: {host: HOST, subset: v2}, weight: 50}]}",
        spread,
        {"200 v1"},
        {"200 v1", "200 v2"},
    ),
    "retries": Route("{V1, retries: {attempts: 3, retryOn: 5xx}}", tries, ("500 v1", 1), ("200 v1", 3)),
    "too few retries": Route(
        "{V1, retries: {attempts: 1, retryOn: 5xx}}", tries, ("500 v1", 1), ("500 v1", 2)
    ),
    "a time-out": Route("{V1, timeout: 0.1s}", slow, "200", "504"),
    "a mirror": Route(
        "{V1, mirror: {host: HOST, subset: v2}}",
        mirrored,
        {"v1 APP.default:9080"},
        {"v1 APP.default:9080", "v2 APP.default:9080"},
    ),
    "an abort": Route(
        "{fault: {abort: {httpStatus: 418, percentage: {value: 100}}}, V1}", late, (200, False), (418, False)
    ),
    "a delay": Route(
        "{fault: {delay: {fixedDelay: 0.3s, percentage: {value: 100}}}, V1}", late, (200, False), (200, True)
    ),
    "headers": Route(
        "{V1, headers: {request: {set: {x-added: one}, remove: [x-removed]}, "
        "response: {set: {x-answer: two}}}}",
        told("x-added", "x-removed"),
        [200, "/path", None, None, "it"],
        [200, "/path", "two", "one", None],
    ),
    "another path": Route(
        "{match: [{uri: {exact: /path}}], V1, rewrite: {uri: /other}}",
        told(),
        [200, "/path", None],
        [200, "/other", None],
    ),
    "a redirect": Route(
        "{match: [{uri: {exact: /path}}], redirect: {uri: /there}}, {V1}",
        redirected,
        [200, ""],
        [301, "http://APP.default:9080/there"],
    ),
    "an answer": Route("{directResponse: {status: 429}}", late, (200, False), (429, False)),
}


@pytest.mark.parametrize("case", ROUTED)
def test_routes(mesh: Matrix, case: str) -> None:
    one = ROUTED[case]
    seen(mesh, ROUTES.replace("HTTP", f"{{{V1}}}"), one.look, dict.fromkeys(PAIRS, one.before))
    documents = ROUTES.replace("HTTP", one.http.replace("V1", V1))
    seen(mesh, documents, one.look, dict.fromkeys(PAIRS, one.expected))
