"""Names, labels and annotations of documents, as Kubernetes and Istio's webhook check them."""

from collections.abc import Mapping
from typing import Any

from meshlib.control.istio.validity import hosts
from meshlib.control.istio.validity.report import Report

MAX_ANNOTATIONS = 256 * 1024
"""Bytes of all annotations together."""
DRY_RUN = "istio.io/dry-run"
_ONE_LABEL = ("Service", "Endpoints", "Gateway")
_TRUTHS = ("1", "t", "T", "TRUE", "true", "True", "0", "f", "F", "FALSE", "false", "False")
_REJECTED = (
    "internal.istio.io/webhook-always-reject",
    "internal.istio.io/parents",
    "internal.istio.io/parent-namespace",
)


def metadata(kind: str, name: Any, namespace: Any, given: Mapping[str, Any], action: Any, to: Report) -> None:
    """What a document says of itself; `action` is that of its spec. What is no text is not looked at here."""
    if isinstance(name, str) and kind in _ONE_LABEL and len(name.split(".")) > 1:
        to.at("name").error(f"not the name of a {kind}", repr(name), hosts.DNS_LABEL)
    elif isinstance(name, str) and kind in _ONE_LABEL and len(name) > 63:
        to.at("name").error(f"too long a name of a {kind}", len(name), "at most 63 characters")
    if isinstance(namespace, str) and len(namespace) > 63:
        to.at("namespace").error("too long a namespace", len(namespace), "at most 63 characters")
    labels, notes = (_texts(given.get(group)) for group in ("labels", "annotations"))
    hosts.labels(labels, to.at("labels"))
    for key in notes:
        if not hosts.label_key(key.lower()):
            to.at("annotations", key).error("not the name of an annotation", repr(key), hosts.LABEL_KEY)
        if key in _REJECTED:
            to.at("annotations", key).error("for Istio's own use", repr(key), "leave it out")
    size = sum(len((key + value).encode("utf-8", "replace")) for key, value in notes.items())
    if size > MAX_ANNOTATIONS:
        to.at("annotations").error("too many annotations", f"{size} bytes", f"at most {MAX_ANNOTATIONS}")
    _dry_run(kind, notes, action, to.at("annotations", DRY_RUN))


def _dry_run(kind: str, notes: Mapping[str, str], action: Any, to: Report) -> None:
    if DRY_RUN not in notes or kind in ("Service", "Endpoints", "EndpointSlice"):
        return
    if kind != "AuthorizationPolicy":
        to.error("no dry run of this kind", repr(DRY_RUN), "an AuthorizationPolicy")
    elif action in ("AUDIT", "CUSTOM"):
        to.error("no dry run of this action", repr(action), "ALLOW or DENY")
    elif notes[DRY_RUN] not in _TRUTHS:
        to.error("neither true nor false", repr(notes[DRY_RUN]), "'true', 'false'")


def _texts(given: Any) -> Mapping[str, str]:
    if not isinstance(given, dict):
        return {}
    return {key: value for key, value in given.items() if isinstance(key, str) and isinstance(value, str)}
