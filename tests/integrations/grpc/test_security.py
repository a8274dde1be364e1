"""TLS over gRPC's channels: who answers is looked at by meshlib's rules, and gRPC leads to no one else."""

import socket
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from support.fake_mesh import FakeMesh, fake_mesh
from support.grpc_callers import CALLERS, calling, until
from support.grpc_server import grpc_server
from support.ports import free_port
from support.small_ca import SmallCa

import meshlib
from meshlib.core.mtls import ClientTls, SanMatch, Trust
from meshlib.dataplane.tls import Contexts, Held
from meshlib_grpc import pin
from meshlib_grpc.inbound.credentials import rotating
from meshlib_grpc.pool import READY

REVIEWS = "spiffe://cluster.local/ns/default/sa/reviews"
OTHER = "spiffe://cluster.local/ns/default/sa/ratings"
PAGE = "spiffe://cluster.local/ns/default/sa/productpage"
NAME = "reviews.default.svc"
EXACTLY = ClientTls(sans=((SanMatch.EXACT, REVIEWS),))

kinds = pytest.mark.parametrize("kind", CALLERS)


@pytest.fixture(scope="module")
def ca() -> SmallCa:
    return SmallCa()


def serving(held: Held, *, mutual: bool = True) -> grpc.ServerCredentials:
    pair = (held.key_pem, held.chain_pem.encode())
    return grpc.ssl_server_credentials([pair], held.roots_pem.encode() if mutual else None, mutual)


def mesh_of(port: int, held: Callable[[], Held | None], tls: ClientTls | None = EXACTLY) -> FakeMesh:
    mesh = fake_mesh([port], tls=tls)
    mesh.contexts = Contexts(held)
    return mesh


@kinds
@pytest.mark.parametrize(
    "sans",
    [
        ((SanMatch.EXACT, REVIEWS),),
        ((SanMatch.EXACT, OTHER), (SanMatch.EXACT, REVIEWS)),
        ((SanMatch.PREFIX, "spiffe://cluster.local/ns/default/"),),
        (),
    ],
)
def test_mutual_tls(kind: str, sans: Any, ca: SmallCa) -> None:
    held = ca.held(PAGE)
    with grpc_server(credentials=serving(ca.held(REVIEWS, dns=[NAME]))) as server:
        mesh = mesh_of(server.port, lambda: held, ClientTls(sans=sans))
        with calling(kind, mesh) as caller:
            assert caller.unary("echo", b"hello").messages == [b"hello"]
            assert caller.both("chat", [b"1", b"2"]).messages == [b"1", b"2"]
            assert caller.channels() == 1


@kinds
def test_another_account_is_refused(kind: str, ca: SmallCa) -> None:
    held = ca.held(PAGE)
    with grpc_server(credentials=serving(ca.held(OTHER, dns=[NAME]))) as server:
        with calling(kind, mesh_of(server.port, lambda: held)) as caller:
            with pytest.raises(meshlib.ConnectFailed, match="its certificate is for spiffe") as raised:
                caller.unary("echo", b"hello")
            assert isinstance(raised.value, grpc.RpcError)
            assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
        assert not server.calls


@kinds
def test_other_roots_are_refused(kind: str, ca: SmallCa) -> None:
    held = ca.held(PAGE)
    stranger = SmallCa("stranger").held(REVIEWS, dns=[NAME])
    with grpc_server(credentials=serving(stranger, mutual=False)) as server:
        with (
            calling(kind, mesh_of(server.port, lambda: held)) as caller,
            pytest.raises(meshlib.ConnectFailed, match="not trusted"),
        ):
            caller.unary("echo", b"hello")
        assert not server.calls


@kinds
def test_a_peer_in_plain_text_is_refused(kind: str, ca: SmallCa) -> None:
    held = ca.held(PAGE)
    with grpc_server() as server, calling(kind, mesh_of(server.port, lambda: held)) as caller:
        with pytest.raises(meshlib.ConnectFailed):
            caller.unary("echo", b"hello")
        assert not server.calls


@kinds
def test_who_steps_in_after_the_look_is_refused(kind: str, ca: SmallCa, monkeypatch: Any) -> None:
    """gRPC's own handshake takes the very certificate that was looked at: no other of the account."""
    held = ca.held(PAGE)
    seen = ca.held(REVIEWS, dns=[NAME])
    with grpc_server(credentials=serving(ca.held(REVIEWS, dns=[NAME]))) as server:
        mesh = mesh_of(server.port, lambda: held)
        pinned = [seen.chain_pem.encode()]

        def look(attempt: Any, tls: Any, contexts: Any, seconds: float) -> Any:
            from meshlib_grpc.pin import Pinned

            return Pinned(pinned[0], NAME, contexts.shown(tls))

        monkeypatch.setattr("meshlib_grpc.blocking.look", look)

        async def alook(*asked: Any) -> Any:
            return look(*asked)

        monkeypatch.setattr("meshlib_grpc.asynchronous.alook", alook)
        with (
            calling(kind, mesh) as caller,
            pytest.raises(meshlib.ConnectFailed, match="CERTIFICATE_VERIFY_FAILED"),
        ):
            caller.unary("echo", b"hello")
        assert not server.calls


@kinds
@pytest.mark.parametrize("method", ["unary", "streamed"])
def test_a_peer_with_another_certificate_after_the_look_is_looked_at_again(
    kind: str, method: str, ca: SmallCa, monkeypatch: Any
) -> None:
    held = ca.held(PAGE)
    past = ca.held(REVIEWS, dns=[NAME]).chain_pem.encode()
    looks: list[bytes] = []
    with grpc_server(credentials=serving(ca.held(REVIEWS, dns=[NAME]))) as server:

        def look(*asked: Any) -> Any:
            seen = pin.look(*asked)
            assert isinstance(seen, pin.Pinned)
            looks.append(seen.leaf_pem)
            return seen._replace(leaf_pem=past) if len(looks) < 3 else seen

        monkeypatch.setattr("meshlib_grpc.blocking.look", look)

        async def alook(*asked: Any) -> Any:
            return look(*asked)

        monkeypatch.setattr("meshlib_grpc.asynchronous.alook", alook)
        with calling(kind, mesh_of(server.port, lambda: held)) as caller:
            if method == "unary":
                assert caller.unary("echo", b"hello").messages == [b"hello"]
            else:
                assert caller.streamed("count", b"2").messages == [b"0", b"1"]
            assert (len(looks), caller.channels()) == (3, 1)


@kinds
def test_a_peer_that_restarts_with_another_certificate(kind: str, ca: SmallCa) -> None:
    held, port = ca.held(PAGE), free_port()
    with calling(kind, mesh_of(port, lambda: held)) as caller:
        for name in ("first", "second", "third"):
            with grpc_server(name, serving(ca.held(REVIEWS, dns=[NAME])), port):
                assert caller.unary("who", b"").messages == [name.encode()]
                assert caller.streamed("count", b"2").messages == [b"0", b"1"]
        with grpc_server("fourth", serving(ca.held(REVIEWS, dns=[NAME])), port):
            assert caller.streamed("count", b"2").messages == [b"0", b"1"]


@kinds
def test_a_certificate_of_our_own_that_is_new_is_shown(kind: str, ca: SmallCa) -> None:
    held = [ca.held(PAGE)]
    with (
        grpc_server(credentials=serving(ca.held(REVIEWS, dns=[NAME]))) as server,
        calling(kind, mesh_of(server.port, lambda: held[0])) as caller,
    ):
        caller.unary("who", b"")
        first = caller.pool()._open.copy()
        held[0] = ca.held(PAGE)
        caller.unary("who", b"")
        until(lambda: caller.turn() or list(first.values()) != list(caller.pool()._open.values()))
        assert caller.channels() == 1
        assert caller.unary("who", b"").messages == [b"v1"]


@kinds
def test_a_new_channel_connects_before_it_is_called(kind: str, ca: SmallCa, capfd: Any) -> None:
    """Or its peer may have another certificate by then, of which gRPC complains on stderr."""
    mine, theirs = [ca.held(PAGE)], [ca.held(REVIEWS, dns=[NAME])]
    with (
        grpc_server(credentials=rotating(lambda: theirs[0])) as server,
        calling(kind, mesh_of(server.port, lambda: mine[0])) as caller,
    ):
        caller.unary("who", b"")
        pool = caller.pool()
        (first,) = pool._open.values()
        mine[0] = ca.held(PAGE)
        caller.unary("who", b"")

        def connected() -> bool:
            caller.turn()
            (found,) = pool._open.values()
            return found is not first and pool._state(found.channel) == READY

        until(connected)
        theirs[0] = ca.held(REVIEWS, dns=[NAME])
        assert caller.unary("who", b"").messages == [b"v1"]
    assert "Handshake failed" not in capfd.readouterr().err


@kinds
def test_plain_text_where_the_cluster_says_so(kind: str, ca: SmallCa) -> None:
    held = ca.held(PAGE)
    with grpc_server() as server, calling(kind, mesh_of(server.port, lambda: held, None)) as caller:
        assert caller.unary("who", b"").messages == [b"v1"]


@kinds
def test_tls_with_a_name_of_a_server_outside(kind: str, ca: SmallCa, tmp_path: Any) -> None:
    roots = tmp_path / "roots.pem"
    roots.write_text(ca.pem)
    tls = ClientTls(
        trust=Trust.FILE, ca_file=str(roots), mesh_identity=False, sni="api.outside.example", verify_host=True
    )
    for names, taken in (
        (["api.outside.example"], True),
        (["*.outside.example"], True),
        (["other.example"], False),
    ):
        with (
            grpc_server(credentials=serving(ca.held(REVIEWS, dns=names), mutual=False)) as server,
            calling(kind, mesh_of(server.port, lambda: None, tls)) as caller,
        ):
            if taken:
                assert caller.unary("who", b"").messages == [b"v1"]
            else:
                with pytest.raises(meshlib.ConnectFailed, match="not trusted"):
                    caller.unary("who", b"")


@kinds
def test_a_process_without_a_certificate_can_show_none(kind: str, ca: SmallCa) -> None:
    with (
        grpc_server(credentials=serving(ca.held(REVIEWS, dns=[NAME]))) as server,
        calling(kind, mesh_of(server.port, lambda: None)) as caller,
        pytest.raises(meshlib.ConnectFailed, match="no certificate of the mesh"),
    ):
        caller.unary("who", b"")


@kinds
def test_a_peer_that_says_nothing_in_the_handshake(kind: str, ca: SmallCa) -> None:
    held = ca.held(PAGE)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        mesh = fake_mesh([mute.getsockname()[1]], tls=EXACTLY, connect_timeout=0.2)
        mesh.contexts = Contexts(lambda: held)
        with calling(kind, mesh) as caller, pytest.raises(meshlib.ConnectTimedOut):
            caller.unary("who", b"")


@kinds
def test_a_certificate_without_a_dns_name_is_told(kind: str, ca: SmallCa) -> None:
    held = ca.held(PAGE)
    with (
        grpc_server(credentials=serving(ca.held(REVIEWS))) as server,
        calling(kind, mesh_of(server.port, lambda: held)) as caller,
        pytest.raises(meshlib.ConnectFailed, match="no DNS name"),
    ):
        caller.unary("who", b"")
