"""What Telemetry and MeshConfig ask to be told that nobody tells, and why: no provider, format or filter."""

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from meshlib.control.analysis.notapplied import LATER
from meshlib.control.analysis.world import World, problem
from meshlib.control.compile.accesslog import wrong_filter
from meshlib.control.graph.telemetries import form_of_json
from meshlib.control.istio.document import AnyDocument, FieldPath
from meshlib.control.istio.extensionprovider import FILE, file_access_log, find
from meshlib.control.istio.meshconfig import AccessLogEncoding, MeshConfig
from meshlib.control.istio.problem import NOT_APPLIED, Problem, Severity
from meshlib.control.istio.telemetry import AccessLogging, Tracing
from meshlib.xds import accesslog

WITHOUT_PROVIDER = "IST0157"
NOT_WRITTEN = "nothing is written"
_NOT_OF_SPANS = ("use_request_id_for_trace_sampling", "enable_istio_tags", "disable_context_propagation")
_STANDARD = (accesslog.STDOUT, accesslog.STDERR)


def analyze(world: World) -> Iterator[Problem]:
    """Every such place."""
    meshes = list(world.of_kind("MeshConfig"))
    mesh = meshes[0].spec if meshes else MeshConfig()
    if meshes:
        yield from _mesh(meshes[0], mesh)
    for document in world.of_kind("Telemetry"):
        if document.spec.target_ref is not None or document.spec.target_refs:
            message = "it is for gateways and waypoints, which are not served"
            field = "target_ref" if document.spec.target_ref is not None else "target_refs"
            yield _tell(Severity.INFO, document, ("spec", field), message)
            continue
        inherits = _inherits(document, mesh, world)
        for index, entry in enumerate(document.spec.access_logging):
            at: FieldPath = ("spec", "access_logging", index)
            yield from _entry(document, entry, at, mesh, inherits=inherits)
        for index, tracing in enumerate(document.spec.tracing):
            yield from _tracing(document, tracing, ("spec", "tracing", index), mesh)


def _tracing(document: AnyDocument, tracing: Tracing, at: FieldPath, mesh: MeshConfig) -> Iterator[Problem]:
    for position, named in enumerate(tracing.providers):
        path = (*at, "providers", position, "name")
        if find(mesh.extension_providers, named.name) is None:
            message = "no extensionProvider has this name; an application's spans go to its SDK all the same"
            yield _tell(Severity.WARNING, document, path, message, repr(named.name))
    for name, tag in tracing.custom_tags.items():
        if tag.formatter is not None:
            message = "a tag from a format is not supported: spans do not have it"
            yield _tell(Severity.WARNING, document, (*at, "custom_tags", name, "formatter"), message)
        if tag.environment is not None:
            message = (
                "an application puts this variable into spans only if its MESHLIB_TAG_VARIABLES names it"
            )
            path = (*at, "custom_tags", name, "environment")
            yield _tell(Severity.INFO, document, path, message, repr(tag.environment.name))
    for field in _NOT_OF_SPANS:
        if getattr(tracing, field) is not None:
            yield _tell(Severity.INFO, document, (*at, field), LATER)


def _tell(
    severity: Severity, document: AnyDocument, path: FieldPath, message: str, found: str = ""
) -> Problem:
    return problem(severity, NOT_APPLIED, document, path, message, found)


def _inherits(document: AnyDocument, mesh: MeshConfig, world: World) -> bool:
    """Whether there may be providers of an access log before those of the document."""
    if mesh.default_providers is not None and mesh.default_providers.access_logging:
        return True
    others = (other for other in world.of_kind("Telemetry") if other is not document)
    return any(
        entry.providers
        for other in others
        if other.namespace in (mesh.root_namespace, document.namespace)
        for entry in other.spec.access_logging
    )


def _entry(
    document: AnyDocument, entry: AccessLogging, at: FieldPath, mesh: MeshConfig, *, inherits: bool
) -> Iterator[Problem]:
    for position, named in enumerate(entry.providers):
        path = (*at, "providers", position, "name")
        provider = find(mesh.extension_providers, named.name)
        if provider is None:
            message = f"no extensionProvider has this name: {NOT_WRITTEN}"
            yield _tell(Severity.WARNING, document, path, message, repr(named.name))
        elif not _is_file(provider):
            message = f"only envoyFileAccessLog is written; {NOT_WRITTEN} to this provider"
            yield _tell(Severity.WARNING, document, path, message, repr(named.name))
    if not entry.providers and not inherits:
        message = "without providers, here and in MeshConfig.defaultProviders, it is ignored, as in Istio"
        yield problem(Severity.WARNING, WITHOUT_PROVIDER, document, at, message)
    if entry.filter is None:
        return
    path = (*at, "filter", "expression")
    if not entry.providers:
        message = "a filter holds for providers that its own entry names; without any it is ignored"
        yield _tell(Severity.WARNING, document, path, message)
    if reason := wrong_filter(entry.filter.expression):
        message = f"this filter is not supported, and {NOT_WRITTEN}: {reason}"
        yield _tell(Severity.WARNING, document, path, message, repr(entry.filter.expression))


def _is_file(provider: Mapping[str, Any]) -> bool:
    try:
        return file_access_log(provider) is not None
    except ValidationError:
        return False


def _mesh(document: AnyDocument, mesh: MeshConfig) -> Iterator[Problem]:
    if mesh.access_log_file:
        yield from _path(document, ("access_log_file",), mesh.access_log_file)
    if mesh.access_log_format:
        form: str | Mapping[str, Any] | None = mesh.access_log_format
        if mesh.access_log_encoding is AccessLogEncoding.JSON:
            form = form_of_json(mesh.access_log_format)
        if form is None:
            message = "it is no JSON object; Istio's default format is used, as in Istio"
            yield _tell(Severity.WARNING, document, ("access_log_format",), message)
        else:
            yield from _format(document, ("access_log_format",), form)
    for index, provider in enumerate(mesh.extension_providers):
        if not _is_file(provider):
            continue
        said, at = file_access_log(provider), ("extension_providers", index, FILE)
        assert said is not None  # noqa: S101 - asked before
        if said.path:
            yield from _path(document, (*at, "path"), said.path)
        if said.log_format is not None and said.log_format.text:
            yield from _format(document, (*at, "log_format", "text"), said.log_format.text)
        if said.log_format is not None and said.log_format.labels:
            yield from _format(document, (*at, "log_format", "labels"), said.log_format.labels)


def _path(document: AnyDocument, at: FieldPath, path: str) -> Iterator[Problem]:
    if path not in _STANDARD:
        message = "an application writes this file only if its MESHLIB_ACCESS_LOG_DIR allows it"
        yield _tell(Severity.INFO, document, at, message, repr(path))


def _format(document: AnyDocument, at: FieldPath, form: str | Mapping[str, Any]) -> Iterator[Problem]:
    if reason := accesslog.wrong(form):
        yield _tell(Severity.WARNING, document, at, f"this format is not taken, and {NOT_WRITTEN}: {reason}")
        return
    unknown = dict.fromkeys(str(one) for one in accesslog.operators(form) if not accesslog.is_written(one))
    if unknown:
        message = f"clients in a process write - for {', '.join(unknown)}"
        yield _tell(Severity.INFO, document, at, message)
