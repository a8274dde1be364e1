"""One inbound request, step by step, in order.

  STRICT? ─► path ─► what outsiders may not say ─► each filter ─► admitted
                                                   CORS, CUSTOM, tokens, AUDIT, DENY, ALLOW

`arrive` decides; only a `Check` needs somebody else: a driver reads the body for it, and asks. The order of
the filters is that of the configuration (Istio's), each as a sidecar has it. STRICT is asked of connections,
where the port is ours; here once more, for one that is older than the policy, and for a port that somebody
else's server holds.

CORS comes first: a preflight never carries what policies ask for, and a page may know why it was refused. (In
Istio it is a matter of the caller's side, so it comes before the server's policies there, too.)
"""

import functools
from collections.abc import Generator, Mapping
from dataclasses import field
from types import MappingProxyType
from typing import Any, NamedTuple

from meshlib.core import outsiders
from meshlib.core.actions import Facts, Reply
from meshlib.core.authn.requirement import PAYLOAD, JwtAuthn, Refusal
from meshlib.core.authn.requirement import SPACE as CLAIMS
from meshlib.core.authz.body import Unread
from meshlib.core.authz.external import Check, ExtAuthz
from meshlib.core.authz.opinion import FAILED_OPEN, Blocked, NoAnswer, Opinion, Passed, Told, changed, checked
from meshlib.core.authz.opinion import SPACE as SAID
from meshlib.core.authz.path import REDIRECT, PathOptions, normalize, origin_form
from meshlib.core.authz.question import NO_IP, Question, parse_ip
from meshlib.core.authz.rbac import SPACE as SHADOWS
from meshlib.core.authz.rbac import Denied, Rbac
from meshlib.core.caller import Caller
from meshlib.core.cors import Cors, cross, opened
from meshlib.core.mtls import InboundMode, ServerTls
from meshlib.core.request import Peer, RequestHead
from meshlib.core.route.rule import Origin
from meshlib.core.route.table import RouteTable
from meshlib.core.telemetry import NOTHING, Telling
from meshlib.core.view import Served
from meshlib.values import dataclass

_DEFAULT = Origin()
_NOTHING: Mapping[str, Origin] = MappingProxyType({})
_PATHS = PathOptions()
_TEXT = (b"content-type", b"text/plain")
_ATTEMPT = b"x-envoy-attempt-count"
Filter = Cors | Rbac | JwtAuthn | ExtAuthz


@dataclass(frozen=True, slots=True)
class Inbound(Served):
    """The policy of one port that this process serves."""

    name: str
    """Of the listener: `xds.istio.io/grpc/lds/inbound/<address>:<port>`."""
    tls: ServerTls
    filters: tuple[object, ...] = ()
    """What each HTTP filter became (`Filter`), in the order in which they see a request."""
    origin: Origin = _DEFAULT
    """Which YAML decided `tls.mode`; empty: none, it is the default."""
    paths: PathOptions = field(default=_PATHS)
    """What a path is before it is looked at."""
    policies: Mapping[str, Origin] = field(default_factory=lambda: _NOTHING, compare=False)
    """Which YAML made a policy, by its name in the filters."""
    telling: Telling = NOTHING
    routes: RouteTable | None = None
    """Which rule takes a request, for the filters that ask; None: none does."""
    version: str = field(default="", compare=False)
    """Of the configuration that it came with."""

    def source_of(self, policy: str) -> Origin:
        """Which YAML made a policy; its name may have a word before `ns[` and after the last `]`."""
        begin, end = policy.find("ns["), policy.rfind("]")
        plain = policy[begin : end + 1] if 0 <= begin < end else policy
        return self.policies.get(plain, _DEFAULT)


class Admitted(NamedTuple):
    """A request that may be served."""

    caller: Caller
    head: RequestHead
    """What the application is given: path normalised, headers that outsiders may not set removed."""
    response_headers: tuple[Told, ...] = ()
    """What CORS, and external authorities, add to the response."""


Arrival = Generator[Check, Opinion, Admitted | Reply]
_ASKED_BY = "istio_ext_authz_shadow_effective_policy_id"


def arrive(inbound: Inbound, head: RequestHead, peer: Peer, own: str, now: float) -> Arrival:
    """The request `head` from `peer`. `own`: this workload's `spiffe://…`; `now`: seconds since 1970."""
    if inbound.tls.mode is InboundMode.STRICT and not peer.principal:
        return _in_the_clear(inbound)
    authority, asked = origin_form(head.authority, head.path)
    status, path = normalize(asked, inbound.paths)
    if status:
        return _not_normal(inbound, status, path)
    if path != head.path:
        head = RequestHead(head.method, head.scheme, authority, path, head.headers)
    question = question_of(head, peer, own)
    to_client: tuple[Told, ...] = ()
    open_to: tuple[Told, ...] = ()
    for one in inbound.filters:
        refused: Reply | None = None
        match one:
            case Cors():
                said = cross(inbound.routes, question.head, inbound.version)
                if isinstance(said, Reply):
                    return said
                open_to = said
            case Rbac():
                denied = one.judge(question)
                refused = None if denied is None else _denied(inbound, denied)
            case JwtAuthn():
                refusal = one.judge(question, now)
                refused = None if refusal is None else _untrusted(inbound, one, refusal)
            case ExtAuthz():
                if one.wanted(question):
                    opinion = checked((yield Check(one, question)))
                    refused = _hear(inbound, one, opinion, question)
                    to_client += opinion.to_client if isinstance(opinion, Passed) else ()
            case _:
                raise TypeError(f"{one!r} is no filter")
        if refused is not None:
            return opened(refused, open_to)
    return Admitted(_caller(question), question.head, open_to + to_client)


def question_of(head: RequestHead, peer: Peer, own: str) -> Question:
    """What filters are asked about a request whose path is in order, without what its caller may not say."""
    told = outsiders.told(head, peer, own)
    remote = outsiders.client_address(told)
    return Question(told, peer, remote if remote and parse_ip(remote) != NO_IP else "")


def _in_the_clear(inbound: Inbound) -> Reply:
    origin = inbound.origin
    facts = Facts(
        "", origin.document, origin.source, detail="strict_mutual_tls", config_version=inbound.version
    )
    return Reply(403, facts, (_TEXT,), b"mutual TLS is required")


def _not_normal(inbound: Inbound, status: int, path: str) -> Reply:
    facts = Facts(detail="path_normalization_failed", config_version=inbound.version)
    headers = ((b"location", path.encode("latin-1", "replace")),) if status == REDIRECT else ()
    return Reply(status, facts, headers)


def _facts(inbound: Inbound, policy: str, detail: str, flag: str = "-") -> Facts:
    origin = inbound.source_of(policy)
    return Facts(
        policy, origin.document, origin.source, flag=flag, detail=detail, config_version=inbound.version
    )


def _denied(inbound: Inbound, denied: Denied) -> Reply:
    name = denied.policy.name if denied.policy else ""
    facts = _facts(inbound, name, denied.detail)
    return Reply(403, facts, (_TEXT,), b"RBAC: access denied")


def _untrusted(inbound: Inbound, filter_: JwtAuthn, refusal: Refusal) -> Reply:
    facts = Facts(detail=refusal.detail, route=filter_.name, config_version=inbound.version)
    return Reply(refusal.fault.status, facts, refusal.headers, refusal.body)


def _hear(inbound: Inbound, filter_: ExtAuthz, opinion: Opinion, question: Question) -> Reply | None:
    """None: the request passes, changed as the opinion says."""
    policy = question.metadata.get(SHADOWS, {}).get(_ASKED_BY, "")
    match opinion:
        case Passed():
            question.head = changed(question.head, opinion)
            if opinion.metadata:
                question.metadata[SAID] = {**question.metadata.get(SAID, {}), **opinion.metadata}
            return None
        case Blocked(status, headers, body):
            facts = _facts(inbound, policy, "ext_authz_denied", "UAEX")
            return Reply(status, facts, headers, body)
        case NoAnswer(detail):
            if filter_.fail_open:
                if filter_.mark_failed_open:
                    question.head = changed(question.head, Passed(set=(FAILED_OPEN,)))
                return None
            facts = _facts(inbound, policy, f"ext_authz_error: {detail}", "UAEX")
            return Reply(filter_.status_on_error, facts)
        case Unread():
            return opinion.reply(inbound.version)


def _caller(question: Question) -> Caller:
    peer, said = question.peer, question.metadata.get(CLAIMS)
    attempt = question.head.index.get(_ATTEMPT) if peer.principal else None
    if said is None and attempt in (None, b"1"):
        return _plain_caller(peer)
    domain, namespace, account = _parts(peer.principal)
    claims: Mapping[str, Any] = (said or {}).get(PAYLOAD) or {}
    user = f"{claims.get('iss', '')}/{claims.get('sub', '')}" if claims else ""
    number = int(attempt) if attempt and attempt.isdigit() and len(attempt) < 6 else 1
    return Caller(peer, peer.principal, namespace, account, domain, claims, user, max(1, number))


@functools.lru_cache(maxsize=1024)
def _plain_caller(peer: Peer) -> Caller:
    domain, namespace, account = _parts(peer.principal)
    return Caller(peer, peer.principal, namespace, account, domain)


def _parts(principal: str) -> tuple[str, str, str]:
    """Trust domain, namespace and account of a principal that was checked; all empty for none."""
    parts = principal.split("/")
    return (parts[2], parts[4], parts[6]) if len(parts) == 7 else ("", "", "")
