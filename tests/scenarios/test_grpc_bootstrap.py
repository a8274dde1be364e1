"""`meshlib bootstrap grpc` is all that gRPC's own clients and servers need to be in a secured mesh."""

import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import pytest
from support.commands import MESHLIB, meshlib, wait_until
from support.grpc_workloads import Workloads
from support.node_modules import install
from support.ports import free_port
from support.secure_mesh import secure_mesh
from support.xds_clients import Ask, client, command

TESTS = Path(__file__).parents[1]
GREETERS = TESTS / "support/grpcio_greeters.py"
TARGET = "xds:///greeter:7000"
CART = "spiffe://cluster.local/ns/default/sa/cart"
SERVED = """
apiVersion: v1
kind: Service
metadata: {name: greeter}
spec:
  selector: {app: greeter}
  ports: [{name: grpc, port: 7000}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: greeter}
spec:
  host: greeter
  trafficPolicy: {tls: {mode: ISTIO_MUTUAL}}
  subsets:
  - {name: v1, labels: {version: v1}}
  - {name: v2, labels: {version: v2}}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default}
spec: {mtls: {mode: STRICT}}
"""
ENTRY = """
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: greeter-{name}}}
spec:
  address: 127.0.0.1
  ports: {{grpc: {port}}}
  labels: {{app: greeter, version: {name}}}
  serviceAccount: {account}
"""
RULES = """
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: greeter}}
spec:
  hosts: [greeter]
  http:
  - match: [{{headers: {{canary: {{exact: "yes"}}}}}}]
    route: [{{destination: {{host: greeter, subset: v2}}}}]
  - match: [{{uri: {{exact: /greeter.Greeter/Admin}}}}]
    route: [{{destination: {{host: greeter, subset: v2}}}}]
  - timeout: 10s
    route:
    - {{destination: {{host: greeter, subset: v1}}, weight: {v1}}}
    - {{destination: {{host: greeter, subset: v2}}, weight: {v2}}}
"""
POLICY = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: greeter}}
spec:
  selector: {{matchLabels: {{app: greeter}}}}
  rules:
  - from: [{{source: {{principals: [cluster.local/ns/default/sa/cart]}}}}]
    to: [{{operation: {{paths: [{paths}]}}}}]
"""


@dataclass
class Mesh(Workloads):
    """A mesh with two served greeters."""

    ports: dict[str, int]

    def edit(self, v1: int = 100, paths: str = "/greeter.Greeter/Hello", account: str = "greeter") -> None:
        """Other weights, a policy for other paths, servers of another account."""
        entries = [ENTRY.format(name=name, port=port, account=account) for name, port in self.ports.items()]
        self.control.edit(SERVED, RULES.format(v1=v1, v2=100 - v1), POLICY.format(paths=paths), *entries)


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """Two greeters, of gRPC's own server, that reach the control service by TLS of their own."""
    short = Path(tempfile.mkdtemp(prefix="m-"))  # for the paths of sockets
    ports = {"v1": free_port(), "v2": free_port()}
    try:
        with secure_mesh(tmp_path_factory.mktemp("control"), max_ttl_s=900) as control:
            made = Mesh(control, short, ports)
            made.edit()
            bootstrap = made.once("greeter", "--label", "app=greeter")
            served = [f"{name}=127.0.0.1:{port}" for name, port in ports.items()]
            process = subprocess.Popen(
                [sys.executable, str(GREETERS), *served],
                env=os.environ | {"GRPC_XDS_BOOTSTRAP": str(bootstrap)},
                stdin=subprocess.PIPE,
            )
            try:
                yield made
            finally:
                process.communicate(timeout=20)
    finally:
        shutil.rmtree(short)


def found(ask: Ask, **what: object) -> dict[str, int]:
    """Which servers answered, all to cart."""
    answers = ask(**what)
    assert {answer.split()[1] for answer in answers} <= {CART}
    counted: dict[str, int] = {}
    for answer, count in answers.items():
        name = answer.split()[0]
        counted[name] = counted.get(name, 0) + count
    return counted


def settled(ask: Ask, what: dict[str, object], wanted: dict[str, int]) -> None:
    """Asks until an edit has reached client and servers."""

    def holds() -> bool:
        try:
            return found(ask, calls=3, **what) == wanted
        except AssertionError:
            return False

    wait_until(holds, 60, f"{what} to be {wanted}")


@pytest.mark.parametrize("kind", ["python", "node"])
def test_rules_identities_and_policies_hold(kind: str, mesh: Mesh) -> None:
    if kind == "node":
        install()
    mesh.edit()
    with mesh.kept("cart") as bootstrap, client(command(kind, TARGET), bootstrap) as ask:
        settled(ask, {}, {"v1": 3})
        assert found(ask, calls=3, metadata={"canary": "yes"}) == {"v2": 3}
        assert ask(fails="PERMISSION_DENIED", method="Admin") == {}

        mesh.edit(v1=0, paths="/greeter.Greeter/*")
        settled(ask, {}, {"v2": 3})
        settled(ask, {"method": "Admin"}, {"v2": 3})

        mesh.edit(account="another")
        wait_until(lambda: refuses(ask, "UNAVAILABLE"), 60, "servers of another account to be refused")
        assert mesh.control.service is not None
        clients = mesh.control.service.status()["clients"]
        assert [kind["nack"] for each in clients for kind in each["kinds"] if kind["nacked"]] == []


def refuses(ask: Ask, code: str) -> bool:
    """Whether calls fail in this way by now."""
    try:
        return ask(fails=code, deadline=10) == {}
    except AssertionError:
        return False


def test_another_account_is_refused(mesh: Mesh) -> None:
    mesh.edit()
    with client(command("python", TARGET), mesh.once("mallory")) as ask:
        wait_until(lambda: refuses(ask, "PERMISSION_DENIED"), 60, "the policy")


def test_a_new_certificate_is_taken_without_a_restart(mesh: Mesh) -> None:
    mesh.edit()
    often = [sys.executable, "-m", "support.renewing", "0.003", *MESHLIB[2:]]
    with mesh.kept("cart", often) as bootstrap:
        bootstrap.write_text(bootstrap.read_text().replace('"5s"', '"1s"'))
        with client(command("python", TARGET), bootstrap) as ask:
            settled(ask, {}, {"v1": 3})
            shown: set[str] = set()

            def another() -> bool:
                (answer,) = ask(fresh=True)
                assert answer.split()[:2] == ["v1", CART]
                shown.add(answer.split()[2])
                return len(shown) == 2

            wait_until(another, 60, "another certificate")
        files = bootstrap.parent / "certs"
        assert {stat.S_IMODE(each.stat().st_mode) for each in files.iterdir()} == {0o600}
        assert len(list(bootstrap.parent.glob("certs-*"))) <= 3


def test_no_second_process_keeps_the_same_folder(mesh: Mesh) -> None:
    with mesh.kept("cart") as bootstrap, patch.dict(os.environ, mesh.environ("cart"), clear=True):
        done = meshlib("bootstrap", "grpc", "--out", str(bootstrap.parent))
        assert done.returncode == 2
        assert done.stderr == f"meshlib: another process keeps certificates in {bootstrap.parent}\n"


def test_a_control_service_that_grpc_would_not_trust_is_told(mesh: Mesh) -> None:
    environ = mesh.environ("other")
    environ["MESHLIB_CONTROL"] = environ["MESHLIB_CONTROL"].replace("127.0.0.1", "127.1")
    with patch.dict(os.environ, environ, clear=True):
        done = meshlib("bootstrap", "grpc", "--out", str(mesh.folder / "other"))
    assert done.returncode == 2
    assert "gRPC would not trust the control service 127.1:" in done.stderr
    assert "meshlib control --name 127.1" in done.stderr
    assert not (mesh.folder / "other/bootstrap.json").exists()


def test_new_roots_are_written_soon(mesh: Mesh) -> None:
    often = "import meshlib.dataplane.certs as c; c.ASK_SECONDS = 0.2; from meshlib.cli import main; main()"
    with mesh.kept("cart", [sys.executable, "-c", often]) as bootstrap:
        roots = bootstrap.parent / "certs/roots.pem"
        assert roots.read_text().count("BEGIN") == 1
        mesh.control.rotate_root(overlap_s=3600, keep_s=86400)
        wait_until(lambda: roots.read_text().count("BEGIN") == 2, 60, "the new root")
