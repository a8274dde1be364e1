"""The control service over TLS: who gets in, as whom, and what a stranger may do."""

import asyncio
import time
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from cryptography import x509
from support.secure_control import CART, OPERATOR, Secure, call, refusal, secure

from meshlib.control.serve import callers, server, signing
from meshlib.control.serve.server import STATUS
from meshlib.identity.chain import Purpose, check_peer, verify_chain
from meshlib.identity.keys import make_csr, make_key
from meshlib.identity.pem import to_der
from meshlib.identity.spiffe import SpiffeId
from meshlib.xds import pb
from meshlib.xds.names import TRUST_ROOTS
from meshlib.xds.node import Client, Flavour, to_node

OTHER = SpiffeId("cluster.local", "bank", "teller")


def request(**fields: Any) -> Any:
    csr = make_csr(make_key(), OTHER).decode()
    return pb.IstioCertificateRequest(**{"csr": csr, **fields})


async def test_the_roots_are_for_everyone(tmp_path: Path) -> None:
    async with secure(tmp_path) as it, it.channel() as channel:
        reply = await call(channel, TRUST_ROOTS, pb.Struct(), pb.Struct)
        assert pb.to_dict(reply) == {"roots": it.authority.roots_pem}


@pytest.mark.parametrize("path", [STATUS, pb.CREATE_CERTIFICATE])
async def test_a_stranger_is_refused(path: str, tmp_path: Path) -> None:
    async with secure(tmp_path) as it, it.channel() as channel:
        code, text = await refusal(channel, path, pb.Struct())
    assert (code, text) == (
        "UNAUTHENTICATED",
        "there is neither a client certificate nor a token; see `meshlib ca token`",
    )


async def test_a_token_gives_a_certificate_and_that_the_next_one(tmp_path: Path) -> None:
    async with secure(tmp_path) as it:
        async with it.channel() as channel:
            reply = await call(
                channel,
                pb.CREATE_CERTIFICATE,
                request(validity_duration=600),
                pb.IstioCertificateResponse,
                metadata=it.bearer(CART),
            )
        chain = [der for pem in reply.cert_chain for der in to_der(pem)]
        now = time.time()
        # The request's own names count for nothing.
        assert (
            check_peer(chain[:-1], trust_domains=["cluster.local"], now=now, purpose=Purpose.CLIENT) == CART
        )
        verify_chain(chain[:-1], it.authority.roots_pem, now)
        leaf = x509.load_der_x509_certificate(chain[0])
        assert 590 < leaf.not_valid_after_utc.timestamp() - now <= 601
        async with it.channel(CART) as channel:
            again = await call(channel, pb.CREATE_CERTIFICATE, request(), pb.IstioCertificateResponse)
        renewed = x509.load_pem_x509_certificate(again.cert_chain[0].encode())
        assert 86390 < renewed.not_valid_after_utc.timestamp() - now <= 86410


async def test_a_token_for_single_use_is_good_for_one_certificate(tmp_path: Path) -> None:
    async with secure(tmp_path) as it, it.channel() as channel:
        once = it.bearer(CART, single_use=True)
        code, text = await refusal(
            channel, pb.CREATE_CERTIFICATE, pb.IstioCertificateRequest(csr="nonsense"), metadata=once
        )
        assert (code, text) == ("INVALID_ARGUMENT", "the request must be one PEM block")
        stream = channel.stream_stream(pb.ADS)(metadata=once)
        assert await ended(stream) == (
            "PERMISSION_DENIED",
            "a token for single use is good for a certificate only; come back with that",
        )
        await call(channel, pb.CREATE_CERTIFICATE, request(), pb.IstioCertificateResponse, metadata=once)
        code, text = await refusal(channel, pb.CREATE_CERTIFICATE, request(), metadata=once)
        assert (code, text) == ("UNAUTHENTICATED", "the token is for single use and was used")


async def test_of_a_crowd_with_one_token_for_single_use_one_gets_in(tmp_path: Path) -> None:
    async with secure(tmp_path) as it, it.channel() as channel:
        once = it.bearer(CART, single_use=True)
        done = await asyncio.gather(
            *(
                call(channel, pb.CREATE_CERTIFICATE, request(), pb.IstioCertificateResponse, metadata=once)
                for _ in range(10)
            ),
            return_exceptions=True,
        )
    assert sum(not isinstance(one, BaseException) for one in done) == 1


@pytest.mark.parametrize(
    ("fields", "code", "text"),
    [
        ({"csr": ""}, "INVALID_ARGUMENT", "the request must be one PEM block"),
        ({"csr": "x" * 20_000}, "INVALID_ARGUMENT", "the request has 20000 characters; at most 16384"),
        ({"metadata": {"x": "x" * 40_000}}, "INVALID_ARGUMENT", "at most 32768 are taken"),
        ({"validity_duration": 90 * 86400 + 1}, "INVALID_ARGUMENT", "at most 7776000 are given"),
        ({"metadata": {"ImpersonatedIdentity": "x"}}, "PERMISSION_DENIED", "made out to the caller only"),
    ],
)
async def test_a_bad_request_is_refused_with_the_reason(
    fields: dict[str, Any], code: str, text: str, tmp_path: Path
) -> None:
    async with secure(tmp_path) as it, it.channel(CART) as channel:
        found = await refusal(channel, pb.CREATE_CERTIFICATE, request(**fields))
    assert found[0] == code
    assert text in found[1]


async def test_a_message_that_is_too_large_is_refused_and_others_go_on(tmp_path: Path) -> None:
    async with secure(tmp_path) as it, it.channel(CART) as channel, it.channel(CART) as other:
        found = await refusal(channel, pb.CREATE_CERTIFICATE, request(csr="x" * (5 * 1024 * 1024)))
        assert found[0] == "RESOURCE_EXHAUSTED"
        await call(other, pb.CREATE_CERTIFICATE, request(), pb.IstioCertificateResponse)


async def test_an_expired_authority_is_a_failed_precondition(tmp_path: Path) -> None:
    async with secure(tmp_path) as it, it.channel(CART) as channel:
        await call(channel, pb.CREATE_CERTIFICATE, request(), pb.IstioCertificateResponse)
        sign = it.authority.sign
        later = time.time() + 11 * 365 * 86400
        it.authority.sign = lambda csr, who, ttl, now, dns=(): sign(csr, who, ttl, later, dns)  # type: ignore[method-assign]
        found = await refusal(channel, pb.CREATE_CERTIFICATE, request())
    assert found[0] == "FAILED_PRECONDITION"
    assert "the signing certificate ended" in found[1]


async def test_one_identity_that_asks_too_often_is_held_back_and_others_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signing, "PER_SECOND", 1)  # however long it takes
    async with secure(tmp_path) as it, it.channel(CART) as flood, it.channel(OTHER) as other:
        wanted = request()
        # Then the client has heard how many streams a connection may have, and keeps the others back.
        await call(flood, pb.CREATE_CERTIFICATE, wanted, pb.IstioCertificateResponse)
        asked = [
            asyncio.create_task(call(flood, pb.CREATE_CERTIFICATE, wanted, pb.IstioCertificateResponse))
            for _ in range(500)
        ]
        await call(other, pb.CREATE_CERTIFICATE, request(), pb.IstioCertificateResponse)
        done = await asyncio.gather(*asked, return_exceptions=True)
    codes = [one.code().name for one in done if isinstance(one, grpc.aio.AioRpcError)]
    # gRPC counts a stream that has just ended for a moment longer at one end than at the other.
    assert codes.count("RESOURCE_EXHAUSTED") > 200
    assert set(codes) <= {"RESOURCE_EXHAUSTED", "UNAVAILABLE"}
    assert 199 <= 500 - len(codes) < 350


# Streams


async def ended(stream: Any) -> tuple[str, str]:
    """Code and text with which a stream ends."""
    code = await asyncio.wait_for(stream.code(), 30)
    return code.name, await stream.details() or ""


async def said(it: Secure, path: str, message: Any, patience: float = 30) -> tuple[str, str] | None:
    """How a stream with that first message ends; None: it goes on."""
    async with it.channel(CART) as channel:
        stream = channel.stream_stream(path, request_serializer=lambda m: m.SerializeToString())()
        await stream.write(message)
        try:
            async with asyncio.timeout(patience):
                code = await stream.code()
        except TimeoutError:
            stream.cancel()
            return None
        return code.name, await stream.details() or ""


def asking(namespace: str | None, account: str | None, node_id: str = "a") -> Any:
    node = to_node(Client(Flavour.MESHLIB, id=node_id))
    for name, value in (("NAMESPACE", namespace), ("SERVICE_ACCOUNT", account)):
        if value is None:
            del node.metadata.fields[name]
        else:
            node.metadata[name] = value
    return pb.DiscoveryRequest(node=node, type_url="type.googleapis.com/envoy.config.listener.v3.Listener")


@pytest.mark.parametrize(
    ("namespace", "account"), [("shop", "cart"), (None, "cart"), ("shop", None), ("", "")]
)
async def test_a_node_may_leave_out_what_its_identity_says(
    namespace: str | None, account: str | None, tmp_path: Path
) -> None:
    async with secure(tmp_path) as it, it.channel(CART) as channel:
        stream = channel.stream_stream(pb.ADS, request_serializer=lambda m: m.SerializeToString())()
        await stream.write(asking(namespace, account))
        async with asyncio.timeout(30):
            while not (it.hub.connections and it.hub.connections[0].stream.client):
                await asyncio.sleep(0.01)
        client = it.hub.connections[0].stream.client
        assert client is not None
        assert (client.namespace, client.service_account) == ("shop", "cart")
        assert it.hub.connections[0].peer.startswith("127.0.0.1:")
        stream.cancel()


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (asking("bank", "cart"), "the node says NAMESPACE 'bank'"),
        (asking("shop", "teller"), "the node says SERVICE_ACCOUNT 'teller'"),
        (
            asking("shop", "cart", "sidecar~10.0.0.1~pod.bank~bank.svc"),
            "the node's id is of namespace 'bank'",
        ),
    ],
)
async def test_a_node_that_says_it_is_another_is_refused(message: Any, text: str, tmp_path: Path) -> None:
    async with secure(tmp_path) as it:
        found = await said(it, pb.ADS, message)
    assert found is not None
    assert found[0] == "PERMISSION_DENIED"
    assert text in found[1]
    assert "spiffe://cluster.local/ns/shop/sa/cart" in found[1]


async def test_a_server_registers_as_itself_only(tmp_path: Path) -> None:
    def joining(namespace: str) -> Any:
        who = Client(Flavour.MESHLIB, namespace, "cart", id="a")
        message = pb.HealthCheckRequestOrEndpointHealthResponse()
        message.health_check_request.node.CopyFrom(to_node(who, extra={"PORTS": {"http": 80}}))
        return message

    async with secure(tmp_path) as it:
        found = await said(it, pb.HDS, joining("bank"))
        assert found is not None
        assert found[0] == "PERMISSION_DENIED"
        assert await said(it, pb.HDS, joining("shop"), 0.5) is None


@pytest.mark.parametrize("path", [pb.ADS, pb.DELTA_ADS, pb.HDS, pb.LRS])
async def test_no_stream_without_a_caller(path: str, tmp_path: Path) -> None:
    async with secure(tmp_path) as it, it.channel() as channel:
        assert (await ended(channel.stream_stream(path)()))[0] == "UNAUTHENTICATED"


async def test_status_is_for_operators(tmp_path: Path) -> None:
    async with secure(tmp_path) as it, it.channel(CART) as workload, it.channel() as bare:
        code, text = await refusal(workload, STATUS, pb.Struct())
        assert (code, "is no operator" in text) == ("PERMISSION_DENIED", True)
        reply = await call(bare, STATUS, pb.Struct(), pb.Struct, metadata=it.bearer(OPERATOR))
        assert pb.to_dict(reply) == {"version": "1"}


async def test_a_token_of_another_trust_domain_is_refused(tmp_path: Path) -> None:
    async with secure(tmp_path) as it, it.channel() as channel:
        foreign = it.bearer(SpiffeId("evil.example", "shop", "cart"))
        code, text = await refusal(channel, pb.CREATE_CERTIFICATE, request(), metadata=foreign)
    assert code == "UNAUTHENTICATED"
    assert "another mesh than cluster.local" in text


async def test_bad_tokens_cost_their_sender_the_connection_and_nobody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(callers, "FAILURES_PER_SECOND", 0.1)  # however long it takes
    async with secure(tmp_path) as it, it.channel() as flood, it.channel() as other:
        bad = (("authorization", "Bearer a.b.c"),)
        codes = [(await refusal(flood, pb.CREATE_CERTIFICATE, request(), metadata=bad))[0] for _ in range(80)]
        assert codes.count("RESOURCE_EXHAUSTED") > 10
        assert codes.count("UNAUTHENTICATED") >= 20
        good = it.bearer(CART)
        await call(other, pb.CREATE_CERTIFICATE, request(), pb.IstioCertificateResponse, metadata=good)


async def test_an_open_connection_gives_a_certificate_no_longer_life(tmp_path: Path) -> None:
    ahead = 0.0
    async with secure(tmp_path, wall=lambda: time.time() + ahead) as it, it.channel(CART) as channel:
        await call(channel, pb.CREATE_CERTIFICATE, request(), pb.IstioCertificateResponse)
        ahead = 3601.0
        code, text = await refusal(channel, pb.CREATE_CERTIFICATE, request())
        assert (code, "it has ended" in text) == ("UNAUTHENTICATED", True), text


async def test_a_root_that_is_given_up_ends_what_it_vouched_for(tmp_path: Path) -> None:
    async with secure(tmp_path) as it, it.channel(CART) as channel:
        await call(channel, pb.CREATE_CERTIFICATE, request(), pb.IstioCertificateResponse)
        it.authority.rotate_root(time.time(), overlap_s=0, keep_s=0)
        it.authority.reload(time.time())
        code, text = await refusal(channel, pb.CREATE_CERTIFICATE, request())
        assert (code, "given up a root" in text) == ("UNAUTHENTICATED", True), text
        # The connection is ended, and a new one with that certificate is not taken.
        async with asyncio.timeout(30):
            while (code := (await refusal(channel, pb.CREATE_CERTIFICATE, request()))[0]) != "UNAVAILABLE":
                await asyncio.sleep(0.05)


async def test_idle_connections_end_with_their_certificate(tmp_path: Path) -> None:
    ahead = 0.0
    async with secure(tmp_path, wall=lambda: time.time() + ahead) as it, it.channel(CART) as channel:
        await call(channel, pb.CREATE_CERTIFICATE, request(), pb.IstioCertificateResponse)
        front = it.server._front
        assert front is not None
        assert front.connections == 1
        ahead = 3601.0
        async with asyncio.timeout(30):
            while front.connections:
                await asyncio.sleep(0.05)


# Tokens that end


@pytest.fixture
def looked_at_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "RELOAD_SECONDS", 0.02)


async def introduced(it: Secure, count: int) -> None:
    """Waits for so many clients that said who they are."""
    async with asyncio.timeout(30):
        while sum(c.stream.client is not None for c in it.hub.connections) < count:
            await asyncio.sleep(0.01)


async def begun(
    channel: grpc.aio.Channel, path: str, message: Any, metadata: tuple[tuple[str, str], ...] = ()
) -> Any:
    stream = channel.stream_stream(path, request_serializer=lambda m: m.SerializeToString())(
        metadata=metadata
    )
    await stream.write(message)
    return stream


@pytest.mark.usefixtures("looked_at_often")
async def test_a_stream_ends_with_its_token_unless_the_connection_showed_a_certificate(
    tmp_path: Path,
) -> None:
    ahead = 0.0
    async with (
        secure(tmp_path, wall=lambda: time.time() + ahead) as it,
        it.channel() as bare,
        it.channel(CART) as known,
    ):
        first = asking("shop", "cart")
        by_token = await begun(bare, pb.ADS, first, it.bearer(CART, life=60))
        by_a_longer_one = await begun(bare, pb.ADS, first, it.bearer(CART, life=600))
        by_certificate = await begun(known, pb.ADS, first, it.bearer(CART, life=60))
        await introduced(it, 3)
        ahead = 61.0
        assert await ended(by_token) == (
            "UNAUTHENTICATED",
            "the token that this call began with has ended; come back",
        )
        # And does not come back with it.
        code, _ = await ended(await begun(bare, pb.ADS, first, it.bearer(CART, 60, time.time())))
        assert code == "UNAUTHENTICATED"
        for stream in (by_certificate, by_a_longer_one):
            assert not stream.done()
            stream.cancel()


@pytest.mark.usefixtures("looked_at_often")
async def test_a_stream_by_a_token_of_kubernetes_ends_with_it(tmp_path: Path) -> None:
    until = time.time() + 0.5

    class Pods:
        async def verify(self, token: str, now: float) -> tuple[SpiffeId, float]:
            return CART, until

    pods: Any = Pods()
    async with secure(tmp_path, pods=pods) as it, it.channel() as channel:
        stream = await begun(
            channel,
            pb.ADS,
            asking("shop", "cart"),
            (("authorization", "Bearer eyJhbGciOiJSUzI1NiJ9.e30.c2ln"),),
        )
        assert (await ended(stream))[0] == "UNAUTHENTICATED"
        assert time.time() >= until


@pytest.mark.usefixtures("looked_at_often")
async def test_a_server_whose_token_ends_comes_back_by_certificate_and_never_left(tmp_path: Path) -> None:
    who = Client(Flavour.MESHLIB, "shop", "cart", id="a")
    hello, healthy = (pb.HealthCheckRequestOrEndpointHealthResponse() for _ in range(2))
    hello.health_check_request.node.CopyFrom(to_node(who, extra={"PORTS": {"http": 80}}))
    endpoint = healthy.endpoint_health_response.endpoints_health.add(health_status=1).endpoint
    endpoint.address.socket_address.address, endpoint.address.socket_address.port_value = "127.0.0.1", 80
    ahead, seen = 0.0, []
    async with secure(tmp_path, wall=lambda: time.time() + ahead) as it:
        it.server.registrar._on_change = seen.append
        async with it.channel() as bare, it.channel(CART) as known:
            by_token = await begun(bare, pb.HDS, hello, it.bearer(CART, life=60))
            await by_token.read()
            await by_token.write(healthy)
            async with asyncio.timeout(30):
                while not seen:
                    await asyncio.sleep(0.01)
            ahead = 61.0
            assert (await ended(by_token))[0] == "UNAUTHENTICATED"
            again = await begun(known, pb.HDS, hello)
            await again.write(healthy)
            await again.read()
            await asyncio.sleep(0.1)
            assert [[one.id for one in change] for change in seen] == [["a@127.0.0.1/http:80"]]
            again.cancel()
