"""What the compiler makes of YAML: `<case>/in.yaml` against `<case>/out.<view>.yaml`.

Comments of in.yaml say who asks and who serves:

    # view <name>: flavour=meshlib namespace=default labels=app=web locality=r/z/s ask=reviews:9080 show=RDS
    # server: labels=app=reviews,version=v1 address=10.0.0.1 ports=http:9080 locality=r/z/s weight=2 draining
    # (ask=inbound:0.0.0.0:9080 is the listener of a served port)
    # (refused=<text>: a client in a process refuses the listener, and says so)
    # (also: account=<service account>; a view with the word `roots` has a mesh with certificates)
    # (of a node's workload: node=vm1 uid=a netns=/run/netns/a apps=9080:19080 proxy=15080; view: node=vm1)
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.mesh_cases import pairs, parsed, server

from meshlib.control.compile.compiler import GraphCompiler
from meshlib.control.graph import build_graph
from meshlib.control.istio.problem import Severity
from meshlib.control.sources.text import documents_in
from meshlib.dataplane.decode.clusters import decode_cluster
from meshlib.dataplane.decode.endpoints import decode_endpoints
from meshlib.dataplane.decode.errors import Refused
from meshlib.dataplane.decode.inbound import FILTERS, decode_inbound
from meshlib.dataplane.decode.listeners import listener_value
from meshlib.dataplane.decode.mtls import decode_roots
from meshlib.dataplane.decode.routes import decode_routes
from meshlib.xds import pb
from meshlib.xds.kinds import Kind
from meshlib.xds.names import INBOUND_LISTENER, inbound_port
from meshlib.xds.node import Client, Flavour, Locality

UNREAD = {
    pb.type_url(each): lambda _, config: config for each in (pb.RBAC, pb.JwtAuthentication, pb.ExtAuthz)
}


def decode_any_listener(message: Any) -> object:
    if inbound_port(message.name) is not None:
        return decode_inbound(message, {**UNREAD, **FILTERS})
    return listener_value(message)


DECODERS: dict[Kind, Callable[[Any], object]] = {
    Kind.LISTENER: decode_any_listener,
    Kind.ROUTES: decode_routes,
    Kind.CLUSTER: decode_cluster,
    Kind.ENDPOINTS: decode_endpoints,
    Kind.SECRET: decode_roots,
}
HERE = Path(__file__).parent
ROOTS = b"-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n"
VIEW = re.compile(r"^# view (\S+): (.*)$", re.MULTILINE)
SERVER = re.compile(r"^# server: (.*)$", re.MULTILINE)
VIEWS = [
    (case, name, words)
    for case in sorted(HERE.glob("*/in.yaml"))
    for name, words in VIEW.findall(case.read_text())
]


def client(said: dict[str, str]) -> Client:
    return Client(
        Flavour(said.get("flavour", "meshlib")),
        namespace=said.get("namespace", "default"),
        labels=pairs(said.get("labels", "")),
        locality=Locality.parse(said.get("locality", "")),
        node=said.get("node", ""),
        hasty="hasty" in said,
        bind=said.get("bind", ""),
        reuse_port="reuse-port" in said,
    )


def test_there_are_cases() -> None:
    assert len(VIEWS) >= 30


@pytest.mark.parametrize(
    ("case", "name", "words"), VIEWS, ids=[f"{case.parent.name}-{name}" for case, name, _ in VIEWS]
)
def test_compiles_to(case: Path, name: str, words: str, regold: bool) -> None:
    text, said = case.read_text(), parsed(words)
    read = documents_in(text, "in.yaml")
    assert [str(problem) for problem in read.problems if problem.severity is Severity.ERROR] == []
    servers = [server(number, found) for number, found in enumerate(SERVER.findall(text))]
    who, roots = client(said), ROOTS if "roots" in said else b""
    gateways = [(who.namespace, who.service_account)]
    compiler = GraphCompiler(build_graph(read.documents, servers), "1", roots_pem=roots, gateways=gateways)
    asked = frozenset(said.get("ask", "").replace("inbound:", INBOUND_LISTENER).split(",")) - {""}
    resources = compiler.resources(who, asked)
    assert compiler.resources(who, asked) == resources
    shown = said.get("show", "RDS").split(",")
    found: dict[str, Any] = {short: {} for short in shown}
    for resource in resources:
        message = resource.message()
        if said.get("flavour", "meshlib") == "meshlib":
            if "refused" in said and resource.kind is Kind.LISTENER:
                with pytest.raises(Refused, match=said["refused"]):
                    DECODERS[resource.kind](message)
            else:
                DECODERS[resource.kind](message)
        if resource.kind.short in found:
            found[resource.kind.short][resource.name] = json.loads(json.dumps(pb.to_dict(message)))
    out = case.parent / f"out.{name}.yaml"
    if regold:
        out.write_text(yaml.safe_dump(found, sort_keys=True, width=110))
    assert yaml.safe_load(out.read_text()) == found
