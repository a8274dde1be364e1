"""Nodes at a control service over TLS: what they get for their workloads, and what is taken back."""

import asyncio
import contextlib
import time
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from support.secure_control import CART, Secure, call, refusal, secure

from meshlib.control.ca.nodes import Permissions, allow, remove
from meshlib.control.serve import server, signing
from meshlib.identity.chain import Purpose, check_peer, verify_chain
from meshlib.identity.keys import make_csr, make_key
from meshlib.identity.pem import to_der
from meshlib.identity.spiffe import SpiffeId
from meshlib.xds import pb
from meshlib.xds.node import Client, Flavour, to_node

VM1 = SpiffeId("cluster.local", "meshlib-node", "vm1")
VM2 = SpiffeId("cluster.local", "meshlib-node", "vm2")
TELLER = SpiffeId("cluster.local", "bank", "teller")
LISTENERS = "type.googleapis.com/envoy.config.listener.v3.Listener"


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(server, "RELOAD_SECONDS", 0.02)
    allow(tmp_path / "state", "vm1", ["shop/cart"])
    allow(tmp_path / "state", "vm2", ["bank/*"])
    return tmp_path / "state"


def serving(state: Path) -> Any:
    return secure(state.parent, nodes=Permissions(state))


def request(whom: SpiffeId | None = None, **fields: Any) -> Any:
    made = pb.IstioCertificateRequest(csr=make_csr(make_key(), None).decode(), **fields)
    if whom is not None:
        made.metadata.update({"ImpersonatedIdentity": str(whom)})
    return made


async def certified(channel: grpc.aio.Channel, whom: SpiffeId | None, **options: Any) -> list[bytes]:
    """DER of the chain for `whom`, without the root."""
    reply = await call(channel, pb.CREATE_CERTIFICATE, request(whom), pb.IstioCertificateResponse, **options)
    return [der for pem in reply.cert_chain for der in to_der(pem)][:-1]


def joining(whom: SpiffeId, **metadata: Any) -> Any:
    who = Client(Flavour.MESHLIB, whom.namespace, whom.service_account, id=f"workload~{whom.service_account}")
    message = pb.HealthCheckRequestOrEndpointHealthResponse()
    extra = {"PORTS": {"http": 80}, "NODE_NAME": "vm1", **metadata}
    message.health_check_request.node.CopyFrom(to_node(who, extra=extra))
    return message


def healthy() -> Any:
    message = pb.HealthCheckRequestOrEndpointHealthResponse()
    found = message.endpoint_health_response.endpoints_health.add(health_status=1)
    found.endpoint.address.socket_address.address = "10.0.0.9"
    found.endpoint.address.socket_address.port_value = 80
    return message


def following(name: str = "vm1") -> Any:
    who = Client(Flavour.NODE, "meshlib-node", name, node=name, id=f"node~{name}")
    return pb.DiscoveryRequest(node=to_node(who), type_url=LISTENERS)


async def stream(channel: grpc.aio.Channel, path: str, *messages: Any) -> Any:
    made = channel.stream_stream(path, request_serializer=lambda m: m.SerializeToString())()
    for message in messages:
        await made.write(message)
    return made


async def ended(of: Any) -> tuple[str, str]:
    async with asyncio.timeout(30):
        with contextlib.suppress(grpc.aio.AioRpcError):  # which says no more than this
            async for _ in of:
                pass
        return (await of.code()).name, await of.details() or ""


async def until(it: Secure, count: int) -> None:
    async with asyncio.timeout(30):
        while len(it.server.registrar.registrations) != count:
            await asyncio.sleep(0.01)


async def test_a_node_joins_and_gets_certificates_for_its_workloads(state: Path) -> None:
    async with serving(state) as it:
        async with it.channel() as channel:
            own = await certified(channel, None, metadata=it.bearer(VM1, single_use=True))
        async with it.channel(VM1) as channel:
            chain = await certified(channel, CART)
        checks = {"trust_domains": ["cluster.local"], "now": time.time(), "purpose": Purpose.CLIENT}
        assert (check_peer(own, **checks), check_peer(chain, **checks)) == (VM1, CART)
        verify_chain(chain, it.authority.roots_pem, time.time())


async def test_what_it_may_not_have_it_is_told(state: Path) -> None:
    async with serving(state) as it, it.channel(VM1) as one, it.channel(VM2) as two:
        for channel, whom in ((one, TELLER), (two, CART), (one, VM2), (two, VM1)):
            code, text = await refusal(channel, pb.CREATE_CERTIFICATE, request(whom))
            assert (code, f"may not speak for {whom}" in text) == ("PERMISSION_DENIED", True)
        await certified(two, TELLER)
        code, _ = await refusal(one, pb.CREATE_CERTIFICATE, request(CART, validity_duration=86401))
        assert code == "INVALID_ARGUMENT"


async def test_a_token_for_single_use_is_not_spent_on_a_workload(state: Path) -> None:
    async with serving(state) as it, it.channel() as channel:
        once = it.bearer(VM1, single_use=True)
        code, text = await refusal(channel, pb.CREATE_CERTIFICATE, request(CART), metadata=once)
        assert (code, "come back with that" in text) == ("PERMISSION_DENIED", True)
        await certified(channel, None, metadata=once)
        code, text = await refusal(channel, pb.CREATE_CERTIFICATE, request(), metadata=once)
        assert (code, text) == ("UNAUTHENTICATED", "the token is for single use and was used")


async def test_a_node_that_asks_too_often_takes_nothing_from_the_workload_itself(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signing, "BURST", 2)
    monkeypatch.setattr(signing, "PER_SECOND", 0.001)
    async with serving(state) as it, it.channel(VM1) as node, it.channel(CART) as cart:
        await certified(node, CART)
        await certified(node, None)
        code, text = await refusal(node, pb.CREATE_CERTIFICATE, request(CART))
        assert (code, f"{VM1} asks for certificates too often" in text) == ("RESOURCE_EXHAUSTED", True)
        await certified(cart, None)


async def test_a_workload_at_a_nodes_host_is_not_taken_for_renewed(state: Path) -> None:
    async with serving(state) as it, it.channel(VM1) as node, it.channel(CART) as cart:
        who = to_node(Client(Flavour.MESHLIB, "shop", "cart"))
        follows = await stream(cart, pb.ADS, pb.DiscoveryRequest(node=who, type_url=LISTENERS))
        async with asyncio.timeout(30):
            while not it.hub.connections:
                await asyncio.sleep(0.01)
        caller = it.hub.connections[0].caller
        await certified(node, CART)
        assert it.server.renewed(caller) is False
        await certified(cart, None)
        assert it.server.renewed(caller) is True
        follows.cancel()


async def test_a_registration_on_behalf_of_a_workload(state: Path) -> None:
    async with serving(state) as it, it.channel(VM1) as node, it.channel(CART) as cart:
        joined = await stream(node, pb.HDS, joining(CART, UID="a"), healthy())
        await until(it, 1)
        (found,) = it.server.registrar.registrations
        assert (found.namespace, found.service_account, found.node) == ("shop", "cart", "vm1")
        for channel, message in (
            (node, joining(TELLER)),
            (node, joining(CART, NODE_NAME="vm2")),
            (cart, joining(CART)),
            (cart, joining(CART, NODE_NAME="")),
        ):
            assert (await ended(await stream(channel, pb.HDS, message)))[0] == "PERMISSION_DENIED"
        both = await stream(node, pb.HDS, joining(CART, UID="b"), joining(CART, UID="c"))
        assert await ended(both) == ("INVALID_ARGUMENT", "a stream of a node is of one workload")
        await until(it, 1)
        joined.cancel()


async def test_what_is_taken_back_from_a_node_that_runs(state: Path) -> None:
    allow(state, "vm1", ["shop/cart", "shop/till"])
    till = SpiffeId("cluster.local", "shop", "till")
    async with serving(state) as it, it.channel(VM1) as node, it.channel(CART) as cart:
        it.server.registrar._grace = 0.0
        carts = await stream(node, pb.HDS, joining(CART, UID="a"), healthy())
        tills = await stream(node, pb.HDS, joining(till, UID="b"), healthy())
        follows = await stream(node, pb.ADS, following())
        others = await stream(cart, pb.HDS, joining(CART, NODE_NAME="vm1"))
        assert (await ended(others))[0] == "PERMISSION_DENIED"
        await until(it, 2)

        allow(state, "vm1", ["shop/till"])
        code, text = await ended(carts)
        assert (code, f"may not speak for {CART}" in text) == ("PERMISSION_DENIED", True)
        await until(it, 1)
        assert not tills.done()
        assert not follows.done()
        assert (await refusal(node, pb.CREATE_CERTIFICATE, request(CART)))[0] == "PERMISSION_DENIED"

        remove(state, "vm1")
        for one in (tills, follows):
            assert "the node vm1 is not known" in (await ended(one))[1]
        await until(it, 0)
        assert (await refusal(node, pb.CREATE_CERTIFICATE, request()))[0] == "PERMISSION_DENIED"
        assert (await ended(await stream(node, pb.ADS, following())))[0] == "PERMISSION_DENIED"

        allow(state, "vm1", ["shop/cart"])
        again = await stream(node, pb.HDS, joining(CART, UID="a"), healthy())
        await until(it, 1)
        again.cancel()


async def test_only_the_node_follows_its_configuration(state: Path) -> None:
    async with serving(state) as it, it.channel(VM2) as other, it.channel(CART) as cart:
        for channel in (other, cart):
            assert (await ended(await stream(channel, pb.ADS, following("vm1"))))[0] == "PERMISSION_DENIED"
        follows = await stream(other, pb.ADS, following("vm2"))
        async with asyncio.timeout(30):
            while not (it.hub.connections and it.hub.connections[0].stream.client):
                await asyncio.sleep(0.01)
        client = it.hub.connections[0].stream.client
        assert client is not None
        assert (client.flavour, client.node) == (Flavour.NODE, "vm2")
        follows.cancel()
