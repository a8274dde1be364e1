"""What is asked to be told and is not: `meshlib check` says so, with field and line."""

import pytest

from meshlib.control.analysis.analyze import analyze
from meshlib.control.istio.problem import Severity
from meshlib.control.sources.text import documents_in

MESH = """\
apiVersion: mesh.istio.io/v1alpha1
kind: MeshConfig
metadata: {name: mesh}
extensionProviders:
- {name: file, envoyFileAccessLog: {path: /dev/stdout}}
- {name: otel, envoyOtelAls: {service: otel, port: 4317}}
"""
TELEMETRY = """---
apiVersion: telemetry.istio.io/v1
kind: Telemetry
metadata: {name: t}
spec:
"""


def found(mesh: str = "", spec: str = "") -> list[tuple[Severity, str, str]]:
    """Severity, field, and the beginning of the message."""
    read = documents_in(MESH + mesh + (TELEMETRY + spec if spec else ""), "f.yaml")
    assert [str(p) for p in read.problems if p.severity is Severity.ERROR] == []
    return [(one.severity, one.field, one.message) for one in analyze(read.documents)]


WARNING, INFO = Severity.WARNING, Severity.INFO
AT = "spec.accessLogging[0]"
CASES = [
    ("", "  accessLogging: [{providers: [{name: file}], filter: {expression: response.code > 1}}]\n", None),
    ("", "  accessLogging: [{providers: [{name: envoy}]}]\n", None),
    (
        "",
        "  accessLogging: [{providers: [{name: nobody}]}]\n",
        (WARNING, f"{AT}.providers[0].name", "no extensionProvider has this name"),
    ),
    (
        "",
        "  accessLogging: [{providers: [{name: otel}]}]\n",
        (WARNING, f"{AT}.providers[0].name", "only envoyFileAccessLog is written"),
    ),
    ("", "  accessLogging: [{}]\n", (WARNING, AT, "without providers")),
    ("defaultProviders: {accessLogging: [file]}\n", "  accessLogging: [{disabled: true}]\n", None),
    (
        "defaultProviders: {accessLogging: [file]}\n",
        "  accessLogging: [{filter: {expression: response.code > 1}}]\n",
        (WARNING, f"{AT}.filter.expression", "a filter holds for providers that its own entry names"),
    ),
    (
        "",
        "  accessLogging: [{providers: [{name: file}], filter: {expression: response.flags == 1}}]\n",
        (
            WARNING,
            f"{AT}.filter.expression",
            "this filter is not supported, and nothing is written: the attribute response.flags",
        ),
    ),
    (
        "",
        "  targetRef: {kind: Gateway, group: gateway.networking.k8s.io, name: g}\n  accessLogging: [{}]\n",
        (INFO, "spec.targetRef", "it is for gateways"),
    ),
    ("", "  tracing: [{providers: [{name: file}], randomSamplingPercentage: 5}]\n", None),
    (
        "",
        "  tracing: [{providers: [{name: zipkin}]}]\n",
        (WARNING, "spec.tracing[0].providers[0].name", "no extensionProvider has this name"),
    ),
    (
        "",
        "  tracing: [{customTags: {a: {formatter: {value: '%PROTOCOL%'}}}}]\n",
        (WARNING, "spec.tracing[0].customTags.a.formatter", "a tag from a format is not supported"),
    ),
    (
        "",
        "  tracing: [{customTags: {a: {environment: {name: TOKEN}}}}]\n",
        (INFO, "spec.tracing[0].customTags.a.environment", "an application puts this variable"),
    ),
    (
        "",
        "  tracing: [{enableIstioTags: false}]\n",
        (INFO, "spec.tracing[0].enableIstioTags", "in-process clients do not apply it yet"),
    ),
    ("accessLogFile: /dev/stderr\n", "", None),
    ("accessLogFile: /var/log/a\n", "", (INFO, "accessLogFile", "an application writes this file only if")),
    (
        "accessLogFormat: '%NOBODY_KNOWS%'\n",
        "",
        (WARNING, "accessLogFormat", "this format is not taken, and nothing is written: %NOBODY_KNOWS%"),
    ),
    (
        "accessLogFormat: '%PROTOCOL% %GRPC_STATUS%'\n",
        "",
        (INFO, "accessLogFormat", "clients in a process write - for %GRPC_STATUS%"),
    ),
    (
        "accessLogFormat: '%PROTOCOL%'\naccessLogEncoding: JSON\n",
        "",
        (WARNING, "accessLogFormat", "it is no JSON object"),
    ),
    ('accessLogFormat: \'{"a": "%PROTOCOL%"}\'\naccessLogEncoding: JSON\n', "", None),
    ("accessLogFormat: '{\"a\": 1}'\naccessLogEncoding: JSON\n", "", None),
]


@pytest.mark.parametrize(("mesh", "spec", "expected"), CASES)
def test_what_is_said(mesh: str, spec: str, expected: tuple[Severity, str, str] | None) -> None:
    problems = found(mesh, spec)
    if expected is None:
        assert problems == []
        return
    ((severity, field, message),) = problems
    assert (severity, field) == expected[:2]
    assert message.startswith(expected[2])


def test_a_providers_own_format_and_path() -> None:
    text = MESH.replace("{path: /dev/stdout}", "{path: /a, logFormat: {text: '50%'}}")
    problems = list(analyze(documents_in(text, "f.yaml").documents))
    assert [(one.line, one.field) for one in problems] == [
        (5, "extensionProviders[0].envoyFileAccessLog.logFormat.text"),
        (5, "extensionProviders[0].envoyFileAccessLog.path"),
    ]
    text = MESH.replace("{path: /dev/stdout}", "{logFormat: {labels: {a: {b: ['%TRACE_ID%']}}}}")
    (problem,) = analyze(documents_in(text, "f.yaml").documents)
    assert problem.field.endswith("logFormat.labels")


def test_a_namespace_may_inherit_from_the_root_namespace() -> None:
    root = TELEMETRY.replace("name: t", "name: root, namespace: istio-system")
    text = MESH + root + "  accessLogging: [{providers: [{name: file}]}]\n"
    text += TELEMETRY + "  accessLogging: [{disabled: true}]\n"
    assert list(analyze(documents_in(text, "f.yaml").documents)) == []


def test_a_provider_that_is_broken_is_refused() -> None:
    text = MESH.replace("{path: /dev/stdout}", "{path: /a, logFormat: {text: a, labels: {}}}")
    (problem,) = documents_in(text, "f.yaml").problems
    assert (problem.severity, problem.line) == (Severity.ERROR, 5)
    assert "not an access log" in problem.message
