"""One plain value to one Document, or to the problems that refuse it.

Rules:
- A document with any error is refused as a whole; warnings let it pass.
- What has the wrong form does not hide what else is wrong: `partial` says how far the rest is judged.
- Every problem names the line and the field as it was written, what was found, what is allowed.
- Kinds of Kubernetes and of other projects are passed over; unknown kinds of Istio are errors.
"""

import difflib
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import re2
from pydantic import ValidationError

from meshlib.control.istio import partial
from meshlib.control.istio.document import AnyDocument, Document, FieldPath
from meshlib.control.istio.kinds import ISTIO_GROUPS, KINDS, REMOVED, UNUSED, Kind, passed_over
from meshlib.control.istio.problem import BROKEN, NOT_APPLIED, Problem, Severity, shorten
from meshlib.control.istio.validity.metadata import metadata as metadata_rules
from meshlib.control.istio.validity.report import Finding, Report
from meshlib.control.istio.wording import as_written, explain

Key = tuple[str, str, str]

_NAME = re2.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_NAMESPACE = re2.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_TOP = ("apiVersion", "kind", "metadata", "spec", "status")


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value stands: the file, and the line of every path in it."""

    file: str
    line: int = 1
    lines: Mapping[FieldPath, int] = field(default_factory=dict)
    default_namespace: str = "default"

    def at(self, path: FieldPath) -> int:
        """The line of a path, or of the nearest thing around it."""
        for end in range(len(path), 0, -1):
            if line := self.lines.get(path[:end]):
                return line
        return self.line


@dataclass(slots=True)
class Parsed:
    """What became of one value. `key` is known as soon as the identity can be read."""

    document: AnyDocument | None = None
    problems: list[Problem] = field(default_factory=list)
    key: Key | None = None
    skipped: bool = False


def parse(value: Any, origin: Origin) -> Parsed:
    """Read one object. Never raises for what the object holds."""
    return _Parser(value, origin).run()


def spell(path: FieldPath) -> str:
    """A path as it is written: `spec.http[0].match`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else (f".{part}" if text else part)
    return text


class _Parser:
    def __init__(self, value: Any, origin: Origin) -> None:
        self.value = value
        self.origin = origin
        self.result = Parsed()
        self.title = ""

    def run(self) -> Parsed:
        if not isinstance(self.value, dict):
            self.error(
                (), "a document is not a mapping", shorten(self.value), "apiVersion, kind, metadata, spec"
            )
            return self.result
        kind = self._kind()
        if kind is None:
            return self.result
        metadata = self._metadata(kind)
        spec = self._body(kind)
        if spec is not None:
            self._semantics(kind, spec, self._spec(kind))
        if metadata is not None and spec is not None and not self._broken:
            self._document(kind, metadata, spec)
        return self.result

    @property
    def _broken(self) -> bool:
        return any(problem.severity is Severity.ERROR for problem in self.result.problems)

    def add(self, severity: Severity, code: str, path: FieldPath, message: str, *rest: str) -> None:
        found, allowed = (*rest, "", "")[:2]
        self.result.problems.append(
            Problem(
                severity,
                code,
                message,
                self.title,
                self.origin.file,
                self.origin.at(path),
                spell(path),
                found,
                allowed,
            )
        )

    def error(self, path: FieldPath, message: str, found: str = "", allowed: str = "") -> None:
        self.add(Severity.ERROR, BROKEN, path, message, found, allowed)

    def _kind(self) -> Kind | None:
        version, kind = self.value.get("apiVersion"), self.value.get("kind")
        for name, given in (("apiVersion", version), ("kind", kind)):
            if not isinstance(given, str) or not given:
                self.error((name,), f"{name} is missing or no text", shorten(given), "text")
        if not isinstance(version, str) or not isinstance(kind, str) or self._broken:
            return None
        group = version.rpartition("/")[0]
        if group in REMOVED:
            self.error(("apiVersion",), "Istio has removed this API", shorten(version), REMOVED[group])
            return None
        known = KINDS.get(kind)
        if known is not None and group == known.group:
            if version not in known.api_versions:
                self.error(
                    ("apiVersion",),
                    f"{kind} has no such version",
                    shorten(version),
                    ", ".join(known.api_versions),
                )
            return known
        if passed_over(group, kind) or (group not in ISTIO_GROUPS and known is not None):
            # A Gateway of the Gateway API or a Service of Knative only shares the name.
            self.result.skipped = group not in ISTIO_GROUPS and not self._misspelt(group, kind)
            return None
        if kind in UNUSED:
            message = f"{kind} changes an Envoy; in-process clients do not act on it"
            self.add(Severity.INFO, NOT_APPLIED, ("kind",), message)
            return None
        self._unknown_kind(version, kind, known)
        return None

    def _misspelt(self, group: str, kind: str) -> bool:
        """An Istio group with a typo, such as networking.istio.oi, would be passed over in silence."""
        if kind in KINDS and kind not in (
            "Service",
            "Secret",
            "Endpoints",
            "Gateway",
            "EndpointSlice",
        ):
            self.error(("apiVersion",), f"unknown API group of {kind}", repr(group), KINDS[kind].group)
            return True
        return False

    def _unknown_kind(self, version: str, kind: str, known: Kind | None) -> None:
        if known is not None:
            path: FieldPath = ("apiVersion",)
            self.error(path, f"{kind} is of another group", shorten(version), ", ".join(known.api_versions))
            return
        group = version.rpartition("/")[0]
        names = [name for name, one in KINDS.items() if one.group == group]
        near = difflib.get_close_matches(kind, names, 1)
        hint = f"did you mean {near[0]}? " if near else ""
        self.error(("kind",), f"unknown kind of {group}", shorten(kind), hint + ", ".join(names))

    def _metadata(self, kind: Kind) -> Mapping[str, Any] | None:
        metadata = self.value.get("metadata")
        if metadata is None and kind.name == "MeshConfig":
            metadata = {"name": "istio"}
        if not isinstance(metadata, dict):
            self.error(
                ("metadata",), "metadata is missing or no mapping", shorten(metadata), "a mapping with a name"
            )
            return None
        name = metadata.get("name")
        namespace = metadata.get("namespace") or self.origin.default_namespace
        for field_name, given, pattern in (("name", name, _NAME), ("namespace", namespace, _NAMESPACE)):
            if not isinstance(given, str) or len(given) > 253 or pattern.fullmatch(given) is None:
                allowed = "lower case letters, digits, - and . (a DNS name)"
                self.error(("metadata", field_name), f"not a {field_name}", shorten(given), allowed)
        if self._broken and not (isinstance(name, str) and isinstance(namespace, str)):
            return None
        self.title = f"{kind.name} {namespace}/{name}"
        self.result.key = (kind.name, str(namespace), str(name))
        for group in ("labels", "annotations"):
            self._texts(metadata.get(group), ("metadata", group))
        report = Report(("metadata",))
        metadata_rules(kind.name, name, namespace, metadata, self._action(kind), report)
        for found in report:
            self.add(found.severity, found.code, found.path, found.message, found.found, found.allowed)
        return metadata

    def _action(self, kind: Kind) -> Any:
        spec = self._spec(kind)
        return spec.get("action") if isinstance(spec, dict) else None

    def _texts(self, given: Any, path: FieldPath) -> None:
        if given is None:
            return
        if not isinstance(given, dict):
            self.error(path, "not a mapping", shorten(given), "a mapping of text to text")
            return
        for key, item in given.items():
            if not isinstance(item, str):
                self.error((*path, key), "not text", shorten(item), "text; put it in quotes")

    def _body(self, kind: Kind) -> Any:
        if kind.root:
            return self._model(kind, self._spec(kind), ())
        for key in self.value:
            if key not in _TOP:
                self.error((key,), "unknown field beside spec", shorten(key), ", ".join(_TOP))
        return self._model(kind, self._spec(kind), ("spec",))

    def _spec(self, kind: Kind) -> Any:
        """The value that is read by the kind's model."""
        if kind.root:
            return {key: v for key, v in self.value.items() if key not in ("apiVersion", "kind", "metadata")}
        spec = self.value.get("spec")
        return {} if spec is None else spec

    def _model(self, kind: Kind, body: Any, prefix: FieldPath) -> Any:
        if not isinstance(body, dict):
            self.error(prefix, "not a mapping", shorten(body), "a mapping")
            return None
        try:
            return kind.model.model_validate(body)
        except ValidationError as invalid:
            places = []
            for error in invalid.errors(include_url=False):
                place = as_written(body, error["loc"])
                places.append(place)
                message, found, allowed = explain(error, kind.model)
                self.error((*prefix, *place), message, found, allowed)
            self._tell(kind, partial.judge(kind, body, places), body)
            return None

    def _semantics(self, kind: Kind, spec: Any, body: Any) -> None:
        report = Report()
        kind.check(spec, report)
        self._tell(kind, report, body)

    def _tell(self, kind: Kind, findings: Iterable[Finding], body: Any) -> None:
        prefix: FieldPath = () if kind.root else ("spec",)
        for found in findings:
            path = (*prefix, *as_written(body, found.path))
            self.add(found.severity, found.code, path, found.message, found.found, found.allowed)

    def _document(self, kind: Kind, metadata: Mapping[str, Any], spec: Any) -> None:
        if self.result.key is None:
            return
        _, namespace, name = self.result.key
        created = metadata.get("creationTimestamp")
        content = {key: item for key, item in self.value.items() if key != "status" or kind.root}
        self.result.document = Document(
            kind=kind.name,
            namespace=namespace,
            name=name,
            spec=spec,
            api_version=self.value["apiVersion"],
            labels=metadata.get("labels") or {},
            annotations=metadata.get("annotations") or {},
            created=created if isinstance(created, str) else "",
            file=self.origin.file,
            line=self.origin.line,
            lines=self.origin.lines,
            fingerprint=_fingerprint(content, namespace),
        )


def _fingerprint(content: Any, namespace: str) -> str:
    text = json.dumps([namespace, content], sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()


def items(
    value: Any, line: int, lines: Mapping[FieldPath, int]
) -> Iterator[tuple[Any, int, Mapping[FieldPath, int]]]:
    """The objects in a value: itself, or the items of a `kind: List`, each with its own lines."""
    listed = value.get("items") if isinstance(value, dict) else None
    if not isinstance(listed, list) or value.get("kind") != "List":
        yield value, line, lines
        return
    by_item: dict[int, dict[FieldPath, int]] = {}
    for path, at in lines.items():
        if len(path) >= 2 and path[0] == "items" and isinstance(path[1], int):
            by_item.setdefault(path[1], {})[path[2:]] = at
    for index, item in enumerate(listed):
        own = by_item.get(index, {})
        yield item, own.pop((), line), own
