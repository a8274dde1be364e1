"""A node's workloads join the mesh and leave it: a control service, a node's own identity, no Envoy."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from support.commands import wait_until
from support.secure_mesh import SecureMesh, secure_mesh

from meshlib.bootstrap import bootstrap
from meshlib.control.ca.nodes import allow, remove
from meshlib.control.registration import Place, Registration
from meshlib.control.serve import server
from meshlib.dataplane.certs import vouched
from meshlib.dataplane.membership import Memberships
from meshlib.errors import MeshError
from meshlib.identity.pem import fingerprint, split_pem, to_der
from meshlib.identity.spiffe import SpiffeId

RATINGS = "spiffe://cluster.local/ns/default/sa/ratings"


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureMesh]:
    with pytest.MonkeyPatch.context() as patch, secure_mesh(tmp_path_factory.mktemp("mesh")) as found:
        patch.setattr(server, "RELOAD_SECONDS", 0.05)
        yield found


@pytest.fixture(autouse=True)
def allowed(mesh: SecureMesh) -> None:
    allow(mesh.folder / "ca", "vm1", ["default/ratings", "shop/*"])


@contextmanager
def node(mesh: SecureMesh, name: str = "vm1", **more: Any) -> Iterator[Memberships]:
    """The node's own identity, and what it does for its workloads."""
    own = SpiffeId("cluster.local", "meshlib-node", name)
    settings = {
        "control": mesh.address,
        "namespace": own.namespace,
        "service_account": own.service_account,
        "ca_fingerprint": mesh.authority.fingerprint,
        "token": mesh.tokens.issue(own, 60, time.time()),
        "state_dir": "",
        "drain": 0.0,
        **more,
    }
    found = Memberships(bootstrap({}, **settings), name)
    try:
        yield found
    finally:
        found.close()


@dataclass(frozen=True)
class Said:
    """What a node says of a workload."""

    name: str = "a"
    namespace: str = "default"
    service_account: str = "ratings"
    labels: tuple[tuple[str, str], ...] = (("app", "ratings"),)
    ports: tuple[tuple[str, int], ...] = (("http", 9080),)
    address: str = "10.9.0.1"
    netns: str = ""
    app_ports: tuple[tuple[int, int], ...] = ()
    proxy_port: int = 0
    locality: str = ""
    weight: int = 1


def workload(name: str = "a", **more: Any) -> Said:
    return replace(Said(name), **more)


def registered(mesh: SecureMesh) -> tuple[Registration, ...]:
    return mesh.service._registrations if mesh.service is not None else ()


def test_a_workload_has_a_certificate_and_is_registered_and_both_end_with_it(mesh: SecureMesh) -> None:
    with node(mesh) as found:
        captured = workload(netns="/run/netns/a", app_ports=((9080, 19080),))
        one = found.join(captured)
        assert one.held is not None
        assert (one.held.principal, found.held(SpiffeId.parse(RATINGS))) == (RATINGS, one.held)
        wait_until(lambda: one.joined and len(registered(mesh)) == 1, 30, "the registration")
        (said,) = registered(mesh)
        assert (said.namespace, said.service_account, said.node) == ("default", "ratings", "vm1")
        assert said.place == Place("a", "/run/netns/a", ((9080, 19080),))
        assert said.draining
        one.serve()
        wait_until(lambda: not registered(mesh)[0].draining, 30, "that it serves")
        assert said.label_map == {
            "app": "ratings",
            "networking.istio.io/tunnel": "http",
            "security.istio.io/tlsMode": "istio",
        }
        two = found.join(workload("b", proxy_port=15080, address="10.9.0.2"))
        assert two.held is one.held
        wait_until(lambda: len(registered(mesh)) == 2, 30, "the other")
        other = next(found for found in registered(mesh) if found.address == "10.9.0.2")
        assert (other.place, "networking.istio.io/tunnel" in other.label_map) == (
            Place("b", proxy_port=15080),
            False,
        )
        for each in (one, two):
            each.drain()
            each.close()
            each.close()
        wait_until(lambda: not registered(mesh), 30, "nobody")
        assert found.held(SpiffeId.parse(RATINGS)) is None


def test_one_that_is_not_allowed_is_told_so_until_it_is(mesh: SecureMesh) -> None:
    with node(mesh) as found:
        teller = workload(namespace="bank", service_account="teller")
        for _ in range(2):
            with pytest.raises(MeshError, match=r"the node vm1 may not speak for .*/ns/bank/sa/teller"):
                found.join(teller)
        assert registered(mesh) == ()
        allow(mesh.folder / "ca", "vm1", ["bank/*"])
        found.join(teller).close()


def test_a_node_that_nobody_knows_gets_nothing(mesh: SecureMesh) -> None:
    with node(mesh, "vm9") as found, pytest.raises(MeshError, match="the node vm9 is not known"):
        found.join(workload())


def test_what_is_taken_back_is_registered_no_more_and_comes_back_when_given_again(mesh: SecureMesh) -> None:
    with node(mesh) as found:
        one = found.join(workload())
        wait_until(lambda: len(registered(mesh)) == 1, 30, "the registration")
        remove(mesh.folder / "ca", "vm1")
        wait_until(lambda: not registered(mesh) and not one.joined, 30, "its end")
        allow(mesh.folder / "ca", "vm1", ["default/ratings"])
        wait_until(lambda: len(registered(mesh)) == 1 and one.joined, 30, "its return")
        one.close()


def test_it_returns_after_a_restart_of_the_control_service(mesh: SecureMesh) -> None:
    with node(mesh) as found:
        one = found.join(workload())
        wait_until(lambda: one.joined, 30, "the registration")
        held = one.held
        with mesh.down():
            assert one.held is held
            with pytest.raises(MeshError, match="no certificate for shop/cart"):
                found.join(workload("b", namespace="shop", service_account="cart"))
        wait_until(lambda: one.joined and len(registered(mesh)) == 1, 30, "its return")
        found.join(workload("b", namespace="shop", service_account="cart")).close()
        one.close()


def test_a_new_root_reaches_the_workloads_certificates(tmp_path: Path) -> None:
    with secure_mesh(tmp_path) as mesh:
        allow(mesh.folder / "ca", "vm1", ["default/ratings"])
        with node(mesh) as found:
            one = found.join(workload())
            wait_until(lambda: one.joined, 30, "the registration")
            mesh.rotate_root(overlap_s=3600, keep_s=3600)

            def roots() -> tuple[str, ...]:
                assert one.held is not None
                return split_pem(one.held.roots_pem)

            wait_until(lambda: len(roots()) == 2, 30, "both roots")
            mesh.turn()
            wait_until(
                lambda: mesh.authority.fingerprint == fingerprint(to_der(roots()[1])[0]), 30, "the new one"
            )
            assert found.own is not None
            found.own.renew()
            wait_until(
                lambda: vouched(one.held, roots()[1], time.time()), 30, "a certificate below the new root"
            )
            one.close()


def test_in_plain_text_there_are_no_certificates(mesh: SecureMesh) -> None:
    with node(mesh, allow_plaintext=True) as found:
        one = found.join(workload(netns="/run/netns/a"))
        assert (one.held, found.own, found.held(SpiffeId.parse(RATINGS))) == (None, None, None)
        labels = found._labels(workload(netns="/run/netns/a"))
        assert "networking.istio.io/tunnel" not in dict(labels)
        one.close()
