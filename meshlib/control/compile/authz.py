"""AuthorizationPolicy to Envoy's RBAC: the policies of each rule, and the filters AUDIT, DENY, ALLOW.

Rules (Istio):

- In a rule: one of `from`, one of `to`, all of `when`. In a source or operation: all fields. Of values: any;
  of notValues: none.
- A policy without rules never matches; a rule without fields always does.
- Some fields mean nothing to who filters: HTTP's to a TCP filter, some of Envoy's to gRPC. An ALLOW rule
  with one of them is dropped, any other rule loses the field: less is allowed, more is denied.
- gRPC's servers check no tokens, and let no request with one pass (see `authn`): there no request has claims.
- A policy that is only tried (dry run) is evaluated beside the others and decides nothing.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from meshlib.control.compile.clauses import PERMISSION, PRINCIPAL, Clause, Filterer, joined
from meshlib.control.compile.operations import operations
from meshlib.control.compile.principals import sources
from meshlib.control.istio.authorizationpolicy import Action, Rule
from meshlib.control.istio.document import AnyDocument
from meshlib.control.istio.meshconfig import MeshConfig
from meshlib.xds import pb

RBAC = "envoy.filters.http.rbac"
TCP_RBAC = "envoy.filters.network.rbac"
TCP_PREFIX = "tcp."
DRY_RUN = "istio.io/dry-run"
_TRUE = frozenset(("1", "t", "T", "TRUE", "true", "True"))
_RULES = "envoy.config.rbac.v3.RBAC"
_TCP = "envoy.extensions.filters.network.rbac.v3.RBAC"
ENVOY_ACTIONS = {Action.AUDIT: "LOG", Action.DENY: "DENY", Action.ALLOW: "ALLOW"}
"""Istio's actions and Envoy's, in the order of their filters."""
DECIDING = tuple(f"{RBAC}.{action}" for action in ("audit", "deny", "allow"))
"""The names of HTTP filters that have their rules from routes."""
_TRIED_PREFIX = "istio_dry_run_"
_TRIED = {Action.DENY: f"{_TRIED_PREFIX}deny_", Action.ALLOW: f"{_TRIED_PREFIX}allow_"}
"""What can be tried, and the prefix of what came of it."""


def policy_name(document: AnyDocument, number: int) -> str:
    """Istio's name of a rule: `ns[<namespace>]-policy[<name>]-rule[<number>]`."""
    return f"ns[{document.namespace}]-policy[{document.name}]-rule[{number}]"


def is_dry_run(document: AnyDocument) -> bool:
    """Whether a policy is only tried."""
    return document.annotations.get(DRY_RUN) in _TRUE


def never() -> Any:
    """A Policy that matches nothing."""
    made = pb.message("envoy.config.rbac.v3.Policy")()
    made.permissions.append(PERMISSION.no(PERMISSION.always()))
    made.principals.append(PRINCIPAL.no(PRINCIPAL.always()))
    return made


def compile_policies(
    documents: Iterable[AnyDocument], mesh: MeshConfig, who: Filterer, *, allowing: bool, prefix: str = ""
) -> dict[str, Any]:
    """The Policies of all rules of these documents by name; `allowing`: they are of the action ALLOW."""
    made: dict[str, Any] = {}
    for document in documents:
        if not document.spec.rules:
            made[prefix + policy_name(document, 0)] = never()
        for number, rule in enumerate(document.spec.rules):
            name = prefix + policy_name(document, number)
            unknown = sorted({c.field for c in _clauses(rule, document, mesh) if not c.known_to(who)})
            if unknown and who is Filterer.GRPC:
                name += f"-gRPC-cannot-apply[{','.join(unknown)}]"
            if not (unknown and allowing):
                made[name] = _policy(rule, document, mesh, who)
            elif who is Filterer.GRPC:
                made[name] = never()
    return made


def _policy(rule: Rule, document: AnyDocument, mesh: MeshConfig, who: Filterer) -> Any:
    made = pb.message("envoy.config.rbac.v3.Policy")()
    for clauses in operations(rule, who):
        made.permissions.append(joined(clauses, PERMISSION, who))
    for clauses in sources(rule, document, mesh):
        made.principals.append(joined(clauses, PRINCIPAL, who))
    return made


def _clauses(rule: Rule, document: AnyDocument, mesh: MeshConfig) -> Iterator[Clause]:
    for clauses in (*operations(rule, Filterer.HTTP), *sources(rule, document, mesh)):
        yield from clauses


def rules(envoy_action: str, policies: dict[str, Any]) -> Any:
    """An envoy.config.rbac.v3.RBAC."""
    made = pb.message(_RULES)(action=envoy_action)
    for name, policy in policies.items():
        made.policies[name].CopyFrom(policy)
    return made


def authorization_filters(
    documents: Iterable[AnyDocument], mesh: MeshConfig, who: Filterer
) -> list[tuple[str, Any]]:
    """Name and configuration of the filters for the actions AUDIT, DENY and ALLOW, as far as there are such.

    gRPC's servers are given no AUDIT and no dry run: they would do nothing.
    """
    made = []
    listed = tuple(documents)
    for action, envoy_action in ENVOY_ACTIONS.items():
        if who is Filterer.GRPC and action is Action.AUDIT:
            continue
        found = [document for document in listed if document.spec.action is action]
        tried = [document for document in found if is_dry_run(document) and who is not Filterer.GRPC]
        enforced = [document for document in found if not is_dry_run(document)]
        if not tried and not enforced:
            continue
        config = pb.message(_TCP)(stat_prefix=TCP_PREFIX) if who is Filterer.TCP else pb.RBAC()
        allowing = action is Action.ALLOW
        if enforced:
            config.rules.CopyFrom(
                rules(envoy_action, compile_policies(enforced, mesh, who, allowing=allowing))
            )
        if tried:
            shadow = compile_policies(tried, mesh, who, allowing=allowing)
            config.shadow_rules.CopyFrom(rules(envoy_action, shadow))
            config.shadow_rules_stat_prefix = _TRIED[action]
        made.append((filter_name(action, who), config))
    return made


def deciding(config: Any) -> str:
    """Which of DECIDING has this RBAC; empty: none has, for it decides nothing."""
    if not config.HasField("rules") and not config.shadow_rules_stat_prefix.startswith(_TRIED_PREFIX):
        return ""
    said = config.rules if config.HasField("rules") else config.shadow_rules
    names = pb.message(_RULES).DESCRIPTOR.fields_by_name["action"].enum_type.values_by_number
    return DECIDING[tuple(ENVOY_ACTIONS.values()).index(names[said.action].name)]


def filter_name(action: Action, who: Filterer) -> str:
    """The name of an action's filter; gRPC wants each name once in a chain."""
    if who is Filterer.TCP:
        return TCP_RBAC
    return f"{RBAC}.{action.value.lower()}" if who is Filterer.GRPC else RBAC
