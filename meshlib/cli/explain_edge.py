"""One request at a gateway decided aloud, of the resources that its Envoy is sent.

Rules:

- The listener is the port's, the filter chain that of the name (SNI), as Envoy finds them; the verdict at
  the edge is `core.inbound.arrive`'s; the route is `core.route.walk`'s, of the request as it is let in.
- Who calls is an address, without a certificate of the mesh. What an external authority would say is not
  known: what follows holds if it lets the request pass.
"""

from typing import Any

from meshlib.cli.explain_claims import decode_with_claims
from meshlib.cli.explain_decision import decide_request, endpoints_of, share_of
from meshlib.cli.explain_held import Held, managers_of
from meshlib.cli.explain_inbound import asked_of, steps_of, verdict_of
from meshlib.core.actions import Reply
from meshlib.core.authz.question import Question
from meshlib.core.framing import ambiguous
from meshlib.core.request import Peer, RequestHead
from meshlib.core.route.chain import Connections, FilterChain
from meshlib.core.route.table import RouteTable, without_port
from meshlib.core.view import View
from meshlib.dataplane.decode.clusters import decode_cluster
from meshlib.dataplane.decode.endpoints import decode_endpoints
from meshlib.dataplane.decode.errors import Refused
from meshlib.dataplane.decode.inbound import decode_edge
from meshlib.dataplane.decode.origin import decode_origin
from meshlib.dataplane.decode.routes import decode_routes
from meshlib.errors import RefusedResource
from meshlib.xds import pb
from meshlib.xds.kinds import Kind
from meshlib.xds.names import FILE_CERT, KUBERNETES_SECRET, OWN_SECRET, WITHHELD_SECRET

Explanation = dict[str, Any]
_TCP = pb.type_url(pb.TcpProxy)
HOSTS_SHOWN = 20


def decide_edge(held: Held, head: RequestHead, host: str, port: int, caller: str, now: float) -> Explanation:
    """What becomes of `head`, sent to that port of a gateway for `host` by `caller`, an IP address.

    Keys: `listener` (None: there is none for the port), `listens`, `ports` (that there are), `others`
    (listeners of the port at other addresses), `document` and `source` of the server, `tls` (None: plain
    text; `mode`, `names`, `credentials`, `withheld`), `closed` (why a connection is closed), `security` (as
    of `decide_inbound`: `admitted`, `status`, `policy`, `document`, `source`, `detail`, `steps`),
    `https_redirect` (where to), `hosts` (that are served there), `request` (as of `explain_decision.decide`),
    `rule` (`document` and `source`) and `connection` (clusters, their `endpoints` beside it) of a connection
    that is handed on, `notes`, `config_version`. All are always there.
    """
    named = {
        name: one for name, one in held.of(Kind.LISTENER).items() if name.rpartition("_")[2] == str(port)
    }
    answer: Explanation = {
        "listener": None,
        "listens": None,
        "ports": sorted({int(name.rpartition("_")[2]) for name in held.of(Kind.LISTENER)}),
        "others": sorted(named)[1:],
        "document": "",
        "source": "",
        "tls": None,
        "closed": None,
        "security": None,
        "https_redirect": None,
        "hosts": [],
        "request": None,
        "rule": None,
        "connection": [],
        "endpoints": [],
        "notes": list(held.notes),
        "config_version": held.version,
    }
    if not named:
        return answer
    name = min(named)
    listener = named[name]
    answer |= _origin(listener) | {"listener": name, "listens": _address(listener)}
    chain, closed = _chain(listener, head.scheme, without_port(host))
    if chain is None:
        names = sorted(
            {name for each in listener.filter_chains for name in each.filter_chain_match.server_names}
        )
        return answer | {"closed": closed, "hosts": names}
    made = _origin(chain)
    if made["document"].startswith("Gateway "):
        answer |= made
    answer["tls"] = _tls(chain, secured=head.scheme == "https")
    managers = managers_of(chain)
    if not managers:
        return answer | {"rule": made} | _connection(held, chain)
    return answer | _request(held, listener, chain, managers[0], head, (caller, port), now)


def _request(
    held: Held, listener: Any, chain: Any, manager: Any, head: RequestHead, place: tuple[str, int], now: float
) -> Explanation:
    caller, port = place
    try:
        inbound = decode_edge(listener, manager)
    except Refused as refused:
        raise RefusedResource(f"listener {listener.name}: {refused}") from None
    peer = Peer((caller, 0), (caller, port), tls=chain.HasField("transport_socket"))
    if why := ambiguous("1.1", head):
        return {"security": _secured(400, why)}
    question = asked_of(inbound, head, peer)
    steps, verdict = steps_of(inbound, question, now), verdict_of(inbound, head, peer, now)
    if isinstance(verdict, Reply):
        facts = verdict.facts
        said = {"policy": facts.route, "document": facts.document, "source": facts.source}
        return {"security": _secured(verdict.status, facts.detail) | said | {"steps": steps}}
    table, redirecting = table_of(held.of(Kind.ROUTES).get(manager.rds.route_config_name), question)
    let_in = verdict.head
    inside = RequestHead(let_in.method, head.scheme, let_in.authority, let_in.path, let_in.headers)
    found = table.find_host(inside.authority)
    domains = [
        domain for one in table.hosts if one.routes or one.name in redirecting for domain in one.domains
    ]
    answer: Explanation = {
        "security": _secured(None, "") | {"admitted": True, "steps": steps},
        "hosts": domains,
    }
    if found is not None and found.name in redirecting and head.scheme == "http":
        return answer | {"https_redirect": f"https://{without_port(inside.authority)}{inside.path}"}
    target = f"{without_port(head.authority)}:{port}"
    return answer | {"request": decide_request(view_of(held, {target: table}), target, inside)}


def _secured(status: int | None, detail: str) -> Explanation:
    nothing: Explanation = {"admitted": False, "policy": "", "document": "", "source": "", "steps": []}
    return nothing | {"status": status, "detail": detail}


def table_of(message: Any, question: Question | None = None) -> tuple[RouteTable, set[str]]:
    """A route configuration, and the virtual hosts that send all requests to https.

    `question`: the request, of whose token routes may ask.
    """
    if message is None:
        return RouteTable("", ()), set()
    plain, redirecting = pb.RouteConfiguration(), set()
    plain.CopyFrom(message)
    for host in plain.virtual_hosts:
        if host.require_tls:
            redirecting.add(host.name)
            host.ClearField("require_tls")
    try:
        table = decode_routes(plain) if question is None else decode_with_claims(plain, question)
        return table, redirecting
    except Refused as refused:
        raise RefusedResource(f"routes {message.name}: {refused}") from None


def view_of(held: Held, tables: dict[str, RouteTable]) -> View:
    """What is held as a view, with these tables."""
    clusters, endpoints = {}, {}
    for name, message in held.of(Kind.CLUSTER).items():
        try:
            clusters[name] = decode_cluster(message)
        except Refused:
            continue  # what is known of it is its name
        inline = clusters[name].inline
        if inline is not None:
            endpoints[name] = inline
    for name, message in held.of(Kind.ENDPOINTS).items():
        endpoints[name] = decode_endpoints(message)
    return View(held.version, tables, clusters, endpoints)


def _chain(listener: Any, scheme: str, name: str) -> tuple[Any, str]:
    """The filter chain of a connection; None, and why it is closed."""
    chains = list(listener.filter_chains)
    secured = any(
        chain.HasField("transport_socket") or chain.filter_chain_match.server_names for chain in chains
    )
    if not secured:
        if scheme == "https" and managers_of(chains[0]):
            return None, "it speaks plain HTTP: there is no handshake"
        return chains[0], ""
    if scheme == "http":
        return None, "it speaks TLS: plain text is cut off"
    known = Connections(
        FilterChain((), str(number), tuple(each.lower() for each in chain.filter_chain_match.server_names))
        for number, chain in enumerate(chains)
        if not chain.filter_chain_match.prefix_ranges
    )
    found = known.find("", name)
    if found is None:
        return None, f"no server is for the name {name} (SNI)"
    return chains[int(found.name)], ""


def _tls(chain: Any, *, secured: bool) -> Explanation | None:
    names = list(chain.filter_chain_match.server_names)
    if not chain.HasField("transport_socket"):
        passed = secured and (names or not managers_of(chain))
        return _told("PASSTHROUGH", names, [], []) if passed else None
    context = pb.unpack(chain.transport_socket.typed_config)
    common = context.common_tls_context
    asked = [one.name for one in common.tls_certificate_sds_secret_configs]
    if asked == [OWN_SECRET]:
        mode = "ISTIO_MUTUAL"
    elif context.require_client_certificate.value:
        mode = "MUTUAL"
    else:
        mode = "OPTIONAL_MUTUAL" if common.HasField("combined_validation_context") else "SIMPLE"
    withheld = [one.removeprefix(WITHHELD_SECRET) for one in asked if one.startswith(WITHHELD_SECRET)]
    return _told(mode, names, [_credential(one) for one in asked], withheld)


def _told(mode: str, names: list[str], credentials: list[str], withheld: list[str]) -> Explanation:
    return {"mode": mode, "names": names, "credentials": credentials, "withheld": withheld}


def _credential(secret: str) -> str:
    for prefix in (KUBERNETES_SECRET, WITHHELD_SECRET):
        if secret.startswith(prefix):
            return f"Secret {secret.removeprefix(prefix)}"
    if secret.startswith(FILE_CERT):
        return f"file {secret.removeprefix(FILE_CERT).partition('~')[0]}"
    return "the gateway's own, of the mesh" if secret == OWN_SECRET else secret


def _connection(held: Held, chain: Any) -> Explanation:
    """Where a connection is handed on to."""
    view, shares = view_of(held, {}), shares_of(chain)
    whole = sum(weight for _, weight in shares)
    return {
        "connection": [share_of(view, name, weight, weight / whole) for name, weight in shares],
        "endpoints": [one for name, _ in shares for one in endpoints_of(name, view.endpoints.get(name))],
    }


def shares_of(chain: Any) -> list[tuple[str, int]]:
    """The clusters of a filter chain with a TCP proxy, and their weights."""
    shares = []
    for each in chain.filters:
        if each.typed_config.type_url == _TCP:
            proxy = pb.unpack(each.typed_config)
            if proxy.WhichOneof("cluster_specifier") == "cluster":
                shares.append((proxy.cluster, 1))
            shares += [(one.name, one.weight) for one in proxy.weighted_clusters.clusters]
    return shares


def _origin(message: Any) -> Explanation:
    origin = decode_origin(message)
    return {"document": origin.document, "source": origin.source}


def _address(listener: Any) -> str:
    if listener.address.HasField("pipe"):
        return f"unix:{listener.address.pipe.path}"
    socket = listener.address.socket_address
    host = f"[{socket.address}]" if ":" in socket.address else socket.address
    return f"{host}:{socket.port_value}"
