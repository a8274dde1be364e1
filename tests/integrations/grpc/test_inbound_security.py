"""Who may connect to a gRPC server of the mesh, and how: PERMISSIVE, STRICT and DISABLE at one port, live."""

import asyncio
import contextlib
import json
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import uvloop
from support.grpc_inbound import KINDS, PATH, Running, serving, serving_of_grpcs
from support.policed import PORT
from support.policed_mesh import DNS, OWN, PolicedMesh
from support.small_ca import SmallCa

import meshlib
import meshlib_grpc
from meshlib.control.ca.authority import Authority
from meshlib.dataplane.certs import checked
from meshlib.dataplane.tls import Held
from meshlib.identity.keys import make_csr, make_key
from meshlib.identity.pem import fingerprint, join_pem, to_der
from meshlib.identity.spiffe import SpiffeId
from meshlib_grpc.inbound.credentials import rotating

PAGE = "spiffe://cluster.local/ns/default/sa/productpage"
STRANGER = "spiffe://cluster.local/ns/default/sa/stranger"
ELSEWHERE = "spiffe://elsewhere.example/ns/default/sa/productpage"
POLICY = """
deny(not-the-stranger):
  rules: [{from: [{source: {principals: [cluster.local/ns/default/sa/stranger]}}]}]
"""

ALONE = ("grpc.use_local_subchannel_pool", 1)
"""Or channels to one address share a connection."""

kinds = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module")
def ca() -> SmallCa:
    return SmallCa()


@pytest.fixture
def mesh(ca: SmallCa) -> PolicedMesh:
    return PolicedMesh(POLICY, ca.held(OWN, dns=[DNS]))


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """The mesh's own."""
    return Authority.open(tmp_path_factory.mktemp("ca"), trust_domain="cluster.local", now=time.time())


def held(authority: Authority, who: str, *dns: str) -> Held:
    """A workload's certificate by the authority, as a process holds it."""
    key, now = make_key(), time.time()
    chain = authority.sign(make_csr(key, None).decode(), SpiffeId.parse(who), 3600, now, dns)
    assert len(chain) == 3
    return checked(join_pem(chain[:-1]), key, authority.roots_pem, now)


@contextlib.contextmanager
def channel(server: Running, roots: str = "", held: Held | None = None) -> Iterator[Any]:
    """gRPC's own; without roots in plain text."""
    address = f"127.0.0.1:{server.port}"
    if not roots:
        with grpc.insecure_channel(address, (ALONE,)) as made:
            yield made
        return
    pair = (held.key_pem, held.chain_pem.encode()) if held else (None, None)
    credentials = grpc.ssl_channel_credentials(roots.encode(), *pair)
    options = (("grpc.ssl_target_name_override", DNS), ALONE)
    with grpc.secure_channel(address, credentials, options) as made:
        yield made


def told(made: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(made.unary_unary(PATH + "given")(b"", timeout=20))
    return found


def ended(made: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as raised:
        made.unary_unary(PATH + "echo")(b"", timeout=20)
    return raised.value.code(), raised.value.details()


@kinds
def test_both_at_one_port_and_a_mode_that_changes(kind: str, mesh: PolicedMesh, ca: SmallCa) -> None:
    page = ca.held(PAGE)
    with serving(kind, mesh) as server, channel(server) as old:
        with channel(server, ca.pem, page) as secured:
            found = told(secured)
            assert found["principal"] == PAGE
            shown = dict(found["metadata"])["x-forwarded-client-cert"]
            assert shown.startswith(f"By={OWN};Hash=")
            assert shown.endswith(f'Subject="";URI={PAGE}')
        assert told(old)["principal"] == ""
        mesh.mode("STRICT")
        with channel(server) as plain:
            assert ended(plain)[0] is grpc.StatusCode.UNAVAILABLE
        # A connection that is older than the policy.
        assert ended(old) == (grpc.StatusCode.PERMISSION_DENIED, "mutual TLS is required")
        with channel(server, ca.pem, page) as secured:
            assert told(secured)["principal"] == PAGE
        mesh.mode("DISABLE")
        with channel(server, ca.pem, page) as secured:
            assert ended(secured)[0] is grpc.StatusCode.UNAVAILABLE
        with channel(server) as plain:
            assert told(plain)["principal"] == ""


@kinds
def test_who_may_not_call(kind: str, mesh: PolicedMesh, ca: SmallCa) -> None:
    other = SmallCa("other")
    with serving(kind, mesh) as server:
        with channel(server, ca.pem, ca.held(STRANGER)) as made:
            assert ended(made) == (grpc.StatusCode.PERMISSION_DENIED, "RBAC: access denied")
        for held in (None, other.held(PAGE), ca.held("https://no.example/spiffe"), ca.held(PAGE, ends=-60)):
            with channel(server, ca.pem, held) as made:
                assert ended(made)[0] is grpc.StatusCode.UNAVAILABLE
        assert server.calls == []
        assert len(server.server._passage.met) == 0


@kinds
def test_certificates_and_roots_that_change(kind: str, mesh: PolicedMesh, ca: SmallCa) -> None:
    page = ca.held(PAGE)
    with serving(kind, mesh) as server, channel(server, ca.pem, page) as old:
        assert told(old)["principal"] == PAGE
        later = SmallCa("later")
        mesh.certs.held = later.held(OWN, dns=[DNS])
        assert told(old)["principal"] == PAGE
        with channel(server, ca.pem, page) as made:
            assert ended(made)[0] is grpc.StatusCode.UNAVAILABLE
        with channel(server, later.pem, later.held(PAGE)) as made:
            assert told(made)["principal"] == PAGE


@kinds
def test_a_server_that_takes_connections_itself(kind: str, mesh: PolicedMesh, ca: SmallCa) -> None:
    """Its certificate rotates, too, and the mesh's rules say who is who."""
    make = meshlib_grpc.aio_server_interceptor if kind == "tasks" else meshlib_grpc.server_interceptor
    mesh.mode("STRICT")
    credentials = meshlib_grpc.server_credentials(mesh)
    with serving_of_grpcs(kind, make(mesh, PORT), credentials) as server:
        with channel(server, ca.pem, ca.held(PAGE)) as made:
            found = told(made)
            assert found["principal"] == PAGE
            assert "Hash=" in dict(found["metadata"])["x-forwarded-client-cert"]
        with channel(server, ca.pem, ca.held(STRANGER)) as made:
            assert ended(made) == (grpc.StatusCode.PERMISSION_DENIED, "RBAC: access denied")
        with channel(server, ca.pem, ca.held("https://no.example/spiffe")) as made:
            assert ended(made) == (grpc.StatusCode.PERMISSION_DENIED, "mutual TLS is required")
        for held in (None, SmallCa("other").held(PAGE)):
            with channel(server, ca.pem, held) as made:
                assert ended(made)[0] is grpc.StatusCode.UNAVAILABLE
        later = SmallCa("later")
        mesh.certs.held = later.held(OWN, dns=[DNS])
        with channel(server, later.pem, later.held(PAGE)) as made:
            assert told(made)["principal"] == PAGE
        with channel(server, later.pem, ca.held(PAGE)) as made:
            assert ended(made)[0] is grpc.StatusCode.UNAVAILABLE


@kinds
@pytest.mark.parametrize("mode", ["STRICT", "PERMISSIVE"])
def test_such_a_server_knows_whom_the_meshs_own_authority_certifies(
    kind: str, mode: str, authority: Authority
) -> None:
    """There is an intermediate above each certificate."""
    make = meshlib_grpc.aio_server_interceptor if kind == "tasks" else meshlib_grpc.server_interceptor
    mesh, page = PolicedMesh(POLICY, held(authority, OWN, DNS)), held(authority, PAGE)
    mesh.mode(mode)
    credentials = meshlib_grpc.server_credentials(mesh)
    with serving_of_grpcs(kind, make(mesh, PORT), credentials) as server:
        with channel(server, authority.roots_pem, page) as made:
            found = told(made)
            assert found["principal"] == PAGE
            shown = dict(found["metadata"])["x-forwarded-client-cert"]
            assert f"Hash={fingerprint(to_der(page.chain_pem)[0]).removeprefix('sha256:')}" in shown
        with channel(server, authority.roots_pem, held(authority, STRANGER)) as made:
            assert ended(made) == (grpc.StatusCode.PERMISSION_DENIED, "RBAC: access denied")


@kinds
def test_in_plain_text_a_strict_policy_refuses_calls(kind: str, mesh: PolicedMesh) -> None:
    make = meshlib_grpc.aio_server_interceptor if kind == "tasks" else meshlib_grpc.server_interceptor
    mesh.mode("STRICT")
    with serving_of_grpcs(kind, make(mesh, PORT)) as server, channel(server) as made:
        assert ended(made) == (grpc.StatusCode.PERMISSION_DENIED, "mutual TLS is required")


def test_credentials_need_a_certificate(tmp_path: Path) -> None:
    (tmp_path / "mesh.yaml").write_text("")
    with meshlib.connect(str(tmp_path)) as mesh, pytest.raises(meshlib.ConfigError, match="no certificates"):
        meshlib_grpc.server_credentials(mesh)
    with pytest.raises(meshlib.ConfigError, match="no certificate"):
        rotating(lambda: None)


@kinds
def test_who_says_nothing_is_cut_off(kind: str, mesh: PolicedMesh) -> None:
    import dataclasses

    mesh.bootstrap = dataclasses.replace(mesh.bootstrap, request_headers_timeout=0.2)
    with serving(kind, mesh) as server, socket.create_connection(("127.0.0.1", server.port)) as silent:
        silent.settimeout(10)
        with contextlib.suppress(ConnectionResetError):
            assert silent.recv(1) == b""


@kinds
def test_a_peer_that_does_not_read_holds_nobody_up(
    kind: str, mesh: PolicedMesh, ca: SmallCa, tmp_path: Path
) -> None:
    """What a slow peer is not given waits with gRPC, not here."""
    held = ca.held(PAGE)
    with serving(kind, mesh) as server:
        context = ssl.create_default_context(cadata=ca.pem)
        context.set_alpn_protocols(["h2"])
        file = tmp_path / "page.pem"
        file.write_bytes(held.key_pem + b"\n" + held.chain_pem.encode())
        context.load_cert_chain(file)
        with socket.create_connection(("127.0.0.1", server.port)) as raw:
            slow = context.wrap_socket(raw, server_hostname=DNS)
            assert slow.selected_alpn_protocol() == "h2"
            slow.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0" * 50_000)
            begun = time.monotonic()
            with channel(server, ca.pem, held) as made:
                assert told(made)["principal"] == PAGE
            assert time.monotonic() - begun < 10
            slow.close()


def test_with_uvloop(mesh: PolicedMesh, ca: SmallCa, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asyncio, "new_event_loop", uvloop.new_event_loop)
    large = b"x" * 3_000_000
    with serving("tasks", mesh) as server:
        assert isinstance(server.loop, uvloop.Loop)
        for how in ((), (ca.pem, ca.held(PAGE))):
            with channel(server, *how) as made:
                assert told(made)["principal"] == (PAGE if how else "")
                assert made.unary_unary(PATH + "echo")(large) == large
