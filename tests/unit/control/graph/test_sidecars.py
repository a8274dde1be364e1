"""What a Sidecar lets its workloads see: every form of a host, ports, what is taken out, whose it is."""

from collections.abc import Mapping

import pytest

from meshlib.control.graph import build_graph
from meshlib.control.graph.scope import Scope
from meshlib.control.sources.text import documents_in
from meshlib.xds.node import Client, Flavour

SERVICES = ("shop/a.example", "shop/b.example", "bank/c.example", "bank/x.c.example")
HEAD = "---\napiVersion: networking.istio.io/v1\nkind: {}\nmetadata: {{name: {}, namespace: {}}}\nspec: {}\n"


def entry(title: str) -> str:
    namespace, host = title.split("/")
    ports = ", ".join(f"{{number: {number}, name: http-{number}, protocol: HTTP}}" for number in (80, 81))
    spec = f"{{hosts: [{host}], resolution: NONE, ports: [{ports}]}}"
    return HEAD.format("ServiceEntry", host.replace(".", "-"), namespace, spec)


def sidecar(title: str, *listeners: str, more: str = "") -> str:
    namespace, name = title.split("/")
    spec = f"{{egress: [{', '.join(listeners)}]{more and ', ' + more}}}"
    return HEAD.format("Sidecar", name, namespace, spec)


def listener(*hosts: str, port: int = 0) -> str:
    of_port = f", port: {{number: {port}, name: http, protocol: HTTP}}" if port else ""
    return f"{{hosts: {list(hosts)}{of_port}}}"


def scope(text: str, namespace: str = "shop", labels: Mapping[str, str] | None = None) -> Scope:
    read = documents_in("".join(map(entry, SERVICES)) + text, "in.yaml")
    assert [str(problem) for problem in read.problems] == []
    listed = tuple(sorted((labels or {}).items()))
    return build_graph(read.documents).scope(Client(Flavour.MESHLIB, namespace=namespace, labels=listed))


def seen(of: Scope, port: int = 80) -> str:
    """The first letters of what is served at a port."""
    hosts = [title.split("/")[1] for title in SERVICES]
    return "".join(host[0] for host in hosts if of.called(host, port).service is not None)


@pytest.mark.parametrize(
    ("hosts", "found"),
    [
        (["*/*"], "abcx"),
        (["./*"], "ab"),
        (["./a.example"], "a"),
        (["bank/*"], "cx"),
        (["bank/c.example"], "c"),
        (["bank/*.c.example"], "x"),
        (["bank/*.example"], "cx"),
        (["*/*.example"], "abcx"),
        (["*/c.example", "shop/B.example"], "bc"),
        (["~/*"], ""),
        (["~/a.example", "./b.example"], "b"),
        (["nowhere/*"], ""),
        (["*/*", "~bank/*"], "ab"),
        (["*/*", "~bank/*.c.example"], "abc"),
        (["*/*", "~bank/c.example"], "abx"),
        (["./*", "~bank/*"], "ab"),
    ],
)
def test_hosts(hosts: list[str], found: str) -> None:
    assert seen(scope(sidecar("shop/one", listener(*hosts)))) == found


def test_a_listener_with_a_port_is_for_that_alone_and_alone_for_that() -> None:
    both = scope(sidecar("shop/one", listener("bank/*", port=81), listener("./*")))
    assert (seen(both, 80), seen(both, 81)) == ("ab", "cx")
    only = scope(sidecar("shop/one", listener("bank/*", port=81)))
    assert (seen(only, 80), seen(only, 81)) == ("", "cx")
    # Listed for an Envoy under each port at which it is seen.
    service = both.service("c.example")
    assert service is not None
    assert [both.sees_port(service, port) for port in (80, 81)] == [False, True]


def test_whose_sidecar_holds() -> None:
    text = (
        sidecar("istio-system/root", listener("bank/c.example"))
        + sidecar("shop/all", listener("./a.example"))
        + sidecar("shop/some", listener("./b.example"), more="workloadSelector: {labels: {app: web}}")
    )
    assert seen(scope(text)) == "a"
    assert seen(scope(text, labels={"app": "web"})) == "b"
    assert seen(scope(text, labels={"app": "other"})) == "a"
    assert seen(scope(text, "elsewhere")) == "c"
    assert seen(scope("", "elsewhere")) == "abcx"


def test_the_egress_proxy_is_seen() -> None:
    proxy = "outboundTrafficPolicy: {mode: ALLOW_ANY, egressProxy: {host: c.example, port: {number: 80}}}"
    one = scope(sidecar("shop/one", listener("./a.example"), more=proxy))
    assert seen(one) == "ac"
    assert one.egress_proxy is not None
    assert scope(sidecar("shop/one", listener("./a.example"))).egress_proxy is None
