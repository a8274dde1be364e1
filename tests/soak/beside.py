"""A real Envoy beside the library, fed by the same control service: an outbound proxy with a certificate.

For calls to other workloads it asks the control service for its certificate, whose key that never has. So it
is made where configurations are built, and again every few seconds; the one for the control stream is renewed
as any workload's.
"""

import asyncio
import dataclasses
import tempfile
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from support.envoy import RealEnvoy, run_envoy
from support.secure_control import workload

from meshlib.agent.bootstrap import SDS_SOCKET, Edge, gateway_bootstrap
from meshlib.agent.sds import SecretServer
from meshlib.agent.secrets import Secrets, certificate
from meshlib.bootstrap import bootstrap
from meshlib.control.build import Builder
from meshlib.control.built import Built
from meshlib.control.ca.authority import Authority
from meshlib.control.serve.closures import Compiler
from meshlib.dataplane.certs import Certs
from meshlib.identity.spiffe import SpiffeId
from meshlib.xds.kinds import Kind
from meshlib.xds.names import OWN_SECRET
from meshlib.xds.node import Client, Flavour
from meshlib.xds.snapshot import Resource

RENEWED = 5.0
"""Seconds."""


class Building:
    """Builds what is built anyway, and a certificate for the Envoy."""

    def __init__(self, authority: Authority, account: str, life: int) -> None:
        self._build = Builder(trust_domain=authority.trust_domain)
        self._authority, self._life = authority, life
        self._who = SpiffeId(authority.trust_domain, "default", account)
        self._made: Resource | None = None
        self._until = 0.0

    def __call__(self, *arguments: Any) -> Built:
        built = self._build(*arguments)
        return dataclasses.replace(built, compiler=_WithOwn(built.compiler, self._own()))

    def _own(self) -> Resource:
        if self._made is None or time.monotonic() > self._until:
            key, chain = workload(self._authority, self._who, self._life)
            self._made = Resource.of(Kind.SECRET, OWN_SECRET, certificate(OWN_SECRET, chain, key))
            self._until = time.monotonic() + RENEWED
        return self._made


class _WithOwn:
    """A compiler whose Envoys are given a certificate."""

    def __init__(self, compiler: Compiler, own: Resource) -> None:
        self.version = compiler.version
        self._compiler, self._own = compiler, own

    def resources(self, client: Client, listeners: frozenset[str]) -> Iterable[Resource]:
        """All, and the certificate."""
        yield from self._compiler.resources(client, listeners)
        if client.flavour is Flavour.ENVOY:
            yield self._own


@asynccontextmanager
async def envoy_beside(settings: dict[str, Any], ports: set[int]) -> AsyncIterator[RealEnvoy]:
    """Runs until the block ends; at its beginning it listens at these ports."""
    known = bootstrap(**settings)
    certs = Certs(known)
    certs.use()
    with tempfile.TemporaryDirectory() as name:  # a short one: the path of a socket has a bound
        folder = Path(name)
        try:
            await asyncio.to_thread(certs.ensure)
            async with SecretServer(Secrets(lambda: certs.held), folder / SDS_SOCKET):
                made = gateway_bootstrap(known, Edge("soak"), folder)
                metadata = {"NAMESPACE": known.namespace, "GENERATOR": "envoy"}
                made["node"] = {"id": "envoy-beside", "cluster": "proxy", "metadata": metadata}
                async with run_envoy(made, folder) as envoy:
                    while not ports <= await _listened(envoy):
                        await asyncio.sleep(0.05)
                    yield envoy
        finally:
            certs.close()


async def _listened(envoy: RealEnvoy) -> set[int]:
    lines = (await envoy.get("/listeners")).decode().split()
    return {int(line.rpartition(":")[2]) for line in lines if line.rpartition(":")[2].isdecimal()}
