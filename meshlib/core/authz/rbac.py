"""RBAC: which policy takes a request, and whether that lets it in.

Rules (Envoy):

- Policies are tried in the order of their names; the first that matches is the one that is told.
- ALLOW lets in what a policy matches, and nothing if there is none. DENY keeps out what a policy matches.
  LOG keeps out nothing.
- Envoy judges a path as it is written, but the application is given it decoded, and its router may forgive
  slashes. Here each reading is judged: DENY keeps out, and LOG tells of, what matches in one of them; ALLOW
  lets in what matches in all.
- Shadow rules decide nothing. What they would have done is left in the metadata of the request, for filters
  that follow and for telemetry.
- What a policy needs of the caller's certificate is asked once a certificate, not once a request.
"""

from dataclasses import field
from enum import Enum

from meshlib.core.authz.conditions import Condition, always
from meshlib.core.authz.question import Question
from meshlib.values import dataclass

SPACE = "envoy.filters.http.rbac"
"""Where in the metadata the results of shadow rules are."""
NO_POLICY = "none"
_MOST_KEPT = 100_000
"""Policies that are kept by name of a certificate: of twenty rules, those of 5000 callers."""


class Verb(Enum):
    """What a match means."""

    ALLOW = "allow"
    DENY = "deny"
    LOG = "log"


@dataclass(frozen=True, slots=True)
class Policy:
    """One rule of one document."""

    name: str
    """`ns[<namespace>]-policy[<name>]-rule[<number>]`."""
    holds: Condition = field(compare=False, repr=False)
    named: Condition = field(default=always, compare=False, repr=False)
    """What of `holds` the names in the peer's certificate decide alone: where it is false, so is `holds`."""


@dataclass(frozen=True, slots=True)
class Rules:
    """Policies with one meaning; they are in the order of their names."""

    verb: Verb
    policies: tuple[Policy, ...]
    _by_names: dict[tuple[bytes, ...], tuple[Policy, ...]] = field(
        default_factory=dict, init=False, compare=False, repr=False
    )
    """Of a certificate's names, the policies that may match."""

    def match(self, question: Question) -> Policy | None:
        """The first policy that matches."""
        policies = self._by_names.get(question.names)
        if policies is None:
            if len(self._by_names) * max(1, len(self.policies)) >= _MOST_KEPT:
                self._by_names.clear()
            policies = tuple(policy for policy in self.policies if policy.named(question))
            self._by_names[question.names] = policies
        for policy in policies:
            if policy.holds(question):
                return policy
        return None

    def judge(self, question: Question) -> tuple[Policy | None, bool]:
        """Which policy matches, in every reading of the path that counts, and whether that lets it in."""
        matched = self.match(question)
        if self.verb is Verb.ALLOW:
            if matched is not None and not all(map(self.match, question.readings())):
                matched = None
            return matched, matched is not None
        for reading in question.readings() if matched is None else ():
            matched = matched or self.match(reading)
        return matched, self.verb is Verb.LOG or matched is None


@dataclass(frozen=True, slots=True)
class Denied:
    """A request that is kept out, and by which policy; None: no policy lets it in."""

    policy: Policy | None

    @property
    def detail(self) -> str:
        """Envoy's words for it."""
        name = self.policy.name if self.policy else NO_POLICY
        return f"rbac_access_denied_matched_policy[{'_'.join(name.split())}]"


@dataclass(frozen=True, slots=True)
class Rbac:
    """One filter."""

    name: str = SPACE
    rules: Rules | None = None
    """None: everything passes."""
    shadow: Rules | None = None
    shadow_prefix: str = ""
    """Before the keys of the shadow's results."""

    def judge(self, question: Question) -> Denied | None:
        """None: the request passes."""
        if self.shadow is not None:
            self._leave(self.shadow, question)
        rules = self.rules
        if rules is None:
            return None
        matched, lets_in = rules.judge(question)
        return None if lets_in else Denied(matched)

    def _leave(self, shadow: Rules, question: Question) -> None:
        matched, lets_in = shadow.judge(question)
        left = question.metadata.setdefault(SPACE, {})
        if matched is not None:
            left[f"{self.shadow_prefix}shadow_effective_policy_id"] = matched.name
        result = "allowed" if lets_in else "denied"
        left[f"{self.shadow_prefix}shadow_engine_result"] = result
