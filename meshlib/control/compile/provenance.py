"""Which line of which document made a resource, written into its metadata.

`istio` is what istioctl shows; `meshlib` names document, `file:line` and rule.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from meshlib.control.graph.delegates import Rule, Skipped
from meshlib.control.istio.document import AnyDocument
from meshlib.xds.names import ISTIO_METADATA, MESHLIB_METADATA

_PATHS = {"VirtualService": "virtual-service", "DestinationRule": "destination-rule"}


def config_path(document: AnyDocument) -> str:
    """Istio's path of a document's configuration."""
    version = document.api_version.rpartition("/")[2] or "v1"
    kind = _PATHS.get(document.kind, document.kind.lower())
    return f"/apis/networking.istio.io/{version}/namespaces/{document.namespace}/{kind}/{document.name}"


def mark_rule(message: Any, rule: Rule, match: int | None = None) -> None:
    """On a Route: the rule that it comes from; `match` is the place of the match within it."""
    place: tuple[str | int, ...] = ("spec", "http", rule.number)
    text = f"spec.http[{rule.number}]"
    if match is not None and len(rule.route.match) > 1:
        text += f".match[{match}]"
        if match < _written_matches(rule):
            place = (*place, "match", match)
    filters = message.metadata.filter_metadata
    filters[ISTIO_METADATA].update({"config": config_path(rule.document)})
    filters[MESHLIB_METADATA].update(
        {"document": rule.document.title, "source": rule.document.source(*place), "rule": text}
    )


def _written_matches(rule: Rule) -> int:
    return len(rule.document.spec.http[rule.number].match)


def mark_document(message: Any, document: AnyDocument, rule: str, *path: str | int) -> None:
    """On any message: the document that it comes from, and the field at `path`."""
    message.metadata.filter_metadata[MESHLIB_METADATA].update(
        {"document": document.title, "source": document.source(*path), "rule": rule}
    )


def mark_policies(message: Any, sources: Mapping[str, Mapping[str, str]]) -> None:
    """On a Listener: document, source and rule of each policy that its filters have, by name."""
    if sources:
        listed = {name: dict(source) for name, source in sources.items()}
        message.metadata.filter_metadata[MESHLIB_METADATA].update({"policies": listed})


def mark_skipped(message: Any, skipped: Iterable[Skipped]) -> None:
    """On a VirtualHost: rules of its document that do not hold for this client, and why."""
    listed = [{"source": one.source, "reason": one.reason} for one in dict.fromkeys(skipped)]
    if listed:
        message.metadata.filter_metadata[MESHLIB_METADATA].update({"skipped": listed})
