"""Every kind: a good document, and bad ones with the exact line and field of what is wrong."""

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from meshlib.control.istio.kinds import KINDS
from meshlib.control.istio.parse import Origin, parse
from meshlib.control.istio.problem import Problem, Severity
from meshlib.control.sources import reader
from meshlib.control.sources.text import TextRead, documents_in

VERSIONS = {
    "VirtualService": "networking.istio.io/v1alpha3",
    "DestinationRule": "networking.istio.io/v1",
    "Gateway": "networking.istio.io/v1beta1",
    "ServiceEntry": "networking.istio.io/v1",
    "Sidecar": "networking.istio.io/v1",
    "WorkloadEntry": "networking.istio.io/v1",
    "WorkloadGroup": "networking.istio.io/v1",
    "ProxyConfig": "networking.istio.io/v1beta1",
    "AuthorizationPolicy": "security.istio.io/v1",
    "PeerAuthentication": "security.istio.io/v1beta1",
    "RequestAuthentication": "security.istio.io/v1",
    "Telemetry": "telemetry.istio.io/v1alpha1",
}


def read(kind: str, spec: str) -> TextRead:
    head = f"apiVersion: {VERSIONS[kind]}\nkind: {kind}\nmetadata: {{name: a}}\nspec:\n"
    return documents_in(head + "".join(f"  {line}\n" for line in spec.strip("\n").splitlines()), "f.yaml")


def errors(read: TextRead) -> list[Problem]:
    return [problem for problem in read.problems if problem.severity is Severity.ERROR]


GOOD = {
    "VirtualService": "hosts: [a]\nhttp: [{route: [{destination: {host: b}}], timeout: 1ms}]",
    "DestinationRule": "host: '*.example.com'\ntrafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}}",
    "Gateway": "servers: [{port: {number: 80, name: h, protocol: HTTP}, hosts: ['*']}]",
    "ServiceEntry": "hosts: [x.com]\nports: [{number: 80, name: http, protocol: HTTP}]\nresolution: DNS",
    "Sidecar": "egress: [{hosts: ['./*', 'istio-system/*']}]",
    "WorkloadEntry": "address: 10.0.0.1\nports: {http: 8080}",
    "WorkloadGroup": "template: {serviceAccount: x}",
    "ProxyConfig": "concurrency: 0",
    "AuthorizationPolicy": "{}",
    "PeerAuthentication": "selector: {matchLabels: {a: b}}\nportLevelMtls: {8080: {mode: STRICT}}",
    "RequestAuthentication": "jwtRules: [{issuer: x, jwks_uri: 'https://x/y'}]",
    "Telemetry": "tracing: [{randomSamplingPercentage: 10.5}]",
}


@pytest.mark.parametrize("kind", GOOD)
def test_a_good_document_has_no_problem(kind: str) -> None:
    result = read(kind, GOOD[kind])
    assert [d.title for d in result.documents] == [f"{kind} default/a"]
    assert not result.problems


ROUTE = "route: [{destination: {host: b}}]"
BAD = [
    ("VirtualService", "hosts: [a]", 4, "spec"),
    ("VirtualService", f"hosts: ['*']\nhttp:\n- {ROUTE}", 5, "spec.hosts[0]"),
    ("VirtualService", f"hosts: [a]\nhttp:\n- {ROUTE}\n  rout: 1", 8, "spec.http[0].rout"),
    ("VirtualService", f"hosts: [a]\nhttp:\n- {ROUTE}\n  timeout: 5", 8, "spec.http[0].timeout"),
    ("VirtualService", f"hosts: [a]\nhttp:\n- {ROUTE}\n  timeout: 1us", 8, "spec.http[0].timeout"),
    ("VirtualService", "hosts: [a]\nhttp:\n- timeout: 1s", 7, "spec.http[0]"),
    ("VirtualService", f"hosts: [a]\nhttp:\n- {ROUTE}\n  redirect: {{uri: /}}", 8, "spec.http[0].redirect"),
    (
        "VirtualService",
        f"hosts: [a]\nhttp:\n- {ROUTE}\n  retries:\n    attempts: 2\n    retry_on: 5xx, 503",
        10,
        "spec.http[0].retries.retry_on",
    ),
    (
        "VirtualService",
        f"hosts: [a]\nhttp:\n- {ROUTE}\n  match:\n  - uri:\n      regex: '('",
        10,
        "spec.http[0].match[0].uri.regex",
    ),
    (
        "VirtualService",
        f"hosts: [a]\nhttp:\n- {ROUTE}\n  match:\n  - uri:\n      exact: a\n      prefix: b",
        9,
        "spec.http[0].match[0].uri",
    ),
    (
        "VirtualService",
        f"hosts: [a]\nhttp:\n- {ROUTE}\n  mirror: {{host: c}}\n  mirror_percent: 101",
        9,
        "spec.http[0].mirror_percent",
    ),
    (
        "VirtualService",
        "hosts: [a]\nhttp:\n- route:\n  - destination: {host: b}\n  - destination: {host: c}",
        7,
        "spec.http[0].route",
    ),
    (
        "VirtualService",
        f"hosts: [a]\nhttp:\n- {ROUTE}\n  fault: {{}}",
        8,
        "spec.http[0].fault",
    ),
    ("DestinationRule", "host: 'a b'", 5, "spec.host"),
    ("DestinationRule", "host: a\nsubsets:\n- name: v1\n- name: v1", 8, "spec.subsets[1].name"),
    (
        "DestinationRule",
        "host: a\nsubsets:\n- name: v1\n  labels: {version: 1}",
        8,
        "spec.subsets[0].labels.version",
    ),
    (
        "DestinationRule",
        "host: a\ntrafficPolicy:\n  loadBalancer:\n    simple: ROUND_ROBBIN",
        8,
        "spec.trafficPolicy.loadBalancer.simple",
    ),
    (
        "DestinationRule",
        "host: a\ntrafficPolicy:\n  outlierDetection:\n    maxEjectionPercent: 200",
        8,
        "spec.trafficPolicy.outlierDetection.maxEjectionPercent",
    ),
    (
        "Gateway",
        "servers:\n- port: {number: 443, name: s, protocol: HTTPS}\n  hosts: [a.b]",
        6,
        "spec.servers[0].tls",
    ),
    ("ServiceEntry", "hosts: ['*']\nports: [{number: 80, name: h, protocol: HTTP}]", 5, "spec.hosts[0]"),
    ("ServiceEntry", "hosts: [a.b]\nresolution: STATICK", 6, "spec.resolution"),
    ("Sidecar", "egress:\n- hosts: [nowhere]", 6, "spec.egress[0].hosts[0]"),
    ("WorkloadEntry", "weight: 1", 4, "spec.address"),
    ("WorkloadGroup", "metadata: {}", 4, "spec"),
    ("ProxyConfig", "concurrency: -1", 5, "spec.concurrency"),
    ("AuthorizationPolicy", "action: DENY", 4, "spec.rules"),
    (
        "AuthorizationPolicy",
        "rules:\n- when:\n  - key: nope\n    values: [a]",
        7,
        "spec.rules[0].when[0].key",
    ),
    ("AuthorizationPolicy", "rules:\n- from:\n  - source: {}", 7, "spec.rules[0].from[0].source"),
    ("PeerAuthentication", "mtls:\n  mode: STRIKT", 6, "spec.mtls.mode"),
    ("PeerAuthentication", "portLevelMtls:\n  8080: {mode: STRICT}", 5, "spec.portLevelMtls"),
    ("RequestAuthentication", "jwtRules:\n- jwks: '{\"keys\":[]}'", 6, "spec.jwtRules[0].issuer"),
    ("Telemetry", "tracing:\n- randomSamplingPercentage: 101", 6, "spec.tracing[0].randomSamplingPercentage"),
]


@pytest.mark.parametrize(("kind", "spec", "line", "field"), BAD)
def test_a_bad_document_names_line_and_field(kind: str, spec: str, line: int, field: str) -> None:
    result = read(kind, spec)
    assert [(p.code, p.line, p.field) for p in errors(result)] == [("IST0106", line, field)]
    assert result.documents == ()
    assert {problem.document for problem in errors(result)} == {f"{kind} default/a"}


def test_what_was_found_and_what_is_allowed() -> None:
    (problem,) = errors(read("PeerAuthentication", "mtls: {mode: STRIKT}"))
    assert (problem.found, problem.allowed) == ("'STRIKT'", "UNSET, DISABLE, PERMISSIVE, STRICT")
    (problem,) = errors(read("DestinationRule", "host: a\nsubset: []"))
    assert problem.allowed.startswith("did you mean subsets?")


def test_old_spellings_say_what_they_do() -> None:
    policy = "{outlierDetection: {consecutiveErrors: 5}, loadBalancer: {simple: LEAST_CONN}}"
    result = read("DestinationRule", f"host: a\ntrafficPolicy: {policy}")
    assert [p.code for p in result.problems] == ["IST0002", "IST0002"]
    assert "gateway errors (502, 503, 504)" in result.problems[1].message
    assert result.documents[0].spec.traffic_policy.outlier_detection.consecutive_errors == 5


@pytest.mark.parametrize(
    ("text", "field", "allowed"),
    [
        ("kind: VirtualServic\napiVersion: networking.istio.io/v1", "kind", "did you mean VirtualService?"),
        ("kind: Policy\napiVersion: authentication.istio.io/v1alpha1", "apiVersion", "PeerAuthentication"),
        ("kind: VirtualService\napiVersion: networking.istio.io/v9", "apiVersion", "networking.istio.io/v1"),
        ("kind: VirtualService\napiVersion: networking.istio.oi/v1", "apiVersion", "networking.istio.io"),
        ("spec: {}", "apiVersion", "text"),
        ("[1, 2]", "", "apiVersion"),
    ],
)
def test_unknown_kinds_are_errors(text: str, field: str, allowed: str) -> None:
    first = documents_in(text, "f.yaml").problems[0]
    assert (first.severity, first.field) == (Severity.ERROR, field)
    assert first.allowed.startswith(allowed)


@pytest.mark.parametrize(
    "kind", ["apps/v1 Deployment", "v1 ConfigMap", "gateway.networking.k8s.io/v1 Gateway"]
)
def test_kinds_of_others_are_passed_over(kind: str) -> None:
    version, name = kind.split()
    result = documents_in(f"apiVersion: {version}\nkind: {name}\nmetadata: {{name: x}}", "f.yaml")
    assert (result.documents, result.problems) == ((), ())


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("a.yaml", "apiVersion: mesh.istio.io/v1alpha1\nkind: MeshConfig\nrootNamespace: x"),
        ("mesh.yaml", "rootNamespace: x"),
        (
            "a.yaml",
            (
                "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio}\n"
                "data:\n  mesh: |\n    rootNamespace: x"
            ),
        ),
    ],
)
def test_mesh_config_in_all_its_places(file: str, text: str) -> None:
    result = documents_in(text, file)
    assert not result.problems
    assert [(d.kind, d.spec.root_namespace) for d in result.documents] == [("MeshConfig", "x")]


def test_the_tutorial_is_taken_unchanged() -> None:
    folder = Path(__file__).parents[4] / "examples/meshlib_bookinfo"
    for path in sorted((*folder.glob("mesh/*.y*ml"), *folder.glob("tutorial/*.yml"))):
        assert not errors(documents_in(path.read_text(), path.name)), path


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["hosts", "http", "match", "route", "host", "uri", "rules", "from", "tls", "servers", "port"]
            )
            | st.text(max_size=5),
            inner,
            max_size=4,
        )
    ),
    max_leaves=15,
)


@given(st.sampled_from(sorted(VERSIONS)), JSON, JSON)
def test_garbage_is_a_problem_and_never_raises(kind: str, spec: object, metadata: object) -> None:
    value = {"apiVersion": VERSIONS[kind], "kind": kind, "metadata": metadata, "spec": spec}
    parsed = parse(value, Origin("f.yaml"))
    assert (parsed.document is None) == any(p.severity is Severity.ERROR for p in parsed.problems)


ALMOST = st.lists(
    st.sampled_from(
        [
            "kind: ",
            "Service",
            "a",
            ": ",
            "- ",
            "\n",
            "  ",
            "---\n",
            "{",
            "}",
            "[",
            "]",
            "&a ",
            "*a",
            "<<",
            "\t",
        ]
    )
    | st.sampled_from(["apiVersion: v1\nkind: Service\nmetadata: {name: a}\n", "items:\n", "kind: List\n"])
    | st.text(max_size=3),
    max_size=25,
).map("".join)
"""Text that comes close to a document."""


def values_in(text: str) -> list[object]:
    """The YAML documents of a text that are not empty; none at all if it is no YAML."""
    try:
        return [raw.value for raw in reader.read(text)]
    except reader.UnreadableError as error:
        return [error]


@given(st.text(max_size=200) | ALMOST)
@example("apiVersion: v1\nkind: Service\nmetadata: {name: a}")
@example("a: [")
@example("\0")
def test_any_text_is_read_or_refused(text: str) -> None:
    result = documents_in(text, "f.yaml")
    for problem in result.problems:
        assert (problem.file, problem.message.strip() != "") == ("f.yaml", True)
        assert problem.line >= 1
    for document in result.documents:
        assert document.file == "f.yaml"
        assert document.line >= 1
    values = values_in(text)
    # What is of no kind of ours is passed over, and so is a list of nothing.
    ours = [value for value in values if not passed_over(value)]
    assert bool(result.documents or errors(result)) or not ours
    assert errors(result) or not result.twice


def passed_over(value: object) -> bool:
    """Whether this is someone else's document, or a list of such."""
    if not isinstance(value, dict) or not isinstance(value.get("kind"), str):
        return False
    if value["kind"] == "List" and isinstance(value.get("items"), list):
        return all(passed_over(item) for item in value["items"])
    version = value.get("apiVersion")
    return isinstance(version, str) and version != "" and (value["kind"] not in KINDS or "/" in version)
