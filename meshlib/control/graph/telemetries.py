"""What is told of a workload's requests: Telemetry and MeshConfig, merged.

Rules (Istio):

- Three layers hold for a workload: the oldest Telemetry of the root namespace without a selector, that of its
  own namespace, and all of its namespace whose selector matches, oldest first. A later layer overrides.
  One of the root namespace with a selector holds for nobody elsewhere; one with targetRefs, for gateways.
- Access logs: providers that a layer names replace those of the layers before; one that names none means
  those before it, at first the mesh's defaultProviders. An entry's filter holds for the providers that it
  names itself. `disabled` ends a provider until a later entry has it again.
- MeshConfig.accessLogFile holds where no Telemetry and no default provider of an access log is in force.
- Tracing: each field of a later entry overrides; customTags as a whole. Where nobody says a percentage or
  tags, MeshConfig.defaultConfig.tracing does. enableTracing holds where no Telemetry and no default provider
  of tracing is in force. Providers are not asked: who gets spans is an application's SDK.
"""

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from pydantic import ValidationError

from meshlib.control.graph.visibility import by_age
from meshlib.control.istio.document import AnyDocument
from meshlib.control.istio.extensionprovider import FileAccessLog, file_access_log, find, is_access_log
from meshlib.control.istio.meshconfig import AccessLogEncoding, MeshConfig
from meshlib.control.istio.telemetry import (
    AccessLogging,
    CustomTag,
    LogSelector,
    TracingSelector,
    WorkloadMode,
)
from meshlib.xds.accesslog import JSON, STDOUT, TEXT

BUILT_IN_LOG = "envoy"
"""The provider whose format is MeshConfig's, if it has none of its own."""
ISTIO_PERCENTAGE = 1.0
"""Istio's default of random sampling."""
Labels = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class FileLog:
    """A file to which requests are written."""

    path: str
    text: str = ""
    """The format of a line, if `json` is empty."""
    json: str = ""
    """A JSON object whose texts are formats, keys sorted."""
    omit_empty: bool = False
    expression: str = ""
    """In CEL, which requests; empty: all."""
    source: str = ""
    """`file:line` that asks for it."""


class Tag(NamedTuple):
    """A tag of every span."""

    name: str
    source: str
    """`literal`, `environment` or `header`."""
    value: str
    """The value itself, or the name of the variable or header."""
    default: str = ""


@dataclass(frozen=True, slots=True)
class Spans:
    """How spans are made of requests."""

    enabled: bool = True
    said: bool = False
    """Whether anything speaks of spans at all."""
    percentage: float | None = None
    """Of the traces that begin here; None: nobody says."""
    tags: tuple[Tag, ...] = ()
    """By name."""


class Told(NamedTuple):
    """What is told of the requests of a workload on one side."""

    logs: tuple[FileLog, ...] = ()
    spans: Spans = Spans()


@dataclass(frozen=True, slots=True)
class _Asked:
    """What is in force for one provider."""

    source: str
    expression: str = ""
    disabled: bool = False


class Telemetries:
    """All of them, answered by workload."""

    def __init__(
        self,
        documents: Iterable[AnyDocument],
        mesh: MeshConfig,
        mesh_document: AnyDocument | None,
        root: str,
    ) -> None:
        """`mesh_document` is that of the mesh's settings, `root` the root namespace."""
        self._mesh, self._mesh_document, self._root = mesh, mesh_document, root
        self._wide: dict[str, AnyDocument] = {}
        self._selecting: dict[str, list[AnyDocument]] = {}
        for document in by_age(list(documents)):
            if document.spec.target_ref is not None or document.spec.target_refs:
                continue
            if _labels(document):
                self._selecting.setdefault(document.namespace, []).append(document)
            else:
                self._wide.setdefault(document.namespace, document)
        self._logs: dict[tuple[tuple[AnyDocument, ...], WorkloadMode], tuple[FileLog, ...]] = {}
        self._spans: dict[tuple[tuple[AnyDocument, ...], WorkloadMode], Spans] = {}

    def holding(self, namespace: str, labels: Labels) -> tuple[AnyDocument, ...]:
        """The documents that hold for a workload; a later one overrides."""
        wide = (self._wide.get(place) for place in dict.fromkeys((self._root, namespace)))
        selecting = (
            document
            for document in self._selecting.get(namespace, ())
            if all(labels.get(key) == value for key, value in _labels(document).items())
        )
        return (*filter(None, wide), *selecting)

    def logs(self, namespace: str, labels: Labels, mode: WorkloadMode) -> tuple[FileLog, ...]:
        """The access logs of a workload's requests, as CLIENT or SERVER, by the providers' names."""
        holding = self.holding(namespace, labels)
        found = self._logs.get((holding, mode))
        if found is None:
            found = self._logs[holding, mode] = tuple(self._made_logs(holding, mode))
        return found

    def told(self, namespace: str, labels: Labels, mode: WorkloadMode) -> Told:
        """All that is told of a workload's requests, as CLIENT or SERVER."""
        return Told(self.logs(namespace, labels, mode), self.spans(namespace, labels, mode))

    def spans(self, namespace: str, labels: Labels, mode: WorkloadMode) -> Spans:
        """How spans are made of a workload's requests, as CLIENT or SERVER."""
        holding = self.holding(namespace, labels)
        found = self._spans.get((holding, mode))
        if found is None:
            found = self._spans[holding, mode] = self._made_spans(holding, mode)
        return found

    def _made_spans(self, holding: Iterable[AnyDocument], mode: WorkloadMode) -> Spans:
        entries = [entry for document in holding for entry in document.spec.tracing]
        percentage, tags = default_tracing(self._mesh)
        default = self._mesh.default_providers is not None and self._mesh.default_providers.tracing
        if not entries and not default:
            said = percentage is not None or bool(tags) or not self._mesh.enable_tracing
            return Spans(self._mesh.enable_tracing, said, percentage, tags)
        found = Spans(True, True, percentage, tags)
        for entry in entries:
            if not _is_for(entry.match, mode):
                continue
            if entry.disable_span_reporting is not None:
                found = replace(found, enabled=not entry.disable_span_reporting)
            if entry.random_sampling_percentage is not None:
                found = replace(found, percentage=entry.random_sampling_percentage)
            if entry.custom_tags:
                found = replace(found, tags=_tags(entry.custom_tags))
        return found

    def _made_logs(self, holding: Iterable[AnyDocument], mode: WorkloadMode) -> Iterator[FileLog]:
        layers = [_entries(document) for document in holding if document.spec.access_logging]
        defaults = self._mesh.default_providers.access_logging if self._mesh.default_providers else ()
        asked = _merged(layers, defaults, self._in_mesh("defaultProviders", "accessLogging"), mode)
        known = {name: find(self._mesh.extension_providers, name) for name in sorted(asked)}
        if not any(provider is not None and is_access_log(provider) for provider in known.values()):
            yield from self._of_mesh()
            return
        for name, provider in known.items():
            made = None if provider is None or asked[name].disabled else self._file(name, provider)
            if made is not None:
                yield replace(made, expression=asked[name].expression, source=asked[name].source)

    def _of_mesh(self) -> Iterator[FileLog]:
        if self._mesh.access_log_file:
            source = self._in_mesh("accessLogFile")
            yield replace(self._in_mesh_format(self._mesh.access_log_file), source=source)

    def _in_mesh(self, *path: str) -> str:
        """`file:line` of a field of the mesh's settings."""
        return self._mesh_document.source(*path) if self._mesh_document is not None else ""

    def _in_mesh_format(self, path: str) -> FileLog:
        form = self._mesh.access_log_format
        if self._mesh.access_log_encoding is AccessLogEncoding.TEXT:
            return FileLog(path, text=_line(form))
        return FileLog(path, json=_as_json(form_of_json(form) or JSON))

    def _file(self, name: str, provider: Mapping[str, Any]) -> FileLog | None:
        """None: the provider is no file, or not valid."""
        try:
            said = file_access_log(provider)
        except ValidationError:
            return None
        if said is None:
            return None
        path, form = said.path or STDOUT, said.log_format
        if form is None and name.lower() == BUILT_IN_LOG and not said.omit_empty_values:
            return self._in_mesh_format(path)
        if form is not None and form.labels is not None:
            return FileLog(path, json=_as_json(form.labels or JSON), omit_empty=said.omit_empty_values)
        return FileLog(path, text=_line(text_of(said)), omit_empty=said.omit_empty_values)


def text_of(said: FileAccessLog) -> str:
    """The format of text that a provider has itself; empty: Istio's."""
    return (said.log_format.text or "") if said.log_format is not None else ""


def form_of_json(form: str) -> Mapping[str, Any] | None:
    """MeshConfig.accessLogFormat as JSON; None: it is no object, and Istio's default holds."""
    try:
        found = json.loads(form)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _line(form: str) -> str:
    """Istio ends every format with a line break."""
    return form + "\n" * (not form.endswith("\n")) if form else TEXT


def _as_json(form: Mapping[str, Any]) -> str:
    return json.dumps(form, sort_keys=True, ensure_ascii=False)


def _labels(document: AnyDocument) -> Labels:
    selector = document.spec.selector
    found: Labels = selector.match_labels if selector is not None else {}
    return found


def _entries(document: AnyDocument) -> list[tuple[AccessLogging, str]]:
    return [
        (entry, document.source("spec", "accessLogging", number))
        for number, entry in enumerate(document.spec.access_logging)
    ]


def default_tracing(mesh: MeshConfig) -> tuple[float | None, tuple[Tag, ...]]:
    """Percentage and tags of MeshConfig.defaultConfig.tracing; what is no such thing counts as unset."""
    said = mesh.default_config.get("tracing")
    if not isinstance(said, Mapping):
        return None, ()
    sampling, tags = said.get("sampling"), said.get("customTags", said.get("custom_tags"))
    percentage = None
    if isinstance(sampling, int | float) and not isinstance(sampling, bool) and sampling > 0:
        # As in Istio; 0 is as good as nothing.
        percentage = float(sampling) if sampling <= 100 else ISTIO_PERCENTAGE
    found: dict[str, CustomTag] = {}
    for name, tag in tags.items() if isinstance(tags, Mapping) else ():
        with contextlib.suppress(ValidationError):
            found[str(name)] = CustomTag.model_validate(tag)
    return percentage, _tags(found)


def _tags(said: Mapping[str, CustomTag]) -> tuple[Tag, ...]:
    """What is none of the three sources, and what Envoy would refuse, is left out."""
    found = []
    for name, tag in sorted(said.items()):
        if tag.literal is not None:
            made = Tag(name, "literal", tag.literal.value)
        elif tag.environment is not None:
            made = Tag(name, "environment", tag.environment.name, tag.environment.default_value)
        elif tag.header is not None:
            made = Tag(name, "header", tag.header.name, tag.header.default_value)
        else:
            continue
        if made.name and made.value:
            found.append(made)
    return tuple(found)


def _is_for(match: LogSelector | TracingSelector | None, mode: WorkloadMode) -> bool:
    return match is None or match.mode in (WorkloadMode.CLIENT_AND_SERVER, mode)


def _merged(
    layers: Iterable[list[tuple[AccessLogging, str]]],
    defaults: tuple[str, ...],
    default_source: str,
    mode: WorkloadMode,
) -> dict[str, _Asked]:
    """By the provider's name."""
    layers = list(layers)
    if not layers:
        return {name: _Asked(default_source) for name in defaults}
    in_scope = set(defaults)
    filters: dict[str, str] = {}
    for layer in layers:
        named: set[str] = set()
        for entry, _ in layer:
            if _is_for(entry.match, mode):
                own = [one.name for one in entry.providers]
                named.update(own)
                filters.update(dict.fromkeys(own, entry.filter.expression if entry.filter else ""))
        in_scope = named or in_scope
    found: dict[str, _Asked] = {}
    before = defaults
    for entry, source in (one for layer in layers for one in layer):
        before = tuple(one.name for one in entry.providers) or before
        if _is_for(entry.match, mode):
            for name in in_scope.intersection(before):
                found[name] = _Asked(source, filters.get(name, ""), bool(entry.disabled))
    return found
