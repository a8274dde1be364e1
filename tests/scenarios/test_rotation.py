"""Leafs, the issuing key and the root are replaced while clients ask: nothing fails, nothing is restarted.

Lives are seconds instead of days, and renewed after a quarter, so that a slow machine has time. The first
workloads join with a token that ends soon, so what follows is by certificate; the processes are the same
from start to end.
"""

import socket
import ssl
import time
from pathlib import Path

import pytest
from cryptography import x509
from support.commands import wait_until
from support.secure_mesh import SecureMesh, Served, asked, failures, more, secure_mesh

import meshlib
from meshlib.control.ca import issuer
from meshlib.control.serve import server
from meshlib.dataplane import certs
from meshlib.identity import renewal
from meshlib.identity.pem import fingerprint, load_bundle, split_pem
from meshlib.identity.renewal import Health
from meshlib.xds.names import CONTROL_SERVER

LIFE = 8
RATIO = 0.25
OVER_AN_HOUR = 4000.0
PAGE = "spiffe://cluster.local/ns/default/sa/productpage"
STRICT = """
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: istio-system}
spec: {mtls: {mode: STRICT}}
"""


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """The authority is looked at often, and certificates are renewed early."""
    monkeypatch.setattr(server, "RELOAD_SECONDS", 0.1)
    monkeypatch.setattr(renewal, "RATIO", RATIO)


def shown(port: int, roots: str, name: str = "") -> x509.Certificate | None:
    """The certificate that a server shows to a client that trusts these roots; None: it can't be trusted."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.maximum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(cadata=roots)
    try:
        with (
            socket.create_connection(("127.0.0.1", port), 5) as plain,
            context.wrap_socket(plain, server_hostname=name or None) as made,
        ):
            der = made.getpeercert(binary_form=True)
    except ssl.SSLCertVerificationError:
        return None
    assert der is not None
    return x509.load_der_x509_certificate(der)


def is_below(root: str, chain: str) -> bool:
    """Whether a chain's last certificate names this root as its issuer."""
    return load_bundle(chain)[-1].issuer == load_bundle(root)[0].subject


def accounts(control: SecureMesh) -> list[str]:
    """Whose clients there are."""
    assert control.service is not None
    return [one["service_account"] for one in control.service.status()["clients"]]


def registered(control: SecureMesh) -> int:
    """How many servers are."""
    assert control.service is not None
    return len(control.service.status()["registrations"])


def member(mesh: meshlib.Mesh) -> certs.Certs:
    assert mesh.certs is not None
    return mesh.certs


def control_port(control: SecureMesh) -> int:
    return int(control.address.rpartition(":")[2])


def serial(control: SecureMesh, app: Served) -> int:
    """Of the certificate that the application shows now."""
    found = shown(app.port, control.authority.roots_pem)
    assert found is not None
    return found.serial_number


def test_leafs_and_the_issuing_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(issuer, "ISSUER_LIFE_S", 2 * LIFE)
    with (
        secure_mesh(tmp_path, STRICT, max_ttl_s=LIFE) as control,
        control.served("serve-renewing") as app,
        control.joined("productpage") as mesh,
        asked(mesh) as asking,
    ):
        own, roots = member(mesh), control.authority.roots_pem
        servers, clients, issuers = set(), set(), set()
        begun = time.time()
        # Longer than the first certificates last.
        while min(len(servers), len(clients), len(issuers) + 1) < 4 or time.time() < begun + LIFE + 1:
            assert time.time() < begun + 12 * LIFE
            servers.add(serial(control, app))
            held = own.ensure()
            clients.add(held.not_after)
            issuers.add(load_bundle(split_pem(held.chain_pem)[1])[0].serial_number)
            more(asking, 5)
            if failures(asking):
                break
        assert control.authority.roots_pem == roots
        assert app.process.poll() is None
    assert failures(asking) == []
    assert (len(servers) >= 4, len(clients) >= 4, len(issuers) >= 3) == (True, True, True)
    assert [one.principals for one in asking] == [{PAGE}] * 4


def test_the_root(tmp_path: Path) -> None:
    """Each phase lasts until everybody did what it is for."""
    with (
        secure_mesh(tmp_path, STRICT, max_ttl_s=LIFE) as control,
        control.served("serve-renewing") as app,
        control.joined("productpage") as mesh,
        asked(mesh) as asking,
    ):
        authority, own = control.authority, member(mesh)
        more(asking)
        (old,) = split_pem(authority.roots_pem)
        assert shown(control_port(control), old, CONTROL_SERVER) is not None
        control.rotate_root(overlap_s=OVER_AN_HOUR, keep_s=OVER_AN_HOUR)

        # Announced: both are trusted, everybody has heard of it by the stream, the old one signs.
        wait_until(lambda: len(split_pem(authority.roots_pem)) == 2, 20, "the new root")
        old, new = split_pem(authority.roots_pem)
        wait_until(lambda: len(split_pem(own.ensure().roots_pem)) == 2, 20, "the client to trust both")
        # A certificate that was renewed just now brings both as well, maybe before the stream does.
        wait_until(lambda: mesh.view.roots_pem.decode() == authority.roots_pem, 20, "the stream to say so")
        assert authority.fingerprint == fingerprint(load_bundle(old)[0])
        assert shown(app.port, old) is not None
        more(asking)

        # Issuing: the new one signs; control, server and clients show it, both are trusted still.
        control.turn()
        wait_until(lambda: shown(control_port(control), new, CONTROL_SERVER) is not None, 20, "control")
        assert authority.fingerprint == fingerprint(load_bundle(new)[0])
        wait_until(lambda: shown(app.port, new) is not None, 20, "the server's new certificate")
        wait_until(lambda: is_below(new, own.ensure().chain_pem), 20, "the client's")
        more(asking)
        assert len(split_pem(authority.roots_pem)) == 2

        # Settled: the new one alone.
        control.turn(settled=True)
        wait_until(lambda: split_pem(authority.roots_pem) == (new,), 20, "the end of the old root")
        wait_until(lambda: split_pem(own.ensure().roots_pem) == (new,), 20, "the client to forget it")
        more(asking)
        assert shown(app.port, old) is None

        # Who comes now knows only the new one.
        with control.joined("ratings") as late, asked(late) as newcomers:
            more(newcomers)
        assert failures(newcomers) == []
        assert app.process.poll() is None
    assert failures(asking) == []
    assert [one.principals for one in asking] == [{PAGE}] * 4


def test_control_is_down_for_longer_than_half_a_life(tmp_path: Path) -> None:
    """What is held serves on, and is renewed in time once control is back."""
    life = 12
    with (
        secure_mesh(tmp_path, STRICT, max_ttl_s=life) as control,
        control.served("serve-renewing") as app,
        control.joined("productpage") as mesh,
        asked(mesh) as asking,
    ):
        own, first = member(mesh), serial(control, app)
        wait_until(lambda: serial(control, app) != first, 20, "a fresh certificate of the server")
        own.renew()
        more(asking, 5)
        with control.down():
            held = own.ensure()  # not what renew() gave: age may have asked for one more at the same moment
            wait_until(lambda: time.time() > held.not_before + life * 0.55, 2 * life, "the second half")
            assert own.ensure() is held
            assert own.failure.startswith("UNAVAILABLE")
            more(asking)
        wait_until(lambda: own.ensure() is not held, life, "a new certificate")
        more(asking)
        assert own.failure == ""
        assert app.process.poll() is None
    assert failures(asking) == []


def test_a_root_that_is_replaced_in_seconds(tmp_path: Path) -> None:
    """Certificates that were good for a day are renewed because there is a new root."""
    with (
        secure_mesh(tmp_path, STRICT) as control,
        control.served() as app,
        control.served("serve-workers", state_dir=str(tmp_path / "workers")) as workers,
        control.joined("productpage") as mesh,
        asked(mesh) as asking,
    ):
        more(asking)
        wait_until(lambda: registered(control) == 2, 60, "both servers")
        wait_until(lambda: accounts(control).count("reviews") == 3, 60, "the server and both workers")
        control.rotate_root(overlap_s=2, keep_s=10)
        wait_until(lambda: len(split_pem(control.authority.roots_pem)) == 2, 20, "the new root")
        _, new = split_pem(control.authority.roots_pem)
        wait_until(lambda: split_pem(control.authority.roots_pem) == (new,), 30, "the end of the old root")
        more(asking)
        assert shown(app.port, new) is not None
        wait_until(lambda: set(accounts(control)) == {"productpage", "reviews"}, 20, "clients")
        # What watches the workers follows no configuration, and stays registered all the same.
        wait_until(lambda: registered(control) == 2, 20, "both servers")
        time.sleep(3.0)  # longer than the grace of a lost stream
        assert registered(control) == 2
        assert (app.process.poll(), workers.process.poll()) == (None, None)
    assert failures(asking) == []


def test_who_was_away_while_the_root_was_replaced_comes_back_by_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It heard of the new root, and left before it had a new certificate; its fingerprint is the old one."""
    monkeypatch.setattr(certs, "SPREAD_ROOTS", 1e9)
    monkeypatch.setattr(certs, "SPREAD_REFUSED", 0.1)
    with secure_mesh(tmp_path) as control:
        kept = {"state_dir": str(tmp_path / "page"), "ca_fingerprint": control.authority.fingerprint}
        with control.joined("productpage", **kept) as mesh:
            held = member(mesh).ensure()
            mesh.prepare("reviews:9080")
            control.rotate_root(overlap_s=OVER_AN_HOUR, keep_s=OVER_AN_HOUR)
            wait_until(lambda: len(split_pem(member(mesh).ensure().roots_pem)) == 2, 20, "both roots")
            assert member(mesh).ensure().chain_pem == held.chain_pem
        control.turn(settled=True)
        wait_until(lambda: len(split_pem(control.authority.roots_pem)) == 1, 20, "the end of the old root")
        with control.joined("productpage", **kept) as mesh:
            assert member(mesh).ensure().chain_pem == held.chain_pem  # all that is on disk looks good
            mesh.prepare("reviews:9080")
            wait_until(lambda: member(mesh).ensure().chain_pem != held.chain_pem, 20, "another certificate")
            wait_until(lambda: set(accounts(control)) == {"productpage"}, 20, "the client")
            assert member(mesh).health is Health.OK
            assert member(mesh).ensure().roots_pem == control.authority.roots_pem
