"""OpenSSL agrees: a mutual handshake with what the authority signed, before, during and after a rotation."""

import ssl
import time
from pathlib import Path

import pytest

from meshlib.control.ca.authority import Authority
from meshlib.identity.chain import Purpose, check_peer
from meshlib.identity.keys import make_csr, make_key
from meshlib.identity.spiffe import SpiffeId

REVIEWS = SpiffeId("cluster.local", "default", "reviews")


@pytest.fixture
def now() -> float:
    """OpenSSL reads the real clock."""
    return time.time()


def context(folder: Path, kind: int, roots: str, chain: str, key: bytes) -> ssl.SSLContext:
    made = ssl.SSLContext(kind)
    made.verify_mode = ssl.CERT_REQUIRED
    made.verify_flags |= ssl.VERIFY_X509_STRICT
    made.load_verify_locations(cadata=roots)
    chain_file, key_file = folder / "chain.pem", folder / "key.pem"
    chain_file.write_text(chain)
    key_file.write_bytes(key)
    made.load_cert_chain(chain_file, key_file)
    return made


def workload(folder: Path, authority: Authority, roots: str, now: float) -> ssl.SSLContext:
    key = make_key()
    chain = authority.sign(make_csr(key, REVIEWS).decode(), REVIEWS, 3600, now)
    return context(folder, ssl.PROTOCOL_TLS_CLIENT, roots, "".join(chain[:-1]), key)


def server(folder: Path, authority: Authority, roots: str, now: float) -> ssl.SSLContext:
    made = authority.server_certificate(["control.mesh"], now)
    return context(folder, ssl.PROTOCOL_TLS_SERVER, roots, made.chain_pem, made.key_pem)


def shake(client: ssl.SSLContext, serving: ssl.SSLContext, name: str = "control.mesh") -> SpiffeId:
    """Who the server takes the client for."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    here = client.wrap_bio(down, up, server_hostname=name)
    there = serving.wrap_bio(up, down, server_side=True)
    done: set[ssl.SSLObject] = set()
    for _ in range(10):
        for end in (here, there):
            try:
                end.do_handshake()
                done.add(end)
            except ssl.SSLWantReadError:
                continue
    assert done == {here, there}
    shown = there.getpeercert(binary_form=True)
    assert shown is not None
    return check_peer([shown], trust_domains=("cluster.local",), now=time.time(), purpose=Purpose.CLIENT)


def test_a_workload_and_the_control_service_know_each_other(tmp_path: Path, now: float) -> None:
    authority = Authority.open(tmp_path / "state", trust_domain="cluster.local", now=now)
    roots = authority.roots_pem
    assert (
        shake(workload(tmp_path, authority, roots, now), server(tmp_path, authority, roots, now)) == REVIEWS
    )
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        shake(
            workload(tmp_path, authority, roots, now), server(tmp_path, authority, roots, now), "other.mesh"
        )


def test_strangers_are_refused(tmp_path: Path, now: float) -> None:
    authority = Authority.open(tmp_path / "state", trust_domain="cluster.local", now=now)
    stranger = Authority.open(tmp_path / "other", trust_domain="cluster.local", now=now)
    serving = server(tmp_path, authority, authority.roots_pem, now)
    with pytest.raises(ssl.SSLCertVerificationError, match="unable to get local issuer certificate"):
        shake(workload(tmp_path, authority, stranger.roots_pem, now), serving)
    with pytest.raises(ssl.SSLError):
        shake(workload(tmp_path, stranger, authority.roots_pem, now), serving)


def test_a_rotation_parts_nobody(tmp_path: Path, now: float) -> None:
    """Whoever has both roots talks to whoever has a certificate of either."""
    authority = Authority.open(tmp_path / "state", trust_domain="cluster.local", now=now)
    old_roots = authority.roots_pem
    authority.rotate_root(now, overlap_s=0, keep_s=3600)
    both = authority.roots_pem
    assert both != old_roots
    new_client = workload(tmp_path, authority, both, now)
    new_server = server(tmp_path, authority, both, now)
    before = now - 1  # the old root still issues at that time
    old_client = workload(tmp_path, authority, both, before)
    old_server = server(tmp_path, authority, both, before)
    for client in (old_client, new_client):
        for serving in (old_server, new_server):
            assert shake(client, serving) == REVIEWS
    behind = workload(tmp_path, authority, old_roots, before)
    assert shake(behind, old_server) == REVIEWS
    with pytest.raises(ssl.SSLCertVerificationError):
        shake(behind, new_server)
