"""A control server with a real authority, over TLS, and clients of gRPC for it."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from meshlib.control.ca.authority import Authority
from meshlib.control.ca.request import service_names
from meshlib.control.ca.tokens import JoinTokens
from meshlib.control.serve.push import Hub
from meshlib.control.serve.server import ControlServer, Security
from meshlib.identity.keys import make_csr, make_key
from meshlib.identity.pem import join_pem
from meshlib.identity.spiffe import SpiffeId
from meshlib.xds import pb
from meshlib.xds.names import CONTROL_SERVER

DOMAIN = "cluster.local"
CART = SpiffeId(DOMAIN, "shop", "cart")
OPERATOR = SpiffeId(DOMAIN, "istio-system", "operator")
NAMED = (("grpc.ssl_target_name_override", CONTROL_SERVER), ("grpc.enable_http_proxy", 0))


def workload(authority: Authority, who: SpiffeId, life: int = 3600) -> tuple[bytes, bytes]:
    """A key and the chain that the authority signed for it, both PEM."""
    key = make_key()
    chain = authority.sign(make_csr(key, None).decode(), who, life, time.time(), service_names(who))
    return key, join_pem(chain[:-1]).encode()


@dataclass
class Secure:
    """A running control server with all that it is made of."""

    server: ControlServer
    authority: Authority
    tokens: JoinTokens
    hub: Hub

    def credentials(self, who: SpiffeId | None = None) -> grpc.ChannelCredentials:
        """Trusting the authority; with a certificate of `who`, if given."""
        key, chain = workload(self.authority, who) if who else (None, None)
        return grpc.ssl_channel_credentials(self.authority.roots_pem.encode(), key, chain)

    def channel(self, who: SpiffeId | None = None, **options: Any) -> grpc.aio.Channel:
        """A connection of its own to the server."""
        alone = (("grpc.use_local_subchannel_pool", 1), *NAMED, *options.items())
        return grpc.aio.secure_channel(self.server.address, self.credentials(who), options=alone)

    def bearer(
        self, who: SpiffeId, life: int = 60, now: float | None = None, **options: Any
    ) -> tuple[tuple[str, str], ...]:
        """Metadata with a join token."""
        token = self.tokens.issue(who, life, time.time() if now is None else now, **options)
        return (("authorization", f"Bearer {token}"),)


@asynccontextmanager
async def secure(folder: Path, hub: Hub | None = None, **options: Any) -> AsyncIterator[Secure]:
    """A control server on loopback; `options` are those of `Security`."""
    hub = hub or Hub()
    now = options.get("wall", time.time)()
    authority = Authority.open(folder / "state", trust_domain=DOMAIN, now=now)
    tokens = JoinTokens.open(folder / "state")
    server = ControlServer(
        hub, "127.0.0.1:0", security=Security(authority, tokens, **options), status=lambda: {"version": "1"}
    )
    await server.start()
    try:
        yield Secure(server, authority, tokens, hub)
    finally:
        await server.stop()


async def call(channel: grpc.aio.Channel, path: str, request: Any, reply: Any, **options: Any) -> Any:
    """One unary call."""
    method = channel.unary_unary(
        path, request_serializer=lambda m: m.SerializeToString(), response_deserializer=reply.FromString
    )
    return await method(request, timeout=60, **options)


async def refusal(channel: grpc.aio.Channel, path: str, request: Any, **options: Any) -> tuple[str, str]:
    """Code and text with which a unary call fails."""
    try:
        reply = await call(channel, path, request, pb.Struct, **options)
    except grpc.aio.AioRpcError as error:
        return error.code().name, error.details() or ""
    raise AssertionError(f"answered: {reply}")
