"""Which AuthorizationPolicies and RequestAuthentications hold for a workload.

Rules (Istio):

- Those of the root namespace, then those of the workload's own; of each all whose selector matches. They
  add up: none hides another.
- Without a selector one holds for its whole namespace, in the root namespace for the whole mesh; one of
  the root namespace with a selector holds for the workloads of all namespaces that carry the labels.
- With targetRefs one is for gateways and holds for no workload.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from meshlib.control.graph.visibility import by_age
from meshlib.control.istio.document import AnyDocument
from meshlib.control.istio.requestauthentication import JWTRule

FETCH_SECONDS = 5.0
"""How long fetching keys may take where a rule does not say (Istio)."""


@dataclass(frozen=True, slots=True, order=True)
class KeySource:
    """From where an issuer's keys are fetched: a URI, or else the issuer, who is asked for it (OpenID)."""

    uri: str
    issuer: str

    @classmethod
    def of(cls, rule: JWTRule) -> "KeySource | None":
        """None: the keys stand in the rule."""
        if rule.jwks:
            return None
        return cls(rule.jwks_uri, "") if rule.jwks_uri else cls("", rule.issuer)

    def __str__(self) -> str:
        return self.uri or f"issuer {self.issuer}"


class Policies:
    """All of them, answered by workload."""

    def __init__(
        self, authorization: Iterable[AnyDocument], authentication: Iterable[AnyDocument], root: str
    ) -> None:
        """AuthorizationPolicies and RequestAuthentications; `root` is the root namespace."""
        self._root = root
        self._authorization = _by_namespace(authorization)
        self._authentication = _by_namespace(authentication)

    def authorization(self, namespace: str, labels: Mapping[str, str]) -> tuple[AnyDocument, ...]:
        """The AuthorizationPolicies of a workload, whatever their action."""
        return tuple(self._holding(self._authorization, namespace, labels))

    def authentication(self, namespace: str, labels: Mapping[str, str]) -> tuple[AnyDocument, ...]:
        """The RequestAuthentications of a workload."""
        return tuple(self._holding(self._authentication, namespace, labels))

    def key_sources(self) -> dict[KeySource, float]:
        """From where keys that do not stand in the documents come, and how many seconds that may take."""
        found: dict[KeySource, float] = {}
        for documents in self._authentication.values():
            for rule in (rule for document in documents for rule in document.spec.jwt_rules):
                source = KeySource.of(rule)
                if source is not None:
                    seconds = FETCH_SECONDS if rule.timeout is None else rule.timeout
                    found[source] = max(seconds, found.get(source, 0.0))
        return found

    def _holding(
        self, found: Mapping[str, list[AnyDocument]], namespace: str, labels: Mapping[str, str]
    ) -> Iterator[AnyDocument]:
        for place in dict.fromkeys((self._root, namespace)):
            for document in found.get(place, ()):
                selector = document.spec.selector
                wanted: Mapping[str, str] = selector.match_labels if selector is not None else {}
                if all(labels.get(key) == value for key, value in wanted.items()):
                    yield document


def _by_namespace(documents: Iterable[AnyDocument]) -> dict[str, list[AnyDocument]]:
    made: dict[str, list[AnyDocument]] = {}
    for document in by_age(list(documents)):
        if document.spec.target_ref is None and not document.spec.target_refs:
            made.setdefault(document.namespace, []).append(document)
    return made
