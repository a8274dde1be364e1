"""One inbound request decided aloud: which policy of a served port lets it in, or keeps it out.

The verdict is `core.inbound.arrive`'s; the steps are the same filters, asked one by one. An external
authority is named and not asked: what follows holds if it lets the request pass.

The caller does what the port's mode makes a client of the mesh do: where mutual TLS is off it comes in plain
text, and shows no identity.
"""

from dataclasses import replace
from typing import Any

from meshlib.cli.explain_served import Served
from meshlib.core.actions import Reply
from meshlib.core.authn.requirement import JwtAuthn
from meshlib.core.authz.external import ExtAuthz
from meshlib.core.authz.opinion import Passed
from meshlib.core.authz.path import normalize, origin_form
from meshlib.core.authz.question import Question
from meshlib.core.authz.rbac import Rbac, Rules
from meshlib.core.cors import NO_CHANCE, Cors, cross
from meshlib.core.framing import ambiguous
from meshlib.core.inbound import Inbound, arrive, question_of
from meshlib.core.mtls import InboundMode
from meshlib.core.request import Peer, RequestHead
from meshlib.identity.spiffe import SpiffeId

ASKING = "istio_ext_authz_"
"""Before the results of rules that say whether an authority is asked."""
Explanation = dict[str, Any]


def decide_inbound(served: Served, head: RequestHead, caller: Peer, now: float) -> Explanation:
    """What becomes of `head` from `caller` at a port with that policy.

    Keys: `admitted`, `status` (None: the application's), `policy`, `document`, `source`, `detail`, `mode`,
    `mode_document`, `mode_source`, `with_authority`, `caller`, `principal` (what the caller shows; empty:
    nothing), `config_version`, and `steps`, each a `filter`, `policy`, `document`, `source` and whether it
    `matched`. All are always there.
    """
    inbound, version = served.inbound, served.version
    plain = inbound.tls.mode is InboundMode.DISABLE
    peer = replace(caller, principal="", tls=False) if plain else caller
    answer: Explanation = {
        "admitted": False,
        "status": None,
        "policy": "",
        "document": "",
        "source": "",
        "detail": "",
        "mode": inbound.tls.mode.name,
        "mode_document": inbound.origin.document,
        "mode_source": inbound.origin.source,
        "with_authority": served.with_authority,
        "caller": caller.principal,
        "principal": peer.principal,
        "steps": [],
        "config_version": version,
    }
    if inbound.tls.mode is InboundMode.STRICT and not peer.tls:
        answer["document"], answer["source"] = inbound.origin.document, inbound.origin.source
        return answer | {"detail": "plain text is cut off before a request is read: mutual TLS is STRICT"}
    if strange := _strange(peer, inbound.tls.trust_domains):
        return answer | {"detail": strange}
    if why := ambiguous("1.1", head):
        return answer | {"status": 400, "detail": why}
    answer["steps"] = steps_of(inbound, asked_of(inbound, head, peer), now)
    verdict = verdict_of(inbound, head, peer, now)
    if not isinstance(verdict, Reply):
        return answer | {"admitted": True}
    facts = verdict.facts
    return answer | {
        "status": verdict.status,
        "policy": facts.route,
        "document": facts.document,
        "source": facts.source,
        "detail": facts.detail,
    }


def _strange(peer: Peer, trust_domains: tuple[str, ...]) -> str:
    """Why the certificate of a peer is not taken; empty: it is, or there is none."""
    domains = {domain.replace("@", ".").lower() for domain in trust_domains}
    if not peer.tls or not domains or SpiffeId.parse(peer.principal).trust_domain in domains:
        return ""
    return f"the certificate is refused in the handshake: it is not of {', '.join(sorted(domains))}"


def verdict_of(inbound: Inbound, head: RequestHead, peer: Peer, now: float) -> Any:
    """Admitted, or a Reply."""
    arrival = arrive(inbound, head, peer, "", now)
    try:
        next(arrival)
        while True:
            arrival.send(Passed())
    except StopIteration as end:
        return end.value


def asked_of(inbound: Inbound, head: RequestHead, peer: Peer) -> Question:
    """The request as the filters of a port see it."""
    authority, asked = origin_form(head.authority, head.path)
    path = normalize(asked, inbound.paths)[1]
    plain = RequestHead(head.method, head.scheme, authority, path, head.headers)
    return question_of(plain, peer, "")


def steps_of(inbound: Inbound, question: Question, now: float) -> list[Explanation]:
    """Every policy that looks at the request, in order, and whether it matches.

    The question knows the token's claims then.
    """
    found: list[Explanation] = []
    for one in inbound.filters:
        match one:
            case Cors():
                found += _cors(inbound, question.head)
            case Rbac():
                shadow = "CUSTOM" if one.shadow_prefix == ASKING else "dry run"
                for title, rules in ((_title(one.rules), one.rules), (shadow, one.shadow)):
                    found += _policies(inbound, title, rules, question)
                one.judge(question)
            case JwtAuthn():
                refusal = one.judge(question, now)
                found.append(_step(inbound, "token", one.name, refusal is None))
            case ExtAuthz():
                found.append(_step(inbound, "CUSTOM", one.authority.cluster, one.wanted(question)))
    return found


def _cors(inbound: Inbound, head: RequestHead) -> list[Explanation]:
    """The rule whose CORS it is, if a page of another origin may be asking."""
    if inbound.routes is None or b"origin" not in head.index:
        return []
    route = inbound.routes.match(head, NO_CHANCE)
    if route is None or route.cors is None:
        return []
    matched = bool(cross(inbound.routes, head))
    return [
        {
            "filter": "CORS",
            "policy": route.name,
            "document": route.origin.document,
            "source": route.origin.source,
            "matched": matched,
        }
    ]


def _title(rules: Rules | None) -> str:
    return rules.verb.name if rules is not None else ""


def _policies(inbound: Inbound, title: str, rules: Rules | None, question: Question) -> list[Explanation]:
    if rules is None:
        return []
    alone = (Rules(rules.verb, (policy,)) for policy in rules.policies)
    return [_step(inbound, title, one.policies[0].name, one.judge(question)[0] is not None) for one in alone]


def _step(inbound: Inbound, title: str, policy: str, matched: bool) -> Explanation:
    origin = inbound.source_of(policy)
    return {
        "filter": title,
        "policy": policy,
        "document": origin.document,
        "source": origin.source,
        "matched": matched,
    }


def step_lines(steps: list[Explanation]) -> list[str]:
    """Each policy that was looked at, as rich markup."""
    from meshlib.cli.foreign import escape

    found = []
    for step in steps:
        mark = "[green]✓[/]" if step["matched"] else "[dim]✗[/]"
        origin = " ".join(part for part in (step["document"], step["source"]) if part)
        found.append(f"  {mark} {step['filter']} {escape(step['policy'])} [cyan]{escape(origin)}[/]")
    return found


def lines(answer: Explanation) -> list[str]:
    """The explanation, line by line, as rich markup."""
    from meshlib.cli.foreign import escape

    who = answer["principal"] or "nobody (plain text)"
    if answer["caller"] != answer["principal"]:
        who = f"{answer['caller']}, which comes in plain text and shows nothing of it"
    who = escape(who)
    decided = " ".join(part for part in (answer["mode_document"], answer["mode_source"]) if part)
    if answer["mode"] == InboundMode.DISABLE.name and not answer["with_authority"]:
        none = "PERMISSIVE, but there is no certificate authority"
        decided = f"{decided}: DISABLE, or {none}" if decided else none
    decided = decided or "the default"
    found = [f"  from [cyan]{who}[/]", f"  mutual TLS {answer['mode']} [dim]({escape(decided)})[/]"]
    found += step_lines(answer["steps"])
    if answer["admitted"]:
        return [*found, "  [green]let in[/]"]
    status = "cut off" if answer["status"] is None else f"answered {answer['status']}"
    because = " ".join(part for part in (answer["document"], answer["source"]) if part)
    if answer["detail"].endswith("[none]"):
        because = "no ALLOW policy takes the request"
    why = f"{escape(answer['detail'])} [cyan]{escape(because)}[/]" if because else escape(answer["detail"])
    return [*found, f"  [red]{status}[/]: {why}"]
