"""Precedence and visibility, as one client sees them."""

import pytest

from meshlib.control.graph import build_graph
from meshlib.control.graph.scope import Scope
from meshlib.control.sources.text import documents_in
from meshlib.xds.node import Client, Flavour


def scope(text: str, namespace: str = "default", **labels: str) -> Scope:
    read = documents_in(text, "mesh.yaml")
    said = tuple(sorted(labels.items()))
    return build_graph(read.documents).scope(Client(Flavour.MESHLIB, namespace=namespace, labels=said))


def rule(name: str, namespace: str, host: str, extra: str = "") -> str:
    return f"""---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: {name}, namespace: {namespace}}}
spec:
  host: "{host}"
  subsets: [{{name: {name}, labels: {{a: b}}}}]
{extra}
"""


def entry(name: str, namespace: str, host: str, export: str = '"*"') -> str:
    return f"""---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: {name}, namespace: {namespace}}}
spec:
  hosts: [{host}]
  ports: [{{number: 80, name: http, protocol: HTTP}}]
  resolution: NONE
  exportTo: [{export}]
"""


FULL = "reviews.shop.svc.cluster.local"


def names(seen: Scope, host: str = FULL, owner: str = "shop") -> list[str]:
    found = seen.rule(host, owner)
    return sorted(found.subsets) if found else []


def test_rules_of_one_namespace_and_host_are_joined() -> None:
    text = rule("b", "shop", "reviews") + rule("a", "shop", FULL)
    assert names(scope(text, "shop")) == ["a", "b"]


def test_the_clients_namespace_hides_the_owners_rule() -> None:
    text = rule("owner", "shop", "reviews") + rule("client", "web", "*.shop.svc.cluster.local")
    assert names(scope(text, "web")) == ["client"]
    assert names(scope(text, "third")) == ["owner"]


def test_the_root_namespace_comes_last_and_the_closest_host_first() -> None:
    text = rule("root", "istio-system", "*.svc.cluster.local") + rule("wide", "shop", "*.svc.cluster.local")
    assert names(scope(text, "web")) == ["wide"]
    assert names(scope(text + rule("near", "shop", "reviews"), "web")) == ["near"]
    assert names(scope(rule("root", "istio-system", "*"), "web")) == ["root"]


def test_a_private_rule_is_for_its_own_namespace() -> None:
    text = rule("owner", "shop", "reviews", '  exportTo: ["."]')
    assert names(scope(text, "web")) == []
    assert names(scope(text, "shop")) == ["owner"]


def test_a_rule_with_a_selector_goes_before_one_without() -> None:
    chosen = rule("chosen", "shop", "reviews", "  workloadSelector: {matchLabels: {app: web}}")
    text = rule("plain", "shop", "reviews") + chosen
    assert names(scope(text, "shop", app="web")) == ["chosen"]
    assert names(scope(text, "shop")) == ["plain"]
    assert names(scope(text, "other", app="web")) == ["plain"]


def test_the_own_namespaces_entry_wins_over_the_oldest() -> None:
    text = entry("a", "first", "api.example") + entry("b", "web", "api.example")
    seen = scope(text, "web").service("api.example")
    assert seen is not None
    assert seen.namespace == "web"
    other = scope(text, "third").service("api.example")
    assert other is not None
    assert other.namespace == "first"


@pytest.mark.parametrize(("namespace", "visible"), [("shop", True), ("web", True), ("third", False)])
def test_exported_to_some(namespace: str, visible: bool) -> None:
    text = entry("a", "shop", "api.example", '".", "web"')
    assert (scope(text, namespace).service("api.example") is not None) is visible


def test_a_sidecar_narrows_and_virtual_services_import_their_destinations() -> None:
    text = (
        entry("a", "shop", "a.example")
        + entry("b", "shop", "b.example")
        + entry("c", "shop", "c.example")
        + """---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: default, namespace: web}
spec: {egress: [{hosts: ["shop/a.example"]}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: a, namespace: shop}
spec: {hosts: [a.example], http: [{route: [{destination: {host: b.example}}]}]}
"""
    )
    assert [service.host for service in scope(text, "web").services()] == ["a.example", "b.example"]
    assert len(list(scope(text, "third").services())) == 3


def test_what_a_client_calls() -> None:
    text = entry("a", "shop", "'*.example.com'") + entry("b", "shop", "www.example.com")
    seen = scope(text)
    assert seen.called("WWW.example.com", 80).host == "www.example.com"
    assert seen.called("api.example.com", 80).host == "*.example.com"
    unknown = seen.called("example.com", 80)
    assert (unknown.host, unknown.service, unknown.virtual) == ("example.com", None, None)
