"""All that secures requests to a workload, in Istio's order: CUSTOM, tokens, AUDIT, DENY, ALLOW.

Whose line made a filter's policy is told beside it: a name in RBAC, `origins-<i>` in jwt_authn, leads to the
document, `file:line`, and the rule.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from meshlib.control.compile.authn import jwt_filter, refuse_tokens, rules_by_issuer
from meshlib.control.compile.authz import authorization_filters, policy_name
from meshlib.control.compile.clauses import Filterer
from meshlib.control.compile.extauthz import custom_filters
from meshlib.control.graph.graph import Graph
from meshlib.control.istio.document import AnyDocument


@dataclass(frozen=True, slots=True)
class Security:
    """The filters of one workload, for all its ports."""

    filters: tuple[tuple[str, Any], ...]
    """Name and configuration of each, in order."""
    clusters: tuple[str, ...]
    """The clusters of those who are asked."""


def security_filters(
    graph: Graph, namespace: str, labels: Mapping[str, str], *, grpc: bool = False, edge: bool = False
) -> Security:
    """The HTTP filters of a workload; `edge`: of a gateway.

    `grpc`: those that gRPC's own servers know, which refuse more.
    """
    who = Filterer.GRPC if grpc else Filterer.HTTP
    policies = graph.policies.authorization(namespace, labels)
    tokens = graph.policies.authentication(namespace, labels)
    custom, clusters = custom_filters(policies, graph, who)
    checking = refuse_tokens(tokens) if grpc else jwt_filter(tokens, graph.keys, edge=edge)
    filters = [*custom, *([checking] if checking else []), *authorization_filters(policies, graph.mesh, who)]
    return Security(tuple(filters), clusters)


def connection_filters(graph: Graph, namespace: str, labels: Mapping[str, str]) -> Security:
    """The network filters of a workload's ports that speak no HTTP."""
    policies = graph.policies.authorization(namespace, labels)
    custom, clusters = custom_filters(policies, graph, Filterer.TCP)
    filters = (*custom, *authorization_filters(policies, graph.mesh, Filterer.TCP))
    return Security(filters, clusters)


def sources_of(graph: Graph, namespace: str, labels: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Document, `file:line` and rule by the name that stands in the filters.

    The name of a policy in RBAC may have a word before `ns[` and after the last `]` of it.
    """
    found: dict[str, dict[str, str]] = {}
    for document in graph.policies.authorization(namespace, labels):
        if not document.spec.rules:
            found[policy_name(document, 0)] = _entry(document, ("spec",), "spec")
        for number in range(len(document.spec.rules)):
            place = ("spec", "rules", number)
            found[policy_name(document, number)] = _entry(document, place, f"spec.rules[{number}]")
    rules = rules_by_issuer(graph.policies.authentication(namespace, labels))
    for position, (document, number, _) in enumerate(rules):
        place = ("spec", "jwtRules", number)
        found[f"origins-{position}"] = _entry(document, place, f"spec.jwtRules[{number}]")
    return found


def _entry(document: AnyDocument, place: tuple[str | int, ...], rule: str) -> dict[str, str]:
    return {"document": document.title, "source": document.source(*place), "rule": rule}
