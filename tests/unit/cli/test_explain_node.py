"""What `meshlib explain --node` says of a workload of a folder, both ways."""

from pathlib import Path
from typing import Any

import pytest

from meshlib.cli.explain_held import Held
from meshlib.cli.explain_node import decide_outbound, decide_served, workloads
from meshlib.cli.explain_request import parse_request
from meshlib.cli.explain_workload import Behind, lines
from meshlib.core.request import Peer

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
apiVersion: v1
kind: Service
metadata: {name: ratings}
spec: {selector: {app: ratings}, ports: [{name: http, port: 9080}]}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default}
spec: {mtls: {mode: STRICT}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: readers}
spec:
  selector: {matchLabels: {app: ratings}}
  rules:
  - from: [{source: {principals: [cluster.local/ns/default/sa/reviews]}}]
    to: [{operation: {methods: [GET]}}]
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: hb}
spec: {address: 10.0.0.2, serviceAccount: pp, ports: {http: 7003},
  labels: {app: productpage, security.istio.io/tlsMode: istio, networking.istio.io/tunnel: http}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: mt}
spec: {address: 10.0.0.3, serviceAccount: pp, ports: {http: 7004},
  labels: {app: productpage, security.istio.io/tlsMode: istio}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: pp}
spec:
  hosts: [productpage]
  http:
  - match: [{uri: {prefix: /x}}]
    route: [{destination: {host: productpage}}]
    timeout: 3s
---
apiVersion: v1
kind: Service
metadata: {name: db}
spec: {selector: {app: db}, ports: [{name: tcp, port: 5432}]}
---
apiVersion: v1
kind: Service
metadata: {name: tls}
spec: {selector: {app: tls}, ports: [{name: tls, port: 443}]}
"""
ONLY = """---
apiVersion: mesh.istio.io/v1alpha1
kind: MeshConfig
outboundTrafficPolicy: {mode: REGISTRY_ONLY}
"""
REVIEWS = "spiffe://cluster.local/ns/default/sa/reviews"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mesh")
    (folder / "a.yaml").write_text(MESH)
    return folder


def behind(folder: Path, port: int = 9080) -> Held:
    return Behind(folder, None, "vm1", None, "default", "ratings", {"app": "ratings"}).held(port)


def sent(held: Held, url: str) -> dict[str, Any]:
    head, host, port = parse_request([url], ())
    answer = decide_outbound(held, "workload", head, port, f"{host}:{port}")
    assert lines(answer)
    return answer


def served(held: Held, *words: str, principal: str = REVIEWS) -> dict[str, Any]:
    head, _, port = parse_request(list(words), ())
    peer = Peer(("127.0.0.1", 0), ("127.0.0.1", port), principal, "", bool(principal))
    answer = decide_served(held, "workload", head, port, peer, 0.0)
    assert answer is not None
    return answer


def test_a_request_and_how_each_endpoint_is_spoken_to(folder: Path) -> None:
    answer = sent(behind(folder), "http://productpage:9080/x")
    assert answer["request"]["document"] == "VirtualService default/pp"
    assert [one["host"] for one in answer["request"]["clusters"]] == ["productpage.default.svc.cluster.local"]
    assert answer["request"]["timeout_s"] == 3.0
    assert {where: how for each in answer["spoken"].values() for where, how in each.items()} == {
        "10.0.0.1:7002": "plain text",
        "10.0.0.2:7003": "HBONE",
        "10.0.0.3:7004": "mutual TLS",
    }


def test_what_is_not_of_http(folder: Path) -> None:
    held = behind(folder)
    assert not sent(held, "http://productpage:9080/y")["request"]["matched"]
    assert [one["host"] for one in sent(held, "http://db:5432/")["connection"]] == [
        "db.default.svc.cluster.local"
    ]
    names = [one["name"] for one in sent(held, "https://tls/")["connection"]]
    assert names[0] == "outbound|443||tls.default.svc.cluster.local"
    assert not any("inspected" in name for name in names)
    assert sent(held, "http://nobody:77/")["elsewhere"] == "PassthroughCluster"


def test_what_no_service_has_may_be_closed(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(MESH + ONLY)
    held = behind(tmp_path)
    answer = sent(held, "http://nobody:77/")
    assert answer["elsewhere"] in (None, "BlackHoleCluster")
    assert "the connection is closed" in lines(answer)[0]
    assert sent(held, "http://nobody:9080/")["request"]["virtual_host"] == "block_all"


def test_who_calls_it(folder: Path) -> None:
    held = behind(folder)
    answer = served(held, "http://ratings:9080/")
    assert (answer["admitted"], answer["mode"], answer["hbone"], answer["speaks_http"]) == (
        True,
        "STRICT",
        True,
        True,
    )
    assert (answer["mode_document"], answer["declared"]) == ("PeerAuthentication default/default", True)
    assert [(one["filter"], one["matched"]) for one in answer["steps"]] == [("ALLOW", True)]
    assert served(held, "POST", "http://ratings:9080/")["status"] == 403
    assert served(held, "http://ratings:9080/", principal=f"{REVIEWS}2")["status"] == 403
    plain = served(held, "http://ratings:9080/", principal="")
    assert (plain["admitted"], plain["status"]) == (False, None)
    assert not served(held, "http://ratings:99/")["declared"]


@pytest.mark.parametrize("mode", ["PERMISSIVE", "DISABLE"])
def test_modes(mode: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(MESH.replace("STRICT", mode))
    assert served(behind(tmp_path), "http://ratings:9080/")["mode"] == mode


def test_one_that_is_not_there(folder: Path) -> None:
    held = behind(folder)
    assert workloads(held) == ["workload"]
    head, _, port = parse_request(["http://x/"], ())
    assert decide_served(held, "other", head, port, Peer(("", 0), ("", 0)), 0.0) is None
    assert not decide_outbound(held, "other", head, port, "x:80")["captured"]
