"""Delegation: rules of one VirtualService that stand in another one.

Rules (Istio):

- One level: a delegate's rules don't delegate further; such rules are left out.
- A delegate that is missing, or that its root's namespace can't see, leaves only that rule out.
- A delegate's match must lie within one of the root's matches, else its rule is left out. What it
  does not say itself it takes from the root's: of the match and of the action.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from meshlib.control.istio.document import AnyDocument
from meshlib.control.istio.fields import StringMatch
from meshlib.control.istio.virtualservice import HTTPMatchRequest, HTTPRoute

_TEXTS = ("uri", "scheme", "method", "authority")
_MAPS = ("headers", "without_headers", "query_params")
_TAKEN = (
    "rewrite",
    "timeout",
    "retries",
    "fault",
    "mirror",
    "mirrors",
    "mirror_percent",
    "mirror_percentage",
    "cors_policy",
    "headers",
    "redirect",
    "direct_response",
)


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule of a host: an HTTPRoute with where it stands."""

    route: HTTPRoute
    document: AnyDocument
    """The document whose namespace short names belong to, and in which the rule stands."""
    number: int
    """Its place in the document's list."""

    @property
    def source(self) -> str:
        """`file:line`."""
        return self.document.source("spec", "http", self.number)


@dataclass(frozen=True, slots=True)
class Skipped:
    """A rule that is left out, and why."""

    source: str
    reason: str


Find = Callable[[str, str], AnyDocument | None]
"""A delegate by namespace and name, as the root's namespace sees it."""


def rules_of(document: AnyDocument, find: Find) -> tuple[tuple[Rule, ...], tuple[Skipped, ...]]:
    """All rules of a VirtualService in order, delegates' rules in place, and what was left out."""
    rules: list[Rule] = []
    skipped: list[Skipped] = []
    for number, route in enumerate(document.spec.http):
        if route.delegate is None:
            rules.append(Rule(route, document, number))
            continue
        namespace = route.delegate.namespace or document.namespace
        delegate = find(namespace, route.delegate.name)
        if delegate is None:
            name = f"{namespace}/{route.delegate.name}"
            reason = f"the delegate {name} is missing, refused, not visible or has hosts of its own"
            skipped.append(Skipped(document.source("spec", "http", number), reason))
            continue
        for found in _delegated(route, delegate):
            if isinstance(found, Rule):
                rules.append(found)
            else:
                skipped.append(found)
    return tuple(rules), tuple(skipped)


def _delegated(root: HTTPRoute, delegate: AnyDocument) -> Iterator[Rule | Skipped]:
    for number, route in enumerate(delegate.spec.http):
        source = delegate.source("spec", "http", number)
        if route.delegate is not None:
            yield Skipped(source, "a delegate does not delegate further")
            continue
        matches = _merged_matches(root.match, route.match)
        if matches is None:
            yield Skipped(source, "its match does not lie within the match that delegates to it")
            continue
        update: dict[str, Any] = {
            name: getattr(root, name)
            for name in _TAKEN
            if not getattr(route, name) and name not in route.model_fields_set
        }
        if route.mirrors or route.mirror:
            update = {key: value for key, value in update.items() if not key.startswith("mirror")}
        if route.route:
            update = {
                key: value for key, value in update.items() if key not in ("redirect", "direct_response")
            }
        update["match"] = matches
        update["name"] = "-".join(name for name in (root.name, route.name) if name)
        yield Rule(route.model_copy(update=update), delegate, number)


def _merged_matches(
    roots: tuple[HTTPMatchRequest, ...], own: tuple[HTTPMatchRequest, ...]
) -> tuple[HTTPMatchRequest, ...] | None:
    if not roots:
        return own
    if not own:
        return roots
    merged = []
    for match in own:
        within = [_merge(root, match) for root in roots if _lies_within(match, root)]
        if not within:
            return None
        merged.extend(within)
    return tuple(merged)


def _merge(root: HTTPMatchRequest, match: HTTPMatchRequest) -> HTTPMatchRequest:
    update: dict[str, Any] = {}
    for name in (*_TEXTS, "port", "source_namespace", "gateways", "stat_prefix"):
        if not getattr(match, name):
            update[name] = getattr(root, name)
    for name in (*_MAPS, "source_labels"):
        update[name] = {**getattr(root, name), **getattr(match, name)}
    if match.uri is None:
        update["ignore_uri_case"] = root.ignore_uri_case
    update["name"] = "-".join(name for name in (root.name, match.name) if name)
    return match.model_copy(update=update)


def _lies_within(match: HTTPMatchRequest, root: HTTPMatchRequest) -> bool:
    for name in _TEXTS:
        if not _text_within(getattr(match, name), getattr(root, name)):
            return False
    for name in _MAPS:
        if not _map_within(getattr(match, name), getattr(root, name)):
            return False
    if match.uri and root.uri and match.ignore_uri_case != root.ignore_uri_case:
        return False
    if root.source_namespace and match.source_namespace != root.source_namespace:
        return False
    if root.port and match.port not in (0, root.port):
        return False
    if root.gateways and match.gateways and not set(match.gateways) <= set(root.gateways):
        return False
    return all(match.source_labels.get(key, value) == value for key, value in root.source_labels.items())


def _map_within(own: Mapping[str, StringMatch], root: Mapping[str, StringMatch]) -> bool:
    return all(_text_within(own[name], wanted) for name, wanted in root.items() if name in own)


def _text_within(own: StringMatch | None, root: StringMatch | None) -> bool:
    if own is None or root is None or own == root:
        return True
    if root.exact is not None:
        return own.exact == root.exact
    if root.prefix is not None:
        text = own.exact if own.exact is not None else own.prefix
        return text is not None and text.startswith(root.prefix)
    # A regex can't be compared with another condition; anything lies within "is present".
    return root.regex is None
