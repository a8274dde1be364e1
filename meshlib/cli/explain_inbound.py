"""One inbound request decided aloud: which policy of a served port lets it in, or keeps it out.

The verdict is `core.inbound.arrive`'s; the steps are the same filters, asked one by one. An external
authority is named and not asked: what follows holds if it lets the request pass.
"""

from typing import Any

from meshlib.core import outsiders
from meshlib.core.actions import Reply
from meshlib.core.authn import JwtAuthn
from meshlib.core.authz.external import ExtAuthz, Passed
from meshlib.core.authz.path import normalize, origin_form
from meshlib.core.authz.question import Question
from meshlib.core.authz.rbac import Rbac, Rules
from meshlib.core.inbound import Inbound, arrive
from meshlib.core.mtls import InboundMode
from meshlib.core.request import Peer, RequestHead

Explanation = dict[str, Any]


def decide_inbound(inbound: Inbound, head: RequestHead, peer: Peer, now: float, version: str) -> Explanation:
    """What becomes of `head` from `peer` at a port with that policy.

    Keys: `admitted`, `status` (None: the application's), `policy`, `document`, `source`, `detail`, `mode`,
    `mode_document`, `mode_source`, `principal`, `config_version`, and `steps`, each a `filter`, `policy`,
    `document`, `source` and whether it `matched`.
    """
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
        "principal": peer.principal,
        "steps": [],
        "config_version": version,
    }
    if inbound.tls.mode is InboundMode.STRICT and not peer.tls:
        answer["document"], answer["source"] = inbound.origin.document, inbound.origin.source
        return answer | {"detail": "plain text is cut off before a request is read: mutual TLS is STRICT"}
    answer["steps"] = _steps(inbound, head, peer, now)
    verdict = _verdict(inbound, head, peer, now, version)
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


def _verdict(inbound: Inbound, head: RequestHead, peer: Peer, now: float, version: str) -> Any:
    arrival = arrive(inbound, head, peer, "", now, version)
    try:
        next(arrival)
        while True:
            arrival.send(Passed())
    except StopIteration as end:
        return end.value


def _steps(inbound: Inbound, head: RequestHead, peer: Peer, now: float) -> list[Explanation]:
    authority, asked = origin_form(head.authority, head.path)
    path = normalize(asked, inbound.paths)[1]
    plain = RequestHead(head.method, head.scheme, authority, path, head.headers)
    question = Question(outsiders.told(plain, peer, ""), peer, "")
    found: list[Explanation] = []
    for one in inbound.filters:
        match one:
            case Rbac():
                for title, rules in ((_title(one.rules), one.rules), ("dry run", one.shadow)):
                    found += _policies(inbound, title, rules, question)
                one.judge(question)
            case JwtAuthn():
                refusal = one.judge(question, now)
                found.append(_step(inbound, "token", one.name, refusal is None))
            case ExtAuthz():
                found.append(_step(inbound, "CUSTOM", one.authority.cluster, one.wanted(question)))
    return found


def _title(rules: Rules | None) -> str:
    return rules.verb.name if rules is not None else ""


def _policies(inbound: Inbound, title: str, rules: Rules | None, question: Question) -> list[Explanation]:
    if rules is None:
        return []
    return [_step(inbound, title, policy.name, policy.holds(question)) for policy in rules.policies]


def _step(inbound: Inbound, title: str, policy: str, matched: bool) -> Explanation:
    origin = inbound.source_of(policy)
    return {
        "filter": title,
        "policy": policy,
        "document": origin.document,
        "source": origin.source,
        "matched": matched,
    }


def lines(answer: Explanation) -> list[str]:
    """The explanation, line by line, as rich markup."""
    from rich.markup import escape

    who = escape(answer["principal"] or "nobody (plain text)")
    decided = " ".join(part for part in (answer["mode_document"], answer["mode_source"]) if part)
    decided = decided or "the default"
    if answer["mode"] == InboundMode.DISABLE.name:
        decided += ", or PERMISSIVE without a certificate authority, as in a folder"
    found = [f"  from [cyan]{who}[/]", f"  mutual TLS {answer['mode']} [dim]({escape(decided)})[/]"]
    for step in answer["steps"]:
        mark = "[green]✓[/]" if step["matched"] else "[dim]✗[/]"
        origin = " ".join(part for part in (step["document"], step["source"]) if part)
        found.append(f"  {mark} {step['filter']} {escape(step['policy'])} [cyan]{escape(origin)}[/]")
    if answer["admitted"]:
        return [*found, "  [green]let in[/]"]
    status = "cut off" if answer["status"] is None else f"answered {answer['status']}"
    because = " ".join(part for part in (answer["document"], answer["source"]) if part)
    if answer["detail"].endswith("[none]"):
        because = "no ALLOW policy takes the request"
    return [*found, f"  [red]{status}[/]: {escape(answer['detail'])} [cyan]{escape(because)}[/]"]
