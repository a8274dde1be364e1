"""Real Envoy as the judge of who may do what: the same filters and request, two verdicts.

One Envoy serves many cases at once: each is a scope of its own, picked by the header `x-case`, with its RBAC
filters and its requirement of tokens in the scope's virtual host. Providers of tokens are all in one
filter, so their issuers must differ from case to case. Callers are real: mutual TLS with certificates of
a few identities, or plain text, from several loopback addresses to several others. Behind the filters an
echo answers with the request as it then is. Compared are status, Envoy's response code details, body and
challenge of refused tokens, and of what passes the path and the headers in `SEEN`.

Where a path holds escapes we look at it once more as an application is given it, decoded, and Envoy does not.
So there we may refuse what passes Envoy's filters, but only by a filter that has another answer for the
decoded path (`stricter`), and in the words of that filter.

Each of `PATHS` is a listener of its own, since paths are normalised before a scope is picked.
"""

import asyncio
import hashlib
import ssl
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support.envoy import run_envoy
from support.oracle_http import Call, Received, receive
from support.ports import free_port
from support.security_envoy import ECHO
from support.small_ca import Issued, SmallCa

from meshlib.core.actions import Reply
from meshlib.core.authn.requirement import JwtAuthn
from meshlib.core.authz.path import EscapedSlashes, PathOptions, normalize
from meshlib.core.authz.rbac import Denied, Verb
from meshlib.core.inbound import Admitted, Inbound, arrive, question_of
from meshlib.core.mtls import ServerTls
from meshlib.core.request import Peer, RequestHead
from meshlib.dataplane.decode.authn import decode_jwt
from meshlib.dataplane.decode.authz import decode_rbac
from meshlib.xds import pb

SLOTS = ("rbac-0", "rbac-1", "rbac-2", "rbac-3")
"""The RBAC filters of a case, in order."""
SERVER = "spiffe://cluster.local/ns/default/sa/server"
IDENTITIES = (
    "",
    "spiffe://cluster.local/ns/default/sa/web",
    "spiffe://cluster.local/ns/default/sa/api",
    "spiffe://cluster.local/ns/other/sa/web",
    "spiffe://td2.example/ns/default/sa/web",
)
"""The first is plain text."""
DNS = {IDENTITIES[2]: ("api.default.svc", "api.example.com")}
PATHS = (
    PathOptions(),
    PathOptions(normalize=False),
    PathOptions(True, True, EscapedSlashes.FORWARD),
    PathOptions(True, True, EscapedSlashes.REJECT),
    PathOptions(True, False, EscapedSlashes.REDIRECT),
)
PARALLEL = 8
JWT = "envoy.filters.http.jwt_authn"
PASSED, MOVED, REFUSED = 200, 307, 403
SEEN = (
    *("x-forwarded-client-cert", "authorization", "x-token", "x-payload", "x-sub", "x-groups", "x-nested"),
    *("cookie", "x-number", "x-flag"),
)
"""How the headers begin that are compared, of requests that pass."""
UNNAMED = (400, 404)
"""Envoy's codec refuses such paths before anything could tell of it."""


@dataclass(frozen=True, slots=True)
class From:
    """Who calls, and how the call arrives."""

    identity: str = ""
    source: str = "127.0.0.1"
    destination: str = "127.0.0.1"
    sni: str = "server.example"
    """Of TLS only."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One request."""

    call: Call
    who: From = From()


@dataclass(frozen=True, slots=True)
class Case:
    """RBAC filters and requests. `jwt`: the filter before them."""

    rbacs: Sequence[Any]
    asks: Sequence[Ask]
    paths: int = 0
    """Which of `PATHS`."""
    source: str = ""
    """Where it came from, in words."""
    jwt: Any = None


@dataclass(slots=True)
class Verdict:
    """What became of a request; equal verdicts are equal decisions."""

    status: int
    detail: str = ""
    body: str = ""
    challenge: str = ""
    path: str = ""
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Difference:
    """Two verdicts on one request."""

    case: Case
    ask: Ask
    envoy: Verdict
    ours: Verdict

    def __str__(self) -> str:
        said = self.case.source or "\n".join(map(str, (self.case.jwt or "", *self.case.rbacs)))
        return f"{said}\n{PATHS[self.case.paths]}\n{self.ask}\n  Envoy {self.envoy}\n  ours  {self.ours}"


class World:
    """Ports, certificates and who is who, of one comparison."""

    def __init__(self) -> None:
        ca = SmallCa()
        self.ca = ca
        self.server = ca.issue(SERVER)
        self.clients: Mapping[str, Issued] = {
            uri: ca.issue(uri, dns=DNS.get(uri, ())) for uri in IDENTITIES if uri
        }
        self.ports = [free_port() for _ in PATHS]

    def peer(self, who: From, port: int) -> Peer:
        """The peer as a server of ours would see it."""
        if not who.identity:
            return Peer((who.source, 40000), (who.destination, port))
        issued = self.clients[who.identity]
        return Peer(
            (who.source, 40000),
            (who.destination, port),
            who.identity,
            who.sni,
            True,
            hashlib.sha256(issued.der).hexdigest(),
            dns=DNS.get(who.identity, ()),
        )

    def context(self, who: From) -> ssl.SSLContext:
        """TLS of a caller."""
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        made.check_hostname = False
        made.verify_mode = ssl.CERT_NONE
        issued = self.clients[who.identity]
        with tempfile.NamedTemporaryFile(suffix=".pem") as file:
            file.write(issued.key_pem + issued.pem.encode())
            file.flush()
            made.load_cert_chain(file.name)
        return made


def filters_of(case: Case) -> tuple[Any, ...]:
    """A case's filters as our core has them."""
    made: list[Any] = [] if case.jwt is None else [decode_jwt(JWT, case.jwt)]
    return (*made, *(decode_rbac(name, rbac) for name, rbac in zip(SLOTS, case.rbacs, strict=False)))


def head_of(ask: Ask, path: str) -> RequestHead:
    """A request, with that path."""
    headers = [(n.encode("latin-1"), v.strip().encode("latin-1")) for n, v in ask.call.headers]
    scheme = "https" if ask.who.identity else "http"
    return RequestHead(ask.call.method, scheme, ask.call.authority, path, headers)


def our_verdict(world: World, case: Case, ask: Ask, filters: tuple[Any, ...]) -> Verdict:
    """What our core decides."""
    inbound = Inbound("inbound", ServerTls(), filters, paths=PATHS[case.paths])
    head = head_of(ask, ask.call.path)
    peer = world.peer(ask.who, world.ports[case.paths])
    flow = arrive(inbound, head, peer, SERVER, time.time())
    try:
        flow.send(None)
    except StopIteration as ended:
        verdict: Admitted | Reply = ended.value
    if isinstance(verdict, Reply):
        if verdict.status in UNNAMED:
            return Verdict(verdict.status)
        said = dict(verdict.headers).get(b"www-authenticate", b"").decode("latin-1")
        body = "" if verdict.status == MOVED else verdict.body.decode()
        return Verdict(verdict.status, verdict.facts.detail, body, said)
    return Verdict(200, path=sorted_query(verdict.head.path), headers=seen(verdict.head.index.items()))


def stricter(
    world: World, case: Case, ask: Ask, filters: tuple[Any, ...], envoy: Verdict, ours: Verdict
) -> bool:
    """Whether we refuse by a reading of the path at a filter that the path as it was sent passes."""
    if envoy.status not in (PASSED, REFUSED) or ours.status != REFUSED:
        return False
    peer = world.peer(ask.who, world.ports[case.paths])
    head = head_of(ask, normalize(ask.call.path, PATHS[case.paths])[1])
    question = question_of(head, peer, SERVER)
    for one in filters:
        if isinstance(one, JwtAuthn):
            if one.judge(question, time.time()) is not None:
                return False
            continue
        rules = one.rules
        if rules is None:
            return False
        if rules.verb is Verb.LOG:
            continue
        if (rules.match(question) is None) is (rules.verb is Verb.ALLOW):
            return False
        for read in map(rules.match, question.readings()):
            if (read is None) is (rules.verb is Verb.ALLOW):
                return ours == Verdict(REFUSED, Denied(read).detail, "RBAC: access denied")
    return False


def envoy_verdict(got: Received) -> Verdict:
    """What Envoy did."""
    own = dict(got.headers)
    if got.status in UNNAMED:
        return Verdict(got.status)
    if got.status != PASSED:
        body = "" if got.status == MOVED else got.body
        return Verdict(got.status, own.get("x-oracle-details", ""), body, own.get("www-authenticate", ""))
    lines = [(name, value) for name, _, value in (line.partition("\t") for line in got.body.split("\n"))]
    encoded = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in lines]
    return Verdict(200, path=sorted_query(dict(lines).get(":path", "")), headers=seen(encoded))


def sorted_query(path: str) -> str:
    """A path whose parameters are in order: Envoy puts them so when it takes a token out of them."""
    bare, question, query = path.partition("?")
    parts = sorted(part if "=" in part else f"{part}=" for part in query.split("&"))
    return f"{bare}{question}{'&'.join(parts)}" if query else bare


def seen(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """The headers that are compared, several of one name as one."""
    found: dict[str, str] = {}
    for name, value in ((n.decode("latin-1"), v.decode("latin-1")) for n, v in headers):
        if name.startswith(SEEN):
            found[name] = f"{found[name]},{value}" if name in found else value
    return found


def run(world: World, cases: Sequence[Case]) -> tuple[int, list[Difference]]:
    """How many requests were compared, and every difference."""
    with tempfile.TemporaryDirectory(prefix="oracle-") as folder:
        answers = asyncio.run(_ask_envoy(world, cases, Path(folder)))
    compared, differences = 0, []
    for case, received in zip(cases, answers, strict=True):
        filters = filters_of(case)
        for ask, got in zip(case.asks, received, strict=True):
            compared += 1
            theirs, ours = envoy_verdict(got), our_verdict(world, case, ask, filters)
            if theirs != ours and not stricter(world, case, ask, filters, theirs, ours):
                differences.append(Difference(case, ask, theirs, ours))
    return compared, differences


async def _ask_envoy(world: World, cases: Sequence[Case], folder: Path) -> list[list[Received]]:
    response = pb.DiscoveryResponse(version_info="1", type_url=pb.type_url(pb.ScopedRouteConfiguration))
    response.resources.extend(pb.pack(_scope(number, case)) for number, case in enumerate(cases))
    (folder / "scopes.pb").write_bytes(response.SerializeToString())
    bootstrap = _bootstrap(world, folder / "scopes.pb", _tokens(cases))
    async with run_envoy(bootstrap, folder) as envoy:
        loaded = await envoy.get("/stats?filter=scoped_rds.oracle.*update")
        if b"update_rejected: 0" not in loaded or b"update_success: 0" in loaded:
            raise RuntimeError(f"Envoy refused a configuration: {(folder / 'envoy.log').read_text()[-4000:]}")
        return await _ask_all(world, cases)


async def _ask_all(world: World, cases: Sequence[Case]) -> list[list[Received]]:
    groups: dict[tuple[int, From], list[tuple[int, int]]] = {}
    for number, case in enumerate(cases):
        for place, ask in enumerate(case.asks):
            groups.setdefault((case.paths, ask.who), []).append((number, place))
    answers: list[list[Received]] = [[Received(0, (), "")] * len(case.asks) for case in cases]
    todo = iter(groups.items())

    async def work() -> None:
        for (paths, who), places in todo:
            reader, writer = await _connect(world, world.ports[paths], who)
            for number, place in places:
                writer.write(cases[number].asks[place].call.encode(number))
                answers[number][place] = got = await receive(reader)
                if ("connection", "close") in got.headers:
                    writer.close()
                    reader, writer = await _connect(world, world.ports[paths], who)
            writer.close()

    async with asyncio.TaskGroup() as group:
        for _ in range(PARALLEL):
            group.create_task(work())
    return answers


async def _connect(world: World, port: int, who: From) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    source = (who.source, 0)
    if not who.identity:
        return await asyncio.open_connection(who.destination, port, local_addr=source)
    context = world.context(who)
    return await asyncio.open_connection(
        who.destination, port, local_addr=source, ssl=context, server_hostname=who.sni
    )


def _scope(number: int, case: Case) -> Any:
    scope = pb.ScopedRouteConfiguration(name=f"case-{number}")
    scope.key.fragments.add(string_key=str(number))
    scope.route_configuration.name = f"case-{number}"
    host = scope.route_configuration.virtual_hosts.add(name="all", domains=["*"])
    route = host.routes.add()
    route.match.prefix = ""
    route.direct_response.status = 404
    for name, rbac in zip(SLOTS, case.rbacs, strict=False):
        own = pb.message("envoy.extensions.filters.http.rbac.v3.RBACPerRoute")(rbac=rbac)
        host.typed_per_filter_config[name].CopyFrom(pb.pack(own))
    if case.jwt is not None:
        needs = pb.message("envoy.extensions.filters.http.jwt_authn.v3.PerRouteConfig")(
            requirement_name=str(number)
        )
        host.typed_per_filter_config[JWT].CopyFrom(pb.pack(needs))
    return scope


def _tokens(cases: Sequence[Case]) -> dict[str, Any]:
    """One jwt_authn filter for all cases; each has a requirement by its number."""
    made = pb.JwtAuthentication(bypass_cors_preflight=True)
    for number, case in enumerate(cases):
        if case.jwt is None:
            continue
        for name, provider in case.jwt.providers.items():
            made.providers[f"{number}-{name}"].CopyFrom(provider)
        needed = made.requirement_map[str(number)]
        needed.CopyFrom(case.jwt.rules[0].requires)
        _rename(needed, number)
    return {"@type": f"{_FILTERS}.jwt_authn.v3.JwtAuthentication", **pb.to_dict(made)}


def _rename(requirement: Any, number: int) -> None:
    which = requirement.WhichOneof("requires_type")
    if which == "provider_name":
        requirement.provider_name = f"{number}-{requirement.provider_name}"
    elif which == "provider_and_audiences":
        found = requirement.provider_and_audiences
        found.provider_name = f"{number}-{found.provider_name}"
    elif which in ("requires_any", "requires_all"):
        for one in getattr(requirement, which).requirements:
            _rename(one, number)


_HCM = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
_FILTERS = "type.googleapis.com/envoy.extensions.filters.http"
_TLS = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext"
_INSPECTOR = "type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector"
_ESCAPED = {
    EscapedSlashes.KEEP: "KEEP_UNCHANGED",
    EscapedSlashes.REJECT: "REJECT_REQUEST",
    EscapedSlashes.REDIRECT: "UNESCAPE_AND_REDIRECT",
    EscapedSlashes.FORWARD: "UNESCAPE_AND_FORWARD",
}


def _bootstrap(world: World, scopes: Path, tokens: dict[str, Any]) -> dict[str, Any]:
    listeners = []
    for number, options in enumerate(PATHS):
        manager = {"@type": _HCM, "stat_prefix": "main", **_manager(scopes, options, tokens)}
        filters = [{"name": "http", "typed_config": manager}]
        socket_ = {
            "name": "tls",
            "typed_config": {
                "@type": _TLS,
                "require_client_certificate": True,
                "common_tls_context": {
                    "tls_certificates": [
                        {
                            "certificate_chain": {"inline_string": world.server.pem},
                            "private_key": {"inline_string": world.server.key_pem.decode()},
                        }
                    ],
                    "validation_context": {"trusted_ca": {"inline_string": world.ca.pem}},
                },
            },
        }
        listeners.append(
            {
                "name": f"paths-{number}",
                "address": {"socket_address": {"address": "0.0.0.0", "port_value": world.ports[number]}},
                "listener_filters": [{"name": "inspector", "typed_config": {"@type": _INSPECTOR}}],
                "filter_chains": [
                    {
                        "filter_chain_match": {"transport_protocol": "tls"},
                        "transport_socket": socket_,
                        "filters": filters,
                    },
                    {"filter_chain_match": {"transport_protocol": "raw_buffer"}, "filters": filters},
                ],
            }
        )
    return {"node": {"id": "oracle", "cluster": "oracle"}, "static_resources": {"listeners": listeners}}


def _manager(scopes: Path, options: PathOptions, tokens: dict[str, Any]) -> dict[str, Any]:
    source = {"path_config_source": {"path": str(scopes)}, "resource_api_version": "V3"}
    shown = {"append": {"header": {"key": "x-oracle-details", "value": "%RESPONSE_CODE_DETAILS%"}}}
    mutation = {
        "@type": f"{_FILTERS}.header_mutation.v3.HeaderMutation",
        "mutations": {"response_mutations": [shown]},
    }
    lua = {"@type": f"{_FILTERS}.lua.v3.Lua", "default_source_code": {"inline_string": ECHO}}
    return {
        "normalize_path": options.normalize,
        "merge_slashes": options.merge_slashes,
        "path_with_escaped_slashes_action": _ESCAPED[options.escaped_slashes],
        "generate_request_id": False,
        "forward_client_cert_details": "APPEND_FORWARD",
        "set_current_client_cert_details": {"subject": True, "uri": True, "dns": True},
        "scoped_routes": {
            "name": "oracle",
            "scope_key_builder": {"fragments": [{"header_value_extractor": {"name": "x-case", "index": 0}}]},
            "rds_config_source": source,
            "scoped_rds": {"scoped_rds_config_source": source},
        },
        "http_filters": [
            {"name": "show", "typed_config": mutation},
            {"name": JWT, "typed_config": tokens},
            *({"name": slot, "typed_config": {"@type": f"{_FILTERS}.rbac.v3.RBAC"}} for slot in SLOTS),
            {"name": "echo", "typed_config": lua},
            {"name": "router", "typed_config": {"@type": f"{_FILTERS}.router.v3.Router"}},
        ],
    }
