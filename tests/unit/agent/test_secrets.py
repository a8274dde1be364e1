"""The secrets that the agent serves: its own certificate, and files of the machine that are replaced."""

import os
from pathlib import Path

import pytest
from support.small_ca import Issued, SmallCa

from meshlib.agent.secrets import KEEP_SECONDS, MAX_BYTES, PATIENCE_SECONDS, Secrets
from meshlib.dataplane.tls import Held
from meshlib.xds.names import FILE_CERT, FILE_CRL, FILE_ROOT, OWN_SECRET, ROOTS_SECRET

CA = SmallCa()


def put(folder: Path, issued: Issued) -> str:
    (folder / "cert.pem").write_text(issued.pem)
    (folder / "key.pem").write_bytes(issued.key_pem)
    return f"{FILE_CERT}{folder}/cert.pem~{folder}/key.pem"


def shown(secrets: Secrets, name: str) -> bytes | None:
    found = [resource.message() for resource in secrets.of([name])]
    return found[0].tls_certificate.certificate_chain.inline_bytes if found else None


def test_its_own_certificate_follows_renewals() -> None:
    held: list[Held | None] = [None]
    secrets = Secrets(lambda: held[0])
    assert secrets.of([OWN_SECRET, ROOTS_SECRET]) == []
    for _ in range(2):
        held[0] = now = CA.held("spiffe://cluster.local/ns/default/sa/a")
        roots, own = (resource.message() for resource in secrets.of([OWN_SECRET, ROOTS_SECRET]))
        assert own.tls_certificate.private_key.inline_bytes == now.key_pem
        assert own.tls_certificate.certificate_chain.inline_bytes == now.chain_pem.encode()
        assert roots.validation_context.trusted_ca.inline_bytes == now.roots_pem.encode()


def test_files_are_read_again_when_they_change(tmp_path: Path) -> None:
    secrets, first, second = Secrets(lambda: None), CA.issue(dns=["a"]), CA.issue(dns=["a"])
    name = put(tmp_path, first)
    assert shown(secrets, name) == first.pem.encode()
    assert secrets.of([name])[0] is secrets.of([name])[0]
    put(tmp_path, second)
    assert shown(secrets, name) == second.pem.encode()


def test_half_of_a_replacement_is_never_shown(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    now, first, second = [0.0], CA.issue(dns=["a"]), CA.issue(dns=["a"])
    secrets, name = Secrets(lambda: None, clock=lambda: now[0]), put(tmp_path, first)
    assert shown(secrets, name) == first.pem.encode()
    (tmp_path / "cert.pem").write_text(second.pem)
    for now[0] in (0.0, PATIENCE_SECONDS, 2 * PATIENCE_SECONDS):
        assert shown(secrets, name) == first.pem.encode()
    (told,) = [record.message for record in caplog.records]
    assert told.startswith(f"the secret of {tmp_path}/cert.pem, {tmp_path}/key.pem can't be used: ")
    assert told.endswith("the key is not that of the certificate; the last good one stays")
    (tmp_path / "key.pem").write_bytes(second.key_pem)
    assert shown(secrets, name) == second.pem.encode()


def test_files_that_are_replaced_one_after_the_other_are_no_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    now, first, second = [0.0], CA.issue(dns=["a"]), CA.issue(dns=["a"])
    secrets, name = Secrets(lambda: None, clock=lambda: now[0]), put(tmp_path, first)
    for issued in (first, second, first):
        (tmp_path / "cert.pem").write_text(issued.pem)
        for _ in range(4):
            now[0] += PATIENCE_SECONDS / 5
            assert shown(secrets, name) is not None
        (tmp_path / "key.pem").write_bytes(issued.key_pem)
        assert shown(secrets, name) == issued.pem.encode()
    assert caplog.records == []


def test_what_stays_broken_in_ever_other_ways_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    now = [0.0]
    secrets, name = Secrets(lambda: None, clock=lambda: now[0]), put(tmp_path, CA.issue(dns=["a"]))
    shown(secrets, name)
    for number in range(7):
        (tmp_path / "cert.pem").write_text(f"broken {number}")
        shown(secrets, name)
        now[0] += PATIENCE_SECONDS / 5
    assert "there is no certificate in it; the last good one stays" in caplog.text


def test_a_certificate_that_has_ended_is_served_and_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    now = [CA.now.timestamp()]  # from when its certificates are
    secrets, issued = Secrets(lambda: None, wall=lambda: now[0]), CA.issue(dns=["a"], ends=600)
    name = put(tmp_path, issued)
    assert shown(secrets, name) == issued.pem.encode()
    assert caplog.records == []
    now[0] += 1000
    for _ in range(3):
        assert shown(secrets, name) == issued.pem.encode()
    (told,) = [record.message for record in caplog.records]
    assert told.startswith(f"the certificate of {tmp_path}/cert.pem, {tmp_path}/key.pem has ended, on 20")
    put(tmp_path, CA.issue(dns=["a"], ends=1200))
    assert shown(secrets, name) is not None
    assert len(caplog.records) == 1
    put(tmp_path, CA.issue(dns=["a"], begins=2000, ends=3000))
    assert shown(secrets, name) is not None
    assert "begins later, on 20" in caplog.records[1].message


@pytest.mark.parametrize(
    "broken", [b"", b"-----BEGIN CERTIFICATE-----\nx", b"\xff" * 10, b"a" * (MAX_BYTES + 1)]
)
def test_what_was_never_good_is_no_secret(tmp_path: Path, broken: bytes) -> None:
    name = put(tmp_path, CA.issue(dns=["a"]))
    (tmp_path / "cert.pem").write_bytes(broken)
    assert shown(Secrets(lambda: None), name) is None
    assert Secrets(lambda: None).of([f"{FILE_ROOT}{tmp_path}/cert.pem"]) == []


def test_a_ca_with_what_it_revoked(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    name, secrets = f"{FILE_CRL}{tmp_path}/ca.pem~{tmp_path}/crl.pem", Secrets(lambda: None)
    (tmp_path / "ca.pem").write_text(CA.pem)
    assert secrets.of([name]) == []
    (tmp_path / "crl.pem").write_text("none")
    assert secrets.of([name]) == []
    assert "there is no list of revoked certificates in it" in caplog.text
    crl = CA.revoked(CA.issue(dns=["a"]))
    (tmp_path / "crl.pem").write_bytes(crl)
    (found,) = secrets.of([name])
    context = found.message().validation_context
    assert (context.trusted_ca.inline_bytes, context.crl.inline_bytes) == (CA.pem.encode(), crl)


def test_a_file_of_the_same_time_and_size_is_another(tmp_path: Path) -> None:
    secrets, place = Secrets(lambda: None), tmp_path / "ca.pem"
    name, shown = f"{FILE_ROOT}{place}", []
    for ca in (CA, SmallCa("other")):
        place.write_text(ca.pem.ljust(2000))
        os.utime(place, (1, 1))
        shown += [resource.version for resource in secrets.of([name])]
    assert len(set(shown)) == 2


def test_what_is_not_asked_for_is_forgotten(tmp_path: Path) -> None:
    now = [0.0]
    secrets, name = Secrets(lambda: None, clock=lambda: now[0]), put(tmp_path, CA.issue(dns=["a"]))
    for now[0] in (0.0, KEEP_SECONDS, 2 * KEEP_SECONDS):
        assert len(secrets.of([name])) == 1
    (tmp_path / "key.pem").unlink()
    assert len(secrets.of([name])) == 1
    now[0] = 3 * KEEP_SECONDS + 1
    secrets.of([])
    assert secrets.of([name]) == []


@pytest.mark.parametrize("name", [f"{FILE_CERT}/nowhere~/nowhere", f"{FILE_CERT}x", f"{FILE_ROOT}/", "other"])
def test_what_is_not_there_is_no_secret(name: str) -> None:
    assert Secrets(lambda: None).of([name]) == []


def test_a_pipe_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "ca.pem")
    assert Secrets(lambda: None).of([f"{FILE_ROOT}{tmp_path}/ca.pem"]) == []


def test_a_ca(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text(CA.pem)
    (found,) = Secrets(lambda: None).of([f"{FILE_ROOT}{tmp_path}/ca.pem"])
    assert found.message().validation_context.trusted_ca.inline_bytes == CA.pem.encode()


def test_the_workloads_of_a_node_by_their_names() -> None:
    name = "spiffe://cluster.local/ns/shop/sa/cart"
    workloads: dict[str, Held] = {}
    secrets = Secrets(lambda: None, lambda who: workloads.get(who.service_account))
    assert shown(secrets, name) is None
    for _ in range(2):
        workloads["cart"] = CA.held(name)
        assert shown(secrets, name) == workloads["cart"].chain_pem.encode()
        assert secrets.of([name])[0] is secrets.of([name])[0]
    renamed = "spiffe://new.mesh/ns/shop/sa/cart"
    assert shown(secrets, renamed) == shown(secrets, name)
    assert shown(secrets, "spiffe://cluster.local/ns/shop/sa/till") is None
    for odd in ("spiffe://", "spiffe://cluster.local/cart", "spiffe://cluster.local/ns/shop/sa/cart/x"):
        assert shown(secrets, odd) is None
    del workloads["cart"]
    assert shown(secrets, name) is None
    assert name not in repr(vars(secrets)["_good"])
