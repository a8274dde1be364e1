"""Which policies hold for a workload, and whose keys are wanted."""

from meshlib.control.graph import build_graph
from meshlib.control.graph.policies import KeySource
from meshlib.control.sources.text import documents_in


def policy(name: str, namespace: str, *, spec: str = "", created: str = "2024-01-01T00:00:00Z") -> str:
    return f"""---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: {name}, namespace: {namespace}, creationTimestamp: "{created}"}}
spec: {{{spec}}}
"""


MESH = (
    policy("young", "foo", created="2025-01-01T00:00:00Z")
    + policy("old", "foo")
    + policy("selected", "foo", spec="selector: {matchLabels: {app: a, version: v1}}")
    + policy("root", "istio-system")
    + policy("root-selected", "istio-system", spec="selector: {matchLabels: {app: a}}")
    + policy("gateway", "foo", spec="targetRef: {kind: Gateway, group: gateway.networking.k8s.io, name: g}")
    + policy("bar", "bar")
)


def names(namespace: str, **labels: str) -> list[str]:
    graph = build_graph(documents_in(MESH, "a.yaml").documents)
    return [document.name for document in graph.policies.authorization(namespace, labels)]


def test_root_then_namespace_by_selector() -> None:
    assert names("foo", app="a", version="v1") == ["root", "root-selected", "old", "selected", "young"]
    assert names("foo", app="a") == ["root", "root-selected", "old", "young"]
    assert names("foo") == ["root", "old", "young"]
    assert names("bar", app="a") == ["root", "root-selected", "bar"]
    assert names("else") == ["root"]


def test_the_root_namespaces_own_workloads_see_each_once() -> None:
    assert names("istio-system", app="a") == ["root", "root-selected"]


def test_keys_are_wanted_by_uri_or_issuer_for_the_longest_time() -> None:
    text = """
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: one, namespace: foo}
spec:
  jwtRules:
  - {issuer: a, jwksUri: "https://a/keys"}
  - {issuer: b, jwksUri: "https://a/keys", timeout: 9s}
  - {issuer: "https://c"}
  - {issuer: d, jwks: '{"keys":[]}'}
"""
    graph = build_graph(documents_in(text, "a.yaml").documents)
    assert graph.policies.key_sources() == {
        KeySource("https://a/keys", ""): 9.0,
        KeySource("", "https://c"): 5.0,
    }
    (document,) = graph.policies.authentication("foo", {})
    assert document.source("spec", "jwtRules", 2) == "a.yaml:9"
