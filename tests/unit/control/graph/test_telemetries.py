"""Which access logs a workload has: Istio's precedence as a table. Most rows are Istio's own cases."""

import json

import pytest

from meshlib.control.graph import build_graph
from meshlib.control.graph.telemetries import FileLog, Spans, Tag
from meshlib.control.istio.problem import Severity
from meshlib.control.istio.telemetry import WorkloadMode
from meshlib.control.sources.text import documents_in
from meshlib.xds.accesslog import JSON, TEXT

A, B, M = (Tag(name, "literal", "x") for name in "abm")
CLIENT, SERVER = WorkloadMode.CLIENT, WorkloadMode.SERVER
LABELS = {"app": "test", "version": "v1"}
PROVIDERS = """
extensionProviders:
- {name: envoy-json, envoyFileAccessLog: {path: /dev/stdout, logFormat: {labels: {}}}}
- {name: otel, envoyOtelAls: {service: otel.default.svc.cluster.local, port: 4317}}
- {name: zipkin, zipkin: {service: zipkin.default.svc.cluster.local, port: 9411}}
"""


def mesh(more: str = "") -> str:
    return f"apiVersion: mesh.istio.io/v1alpha1\nkind: MeshConfig\n{PROVIDERS}{more}\n"


def telemetry(namespace: str, logging: str, more: str = "", name: str = "t", created: str = "2024") -> str:
    return f"""---
apiVersion: telemetry.istio.io/v1
kind: Telemetry
metadata: {{name: {name}, namespace: {namespace}, creationTimestamp: "{created}"}}
spec: {{accessLogging: {logging}{more}}}
"""


def logs(text: str, mode: WorkloadMode = CLIENT, namespace: str = "default") -> tuple[FileLog, ...]:
    read = documents_in(text, "t.yaml")
    assert [str(p) for p in read.problems if p.severity is Severity.ERROR] == []
    return build_graph(read.documents).telemetries.logs(namespace, LABELS, mode)


def names(found: tuple[FileLog, ...]) -> list[str]:
    """`envoy` writes text, `envoy-json` JSON; the file of MeshConfig is another one."""
    return ["mesh" if log.path == "/dev/stderr" else "json" if log.json else "envoy" for log in found]


def of(provider: str, more: str = "") -> str:
    return f"{{providers: [{{name: {provider}}}]{more}}}"


ENVOY, AS_JSON = f"[{of('envoy')}]", f"[{of('envoy-json')}]"
CLIENT_ONLY = f"[{of('envoy', ', match: {mode: CLIENT}')}]"
SERVER_ONLY = f"[{of('envoy', ', match: {mode: SERVER}')}]"
CLIENT_OFF = f"[{of('envoy', ', match: {mode: CLIENT}, disabled: true')}]"
SERVER_OFF = f"[{of('envoy', ', match: {mode: SERVER}, disabled: true')}]"
OFF = "[{disabled: true}]"
SELECTED = ", selector: {matchLabels: {app: test}}"
ROOT, OWN = "istio-system", "default"
DEFAULT = "defaultProviders: {accessLogging: [envoy]}"
FILE = "accessLogFile: /dev/stderr"

TABLE: list[tuple[str, str, list[tuple[str, str, str]], list[str], list[str]]] = [
    # what, the mesh's settings, Telemetries (namespace, accessLogging, selector), as client, as server
    ("nothing", "", [], [], []),
    ("the mesh's file", FILE, [], ["mesh"], ["mesh"]),
    ("a default provider", DEFAULT, [], ["envoy"], ["envoy"]),
    ("a default provider is instead of the file", f"{DEFAULT}\n{FILE}", [], ["envoy"], ["envoy"]),
    ("root", "", [(ROOT, ENVOY, "")], ["envoy"], ["envoy"]),
    ("root is instead of the file", FILE, [(ROOT, ENVOY, "")], ["envoy"], ["envoy"]),
    ("as client", "", [(ROOT, CLIENT_ONLY, "")], ["envoy"], []),
    ("as server", "", [(ROOT, SERVER_ONLY, "")], [], ["envoy"]),
    ("as server, else the file", FILE, [(ROOT, SERVER_ONLY, "")], ["mesh"], ["envoy"]),
    ("the other side is off", "", [(ROOT, CLIENT_ONLY, ""), (OWN, SERVER_OFF, "")], ["envoy"], []),
    ("off", "", [(ROOT, CLIENT_ONLY, ""), (OWN, CLIENT_OFF, "")], [], []),
    ("off is not the file", FILE, [(ROOT, ENVOY, ""), (OWN, OFF, "")], [], []),
    (
        "off, and on again",
        "",
        [(ROOT, CLIENT_ONLY, ""), (OWN, CLIENT_OFF, ""), (OWN, CLIENT_ONLY, SELECTED)],
        ["envoy"],
        [],
    ),
    ("the namespace overrides", "", [(ROOT, ENVOY, ""), (OWN, AS_JSON, "")], ["json"], ["json"]),
    ("the workload overrides", "", [(OWN, ENVOY, ""), (OWN, AS_JSON, SELECTED)], ["json"], ["json"]),
    ("a default provider is overridden", DEFAULT, [(ROOT, AS_JSON, "")], ["json"], ["json"]),
    ("empty inherits", "", [(ROOT, ENVOY, ""), (OWN, "[{}]", "")], ["envoy"], ["envoy"]),
    ("empty without a provider is the file", FILE, [(OWN, "[{}]", "")], ["mesh"], ["mesh"]),
    ("a default provider is off", DEFAULT, [(OWN, OFF, "")], [], []),
    ("no such provider is the file", FILE, [(OWN, f"[{of('nobody')}]", "")], ["mesh"], ["mesh"]),
    ("no such provider", DEFAULT, [(OWN, f"[{of('nobody')}]", "")], [], []),
    ("one that is no log is the file", FILE, [(OWN, f"[{of('zipkin')}]", "")], ["mesh"], ["mesh"]),
    ("one that is another log is not", FILE, [(OWN, f"[{of('otel')}]", "")], [], []),
    ("in any case", "", [(OWN, f"[{of('Envoy')}]", "")], ["envoy"], ["envoy"]),
    (
        "several",
        "",
        [(ROOT, ENVOY, ""), (OWN, f"[{of('envoy')}, {of('envoy-json')}]", "")],
        ["envoy", "json"],
        ["envoy", "json"],
    ),
    (
        "several, one of them off",
        "",
        [(ROOT, ENVOY, ""), (OWN, f"[{of('envoy')}, {of('envoy-json', ', disabled: true')}]", "")],
        ["envoy"],
        ["envoy"],
    ),
    (
        "one on each side",
        "",
        [(ROOT, SERVER_ONLY[:-1] + f", {of('envoy-json', ', match: {mode: CLIENT}')}]", "")],
        ["json"],
        ["envoy"],
    ),
    ("another's workload", "", [(OWN, ENVOY, ", selector: {matchLabels: {app: other}}")], [], []),
    ("another's namespace", "", [("other", ENVOY, "")], [], []),
    ("root's own workloads are not ours", "", [(ROOT, ENVOY, SELECTED)], [], []),
    (
        "gateways are not ours",
        "",
        [(OWN, ENVOY, ", targetRefs: [{kind: Gateway, group: gateway.networking.k8s.io, name: g}]")],
        [],
        [],
    ),
]


ROWS = [row[1:] for row in TABLE]


@pytest.mark.parametrize(
    ("settings", "telemetries", "as_client", "as_server"), ROWS, ids=[row[0] for row in TABLE]
)
def test_precedence(
    settings: str, telemetries: list[tuple[str, str, str]], as_client: list[str], as_server: list[str]
) -> None:
    found = (telemetry(*one, name=f"t{number}") for number, one in enumerate(telemetries))
    text = mesh(settings) + "".join(found)
    assert names(logs(text)) == as_client
    assert names(logs(text, SERVER)) == as_server


def test_the_oldest_without_a_selector_holds_and_the_youngest_of_those_with_one() -> None:
    wide = telemetry(OWN, AS_JSON, name="b", created="2025") + telemetry(OWN, ENVOY, name="a", created="2024")
    assert names(logs(mesh() + wide)) == ["envoy"]
    one = telemetry(OWN, ENVOY, SELECTED, name="b", created="2025")
    other = telemetry(OWN, AS_JSON, ", selector: {matchLabels: {version: v1}}", name="a", created="2024")
    assert names(logs(mesh() + one + other)) == ["envoy"]


CASES = [
    # entries, and the expression that is in force
    ([of("envoy-json", ", filter: {expression: response.code >= 400}")], "response.code >= 400"),
    (
        [of("envoy-json", f", filter: {{expression: response.code >= {code}}}") for code in (500, 400)],
        "response.code >= 400",
    ),
    ([of("envoy-json", ", filter: {expression: response.code >= 500}"), of("envoy-json")], ""),
    (
        [
            of("envoy-json", f", match: {{mode: {mode}}}, filter: {{expression: response.code >= {code}}}")
            for mode, code in (("CLIENT", 500), ("SERVER", 400))
        ],
        "response.code >= 500",
    ),
    (["{filter: {expression: response.code >= 400}}"], ""),
]


@pytest.mark.parametrize(("entries", "expression"), CASES)
def test_a_filter_is_that_of_the_last_entry_that_names_the_provider(
    entries: list[str], expression: str
) -> None:
    (log,) = logs(mesh(DEFAULT) + telemetry(OWN, f"[{', '.join(entries)}]"))
    assert log.expression == expression


def test_a_layers_filter_is_instead_of_that_before() -> None:
    before = telemetry(ROOT, f"[{of('envoy', ', filter: {expression: response.code >= 400}')}]")
    assert logs(mesh() + before + telemetry(OWN, ENVOY))[0].expression == ""
    (log,) = logs(mesh() + before + telemetry(OWN, "[{}]"))
    assert log.expression == "response.code >= 400"


FORMS = [
    ("accessLogFile: /a", FileLog("/a", text=TEXT)),
    ("accessLogFile: /a\naccessLogFormat: '%PROTOCOL%'", FileLog("/a", text="%PROTOCOL%\n")),
    ('accessLogFile: /a\naccessLogFormat: "%PROTOCOL%\\n"', FileLog("/a", text="%PROTOCOL%\n")),
    (
        "accessLogFile: /a\naccessLogEncoding: JSON",
        FileLog("/a", json=json.dumps(dict(JSON), sort_keys=True)),
    ),
    (
        'accessLogFile: /a\naccessLogEncoding: JSON\naccessLogFormat: \'{"b": [1], "a": "%PROTOCOL%"}\'',
        FileLog("/a", json='{"a": "%PROTOCOL%", "b": [1]}'),
    ),
    (
        "accessLogFile: /a\naccessLogEncoding: JSON\naccessLogFormat: '%PROTOCOL%'",
        FileLog("/a", json=json.dumps(dict(JSON), sort_keys=True)),
    ),
]


@pytest.mark.parametrize(("settings", "log"), FORMS)
def test_the_meshs_format(settings: str, log: FileLog) -> None:
    text = f"apiVersion: mesh.istio.io/v1alpha1\nkind: MeshConfig\n{settings}\n"
    (found,) = logs(text)
    assert found.source == "t.yaml:3"
    assert (found.path, found.text, found.json) == (log.path, log.text, log.json)


def test_a_providers_format() -> None:
    text = """
apiVersion: mesh.istio.io/v1alpha1
kind: MeshConfig
accessLogFormat: "%PROTOCOL%"
defaultProviders: {accessLogging: [envoy, a, b, c, d, broken]}
extensionProviders:
- {name: a, envoyFileAccessLog: {path: /a, logFormat: {text: "%ROUTE_NAME%"}}}
- {name: b, envoy_file_access_log: {path: /b, omit_empty_values: true}}
- {name: c, envoyFileAccessLog: {logFormat: {labels: {b: 1, a: "%PROTOCOL%"}}}}
- {name: d, envoyFileAccessLog: {path: /d}}
"""
    source = "t.yaml:5"
    assert logs(text) == (
        FileLog("/a", text="%ROUTE_NAME%\n", source=source),
        FileLog("/b", text=TEXT, omit_empty=True, source=source),
        FileLog("/dev/stdout", json='{"a": "%PROTOCOL%", "b": 1}', source=source),
        FileLog("/d", text=TEXT, source=source),
        # The built-in one has the mesh's format.
        FileLog("/dev/stdout", text="%PROTOCOL%\n", source=source),
    )


def test_a_mesh_may_have_its_own_provider_envoy() -> None:
    own = "extensionProviders: [{name: envoy, envoyFileAccessLog: {path: /dev/stderr}}]"
    text = f"apiVersion: mesh.istio.io/v1alpha1\nkind: MeshConfig\n{own}\naccessLogFormat: x\n{DEFAULT}\n"
    (found,) = logs(text)
    assert (found.path, found.text) == ("/dev/stderr", "x\n")


def tracing(namespace: str, entries: str, more: str = "", name: str = "t") -> str:
    text = telemetry(namespace, "[]", f", tracing: [{entries}]{more}", name=name)
    return text.replace("accessLogging: [], ", "")


def spans(text: str, mode: WorkloadMode = CLIENT) -> Spans:
    read = documents_in(text, "t.yaml")
    assert [str(p) for p in read.problems if p.severity is Severity.ERROR] == []
    return build_graph(read.documents).telemetries.spans(OWN, LABELS, mode)


HALF, TENTH = "{randomSamplingPercentage: 50}", "{randomSamplingPercentage: 10}"
CLIENT_HALF = "{match: {mode: CLIENT}, randomSamplingPercentage: 50}"
NO_SPANS, NO_SPANS_SERVER = (
    "{disableSpanReporting: true}",
    "{match: {mode: SERVER}, disableSpanReporting: true}",
)
DEFAULTS = "defaultConfig: {tracing: {sampling: 5, customTags: {m: {literal: {value: x}}}}}"
TAG_A, TAG_B = (f"{{customTags: {{{name}: {{literal: {{value: x}}}}}}}}" for name in "ab")

SPANS: list[tuple[str, str, list[tuple[str, str, str]], Spans, Spans]] = [
    ("nothing", "", [], Spans(), Spans()),
    ("none at all", "enableTracing: false", [], Spans(False, True), Spans(False, True)),
    ("the mesh's", DEFAULTS, [], Spans(True, True, 5.0, (M,)), Spans(True, True, 5.0, (M,))),
    ("too much is Istio's", "defaultConfig: {tracing: {sampling: 101}}", [], *[Spans(True, True, 1.0)] * 2),
    ("no number", "defaultConfig: {tracing: {sampling: many, customTags: {a: b}}}", [], Spans(), Spans()),
    ("root", "", [(ROOT, HALF, "")], Spans(True, True, 50.0), Spans(True, True, 50.0)),
    (
        "enableTracing does not matter then",
        "enableTracing: false",
        [(ROOT, HALF, "")],
        *[Spans(True, True, 50.0)] * 2,
    ),
    ("the namespace overrides", "", [(ROOT, HALF, ""), (OWN, TENTH, "")], *[Spans(True, True, 10.0)] * 2),
    ("the workload overrides", "", [(OWN, HALF, ""), (OWN, TENTH, SELECTED)], *[Spans(True, True, 10.0)] * 2),
    (
        "one side",
        DEFAULTS,
        [(ROOT, CLIENT_HALF, "")],
        Spans(True, True, 50.0, (M,)),
        Spans(True, True, 5.0, (M,)),
    ),
    ("off", "", [(ROOT, HALF, ""), (OWN, NO_SPANS, "")], *[Spans(False, True, 50.0)] * 2),
    ("off at one side", "", [(OWN, NO_SPANS_SERVER, "")], Spans(True, True), Spans(False, True)),
    (
        "on again",
        "",
        [(ROOT, NO_SPANS, ""), (OWN, "{disableSpanReporting: false}", "")],
        *[Spans(True, True)] * 2,
    ),
    ("tags as a whole", DEFAULTS, [(ROOT, TAG_A, ""), (OWN, TAG_B, "")], *[Spans(True, True, 5.0, (B,))] * 2),
    ("several entries", "", [(OWN, f"{HALF}, {TAG_A}", "")], *[Spans(True, True, 50.0, (A,))] * 2),
    ("0 is 0", DEFAULTS, [(OWN, "{randomSamplingPercentage: 0}", "")], *[Spans(True, True, 0.0, (M,))] * 2),
]
SPAN_ROWS = [row[1:] for row in SPANS]


@pytest.mark.parametrize(
    ("settings", "telemetries", "as_client", "as_server"), SPAN_ROWS, ids=[r[0] for r in SPANS]
)
def test_precedence_of_spans(
    settings: str, telemetries: list[tuple[str, str, str]], as_client: Spans, as_server: Spans
) -> None:
    found = (tracing(*one, name=f"t{number}") for number, one in enumerate(telemetries))
    text = mesh(settings) + "".join(found)
    assert spans(text) == as_client
    assert spans(text, SERVER) == as_server
