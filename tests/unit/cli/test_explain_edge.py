"""What `meshlib explain --gateway` says: each step from the port to the endpoint, of a folder."""

from pathlib import Path
from typing import Any

import pytest

from meshlib.cli.explain_edge import decide_edge
from meshlib.cli.explain_held import Held, held_of_folder
from meshlib.cli.explain_request import parse_request
from meshlib.cli.render_edge import lines
from meshlib.xds.node import Client, Flavour

LABELS = (("istio", "ingressgateway"),)
MESH = """
apiVersion: v1
kind: Service
metadata: {name: productpage}
spec: {selector: {app: productpage}, ports: [{name: http, port: 9080}]}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: pp}
spec: {address: 10.0.0.1, ports: {http: 7002}, labels: {app: productpage, version: v1}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: productpage}
spec: {host: productpage, subsets: [{name: v1, labels: {version: v1}}]}
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: edge}
spec:
  selector: {istio: ingressgateway}
  servers:
  - port: {number: 80, name: http, protocol: HTTP}
    hosts: [bookinfo.example]
    tls: {httpsRedirect: true}
  - port: {number: 8080, name: plain, protocol: HTTP}
    hosts: ["*"]
  - port: {number: 443, name: https, protocol: HTTPS}
    hosts: [bookinfo.example]
    tls: {mode: SIMPLE, credentialName: bookinfo}
  - port: {number: 443, name: raw, protocol: TLS}
    hosts: [db.example]
    tls: {mode: PASSTHROUGH}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: bookinfo}
spec:
  hosts: [bookinfo.example]
  gateways: [edge]
  http:
  - match: [{uri: {prefix: /api}}]
    route: [{destination: {host: productpage, subset: v1}}]
    timeout: 2s
  - match: [{uri: {exact: /productpage}}]
    route: [{destination: {host: productpage}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: raw}
spec:
  hosts: [db.example]
  gateways: [edge]
  tls:
  - match: [{sniHosts: [db.example]}]
    route: [{destination: {host: productpage, port: {number: 9080}}}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: not-from-there}
spec:
  selector: {matchLabels: {istio: ingressgateway}}
  action: DENY
  rules: [{from: [{source: {remoteIpBlocks: [203.0.113.0/24]}}]}]
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: more}
spec:
  selector: {istio: ingressgateway}
  servers:
  - port: {number: 15443, name: mesh, protocol: HTTPS}
    hosts: [inner.example]
    tls: {mode: ISTIO_MUTUAL}
  - port: {number: 9000, name: tcp, protocol: TCP}
    hosts: ["*"]
  - port: {number: 8443, name: mutual, protocol: HTTPS}
    hosts: ["*.mutual.example"]
    tls: {mode: MUTUAL, serverCertificate: /c.pem, privateKey: /k.pem, caCertificates: /ca.pem}
  - port: {number: 8443, name: optional, protocol: HTTPS}
    hosts: [optional.example]
    tls: {mode: OPTIONAL_MUTUAL, credentialName: bookinfo}
"""


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> Held:
    folder = tmp_path_factory.mktemp("mesh")
    (folder / "a.yaml").write_text(MESH)
    return held_of_folder(folder, Client(Flavour.GATEWAY, "default", "ingress", LABELS))


def asked(held: Held, *words: str, caller: str = "127.0.0.1", header: tuple[str, ...] = ()) -> dict[str, Any]:
    head, host, port = parse_request(list(words), header)
    answer = decide_edge(held, head, host, port, caller, 0.0)
    assert lines(port, answer)
    return answer


def test_a_request_over_tls(held: Held) -> None:
    answer = asked(held, "https://bookinfo.example/productpage")
    assert (answer["listens"], answer["document"]) == ("0.0.0.0:443", "Gateway default/edge")
    assert (answer["tls"]["mode"], answer["tls"]["credentials"]) == ("SIMPLE", ["Secret bookinfo"])
    assert answer["security"]["admitted"]
    assert [step["matched"] for step in answer["request"]["steps"]] == [False, True]
    assert answer["request"]["document"] == "VirtualService default/bookinfo"
    assert [one["address"] for one in answer["request"]["endpoints"]] == ["10.0.0.1:7002"]
    assert answer["notes"][0].startswith(
        "there is no Secret default/bookinfo with what kubernetes://bookinfo"
    )


def test_paths_are_in_order_before_they_are_matched(held: Held) -> None:
    answer = asked(held, "http://bookinfo.example:8080//api//x/%2e%2e/y")
    assert [cluster["subset"] for cluster in answer["request"]["clusters"]] == ["v1"]


def test_who_may_not_come_in(held: Held) -> None:
    answer = asked(held, "https://bookinfo.example/productpage", caller="203.0.113.7")
    assert (answer["security"]["status"], answer["request"]) == (403, None)
    assert answer["security"]["document"] == "AuthorizationPolicy default/not-from-there"


def test_https_redirect(held: Held) -> None:
    assert asked(held, "http://bookinfo.example/x?y")["https_redirect"] == "https://bookinfo.example/x?y"
    assert asked(held, "http://bookinfo.example:8080/api")["https_redirect"] is None


@pytest.mark.parametrize(
    ("url", "port", "mode"),
    [
        ("https://a.mutual.example:8443/", 8443, "MUTUAL"),
        ("https://optional.example:8443/", 8443, "OPTIONAL_MUTUAL"),
        ("https://inner.example:15443/", 15443, "ISTIO_MUTUAL"),
        ("https://db.example/", 443, "PASSTHROUGH"),
    ],
)
def test_modes_of_tls(held: Held, url: str, port: int, mode: str) -> None:
    assert asked(held, url)["tls"]["mode"] == mode


def test_a_connection_is_handed_on(held: Held) -> None:
    answer = asked(held, "https://db.example/")
    assert [one["host"] for one in answer["connection"]] == ["productpage.default.svc.cluster.local"]
    assert answer["rule"]["document"] == "VirtualService default/raw"
    assert answer["endpoints"]


@pytest.mark.parametrize(
    ("url", "closed"),
    [
        ("https://nobody.example/", "no server is for the name nobody.example (SNI)"),
        ("http://bookinfo.example:443/", "it speaks TLS: plain text is cut off"),
        ("https://bookinfo.example:80/", "it speaks plain HTTP: there is no handshake"),
    ],
)
def test_what_is_closed(held: Held, url: str, closed: str) -> None:
    answer = asked(held, url)
    assert (answer["closed"], answer["request"], answer["security"]) == (closed, None, None)


def test_a_port_that_nobody_serves(held: Held) -> None:
    answer = asked(held, "http://bookinfo.example:444/")
    assert (answer["listener"], answer["ports"]) == (None, [80, 443, 8080, 8443, 15443])
    assert "no listener" in lines(444, answer)[0]


def test_a_host_that_nobody_has(held: Held) -> None:
    answer = asked(held, "http://other.example:8080/")
    assert (answer["request"]["virtual_host"], answer["hosts"]) == (None, ["bookinfo.example"])
    assert "404" in "".join(lines(8080, answer))


def test_where_no_gateway_selects_it(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(MESH)
    none = held_of_folder(tmp_path, Client(Flavour.GATEWAY, "default", "ingress", (("istio", "other"),)))
    answer = asked(none, "http://bookinfo.example/")
    assert answer["ports"] == []
    assert "no Gateway selects it" in lines(80, answer)[0]
