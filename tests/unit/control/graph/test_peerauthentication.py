"""Which PeerAuthentication holds for a port, and where it says so."""

import pytest

from meshlib.control.graph.peerauthentication import DEFAULT, PeerAuthentications
from meshlib.control.istio.peerauthentication import MutualTLSMode
from meshlib.control.istio.problem import Severity
from meshlib.control.sources.text import documents_in

OLD, NEW = "2025-01-01T00:00:00Z", "2026-01-01T00:00:00Z"
STRICT, PERMISSIVE, DISABLE = MutualTLSMode.STRICT, MutualTLSMode.PERMISSIVE, MutualTLSMode.DISABLE
APP = {"app": "reviews", "version": "v1"}


def said(title: str, spec: str, created: str = OLD) -> str:
    namespace, name = title.split("/")
    return f"""---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {{name: {name}, namespace: {namespace}, creationTimestamp: "{created}"}}
spec: {spec}
"""


def resolved(*documents: str) -> PeerAuthentications:
    read = documents_in("".join(documents), "in.yaml")
    assert [problem for problem in read.problems if problem.severity is Severity.ERROR] == []
    return PeerAuthentications(read.documents, "istio-system")


MESH = said("istio-system/mesh", "{mtls: {mode: STRICT}}")
SHOP = said("shop/wide", "{mtls: {mode: DISABLE}}")
REVIEWS = said(
    "shop/reviews",
    "{selector: {matchLabels: {app: reviews}}, mtls: {mode: PERMISSIVE}, "
    "portLevelMtls: {8080: {mode: STRICT}, 8081: {mode: UNSET}}}",
)


def test_without_any_both_are_taken() -> None:
    known = resolved()
    assert known.of_port("shop", APP, 80) is DEFAULT
    assert known.of_namespace("shop") is DEFAULT
    assert (DEFAULT.mode, DEFAULT.source) == (PERMISSIVE, "")


@pytest.mark.parametrize(
    ("documents", "port", "mode", "source"),
    [
        ((MESH,), 80, STRICT, "in.yaml:5"),
        ((MESH, SHOP), 80, DISABLE, "in.yaml:10"),
        ((MESH, SHOP, REVIEWS), 80, PERMISSIVE, "in.yaml:15"),
        ((MESH, SHOP, REVIEWS), 8080, STRICT, "in.yaml:15"),
        ((MESH, SHOP, REVIEWS), 8081, PERMISSIVE, "in.yaml:15"),
    ],
    ids=["mesh", "namespace", "workload", "port", "port-unset"],
)
def test_the_closest_one_that_says_something_wins(
    documents: tuple[str, ...], port: int, mode: MutualTLSMode, source: str
) -> None:
    found = resolved(*documents).of_port("shop", APP, port)
    assert (found.mode, found.source) == (mode, source)


def test_a_workload_is_not_another_and_a_namespace_not_another() -> None:
    known = resolved(MESH, SHOP, REVIEWS)
    assert known.of_port("shop", {"app": "ratings"}, 8080).mode is DISABLE
    assert known.of_port("bank", APP, 8080).mode is STRICT
    assert known.of_namespace("shop").mode is DISABLE


@pytest.mark.parametrize("spec", ["{mtls: {mode: UNSET}}", "{mtls: {}}", "{}"])
def test_what_is_unset_inherits(spec: str) -> None:
    assert resolved(MESH, said("shop/wide", spec)).of_port("shop", APP, 80).mode is STRICT
    assert resolved(said("istio-system/mesh", spec)).of_port("shop", APP, 80).mode is PERMISSIVE
    one = said(
        "shop/one", spec.replace("{", "{selector: {matchLabels: {app: reviews}}, ", 1).replace(", }", "}")
    )
    assert resolved(SHOP, one).of_port("shop", APP, 80).mode is DISABLE


def test_a_port_without_a_mode_of_the_workload_inherits_past_it() -> None:
    one = said(
        "shop/one", "{selector: {matchLabels: {app: reviews}}, portLevelMtls: {8080: {mode: DISABLE}}}"
    )
    known = resolved(MESH, one)
    assert known.of_port("shop", APP, 8080).mode is DISABLE
    assert known.of_port("shop", APP, 8081).mode is STRICT


def test_the_oldest_wins_with_all_that_it_says() -> None:
    younger = said("shop/a", "{mtls: {mode: STRICT}}", NEW)
    assert resolved(younger, SHOP).of_namespace("shop").mode is DISABLE
    unset = said("shop/unset", "{mtls: {mode: UNSET}}", "2024-01-01T00:00:00Z")
    assert resolved(MESH, SHOP, unset).of_namespace("shop").mode is STRICT
    other = said(
        "shop/other", "{selector: {matchLabels: {version: v1}}, portLevelMtls: {9: {mode: STRICT}}}", NEW
    )
    assert resolved(REVIEWS, other).of_port("shop", APP, 9).mode is PERMISSIVE


def test_a_selector_in_the_root_namespace_selects_nobody() -> None:
    one = said("istio-system/one", "{selector: {matchLabels: {app: reviews}}, mtls: {mode: DISABLE}}")
    known = resolved(one)
    assert known.of_port("shop", APP, 80) is DEFAULT
    assert known.of_port("istio-system", APP, 80) is DEFAULT


def test_an_empty_selector_is_none() -> None:
    assert (
        resolved(said("shop/wide", "{selector: {}, mtls: {mode: STRICT}}")).of_namespace("shop").mode
        is STRICT
    )


def test_only_disable_takes_no_mutual_tls() -> None:
    known = resolved(MESH, SHOP, REVIEWS)
    taken = [known.takes_mutual_tls("shop", labels, 80) for labels in (APP, {})]
    assert taken == [True, False]
