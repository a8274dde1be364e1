"""Messages that are begun and never ended: what they may cost the control service, and whom."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from support.hoarder import Hoarder, shows
from support.secure_control import CART, Secure, call, secure, workload

from meshlib.control.serve.budget import MEBIBYTE
from meshlib.identity.keys import make_csr, make_key
from meshlib.identity.spiffe import SpiffeId
from meshlib.xds import pb
from meshlib.xds.names import TRUST_ROOTS
from meshlib.xds.node import Client, Flavour, to_node

OTHER = SpiffeId("cluster.local", "bank", "teller")
LISTENER = "type.googleapis.com/envoy.config.listener.v3.Listener"
EXHAUSTED = "8"


def memory() -> float:
    """MiB of this process, in which the control service is."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / MEBIBYTE


def hoarder(it: Secure, who: SpiffeId = CART) -> Hoarder:
    return Hoarder(it.server.address, shows(it.authority.roots_pem, *workload(it.authority, who)))


@contextlib.asynccontextmanager
async def hoarding(
    it: Secure, connections: int, streams: int, **options: Any
) -> AsyncIterator[list[Hoarder]]:
    """Connections that hoard, while the block runs."""
    made = [hoarder(it) for _ in range(connections)]
    tasks = [asyncio.create_task(one.hoard(streams, **options)) for one in made]
    try:
        yield made
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        for one in made:
            one.close()


def held(it: Secure) -> int:
    """As the port counts it."""
    assert it.server._front is not None
    return it.server._front.budget.held


async def served(it: Secure) -> None:
    """Another workload gets a certificate."""
    async with it.channel(OTHER) as channel:
        csr = pb.IstioCertificateRequest(csr=make_csr(make_key(), None).decode())
        await call(channel, pb.CREATE_CERTIFICATE, csr, pb.IstioCertificateResponse)


@pytest.mark.parametrize("path", [pb.DELTA_ADS, pb.HDS, pb.LRS, pb.CREATE_CERTIFICATE, TRUST_ROOTS])
async def test_one_connection_is_refused_with_the_reason(path: str, tmp_path: Path) -> None:
    async with secure(tmp_path) as it:
        before = memory()
        async with hoarding(it, 1, 100, path=path) as (one,), asyncio.timeout(30):
            while not one.closed:
                await served(it)
                assert held(it) <= 8.25 * MEBIBYTE
        grown = memory() - before
    assert one.sent < 24 * MEBIBYTE  # what waits in sockets is sent, too
    assert set(one.ended.values()) == {
        (EXHAUSTED, "this connection holds more than 8.25 MiB in messages that are not whole")
    }
    assert grown < 40, grown


async def test_many_connections_hold_no_more_together(tmp_path: Path) -> None:
    async with secure(tmp_path) as it, it.channel(OTHER) as channel:
        stream = channel.stream_stream(pb.ADS, request_serializer=lambda m: m.SerializeToString())()
        await stream.write(
            pb.DiscoveryRequest(node=to_node(Client(Flavour.GRPC, "bank", "teller")), type_url=LISTENER)
        )
        before, most = memory(), 0
        async with hoarding(it, 24, 1) as all_of_them, asyncio.timeout(60):
            while sum(one.closed for one in all_of_them) < 8:  # 96 MiB are sent
                await served(it)
                most = max(most, held(it))
        grown = memory() - before
        refused = [one for one in all_of_them if one.closed]
        assert not stream.done()  # nobody else is
        stream.cancel()
    assert 32 * MEBIBYTE < most <= 64 * MEBIBYTE
    assert 8 <= len(refused) <= 16
    assert grown < 140, grown


async def test_a_large_client_is_let_in(tmp_path: Path) -> None:
    """Thousands of names on each of two streams, and what it held of an earlier one, all at once."""
    names = [f"service-{number}.some-namespace.svc.cluster.local:8080" for number in range(19_000)]
    node = to_node(Client(Flavour.MESHLIB, "shop", "cart", id="large"))
    asked = pb.DeltaDiscoveryRequest(
        node=node,
        type_url=LISTENER,
        resource_names_subscribe=names,
        initial_resource_versions=dict.fromkeys(names, "0123456789abcdef"),
    )
    assert asked.ByteSize() > 2 * MEBIBYTE
    async with secure(tmp_path) as it, it.channel(CART) as channel:
        streams = [
            channel.stream_stream(pb.DELTA_ADS, request_serializer=lambda m: m.SerializeToString())()
            for _ in range(3)
        ]
        await asyncio.gather(*(stream.write(asked) for stream in streams))
        async with asyncio.timeout(20):
            while [len(c.listeners) for c in it.hub.connections] != [len(names)] * 3:
                await asyncio.sleep(0.01)
        for stream in streams:
            assert not stream.done()
            stream.cancel()
    assert held(it) == 0
