"""Keys that an issuer publishes reach those who check its tokens, without a build that waits for them."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from joserfc.jwk import ECKey

from meshlib.control.build import Builder
from meshlib.control.built import Built
from meshlib.control.compile.authn import NOBODYS_KEY
from meshlib.control.jwks import KeyFetcher
from meshlib.control.registration import Registration
from meshlib.control.service import ControlService
from meshlib.control.sources.source import Loaded, MemorySource
from meshlib.xds import pb
from meshlib.xds.names import inbound_listener
from meshlib.xds.node import Client, Flavour

POLICY = """
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: jwt, namespace: default}
spec: {jwtRules: [{issuer: issuer, jwksUri: "%s"}]}
"""
LISTENER = inbound_listener(8080)


def keys_in(built: Built) -> str:
    """The keys that a configuration gives to a server."""
    (found,) = built.compiler.resources(Client(Flavour.MESHLIB), frozenset((LISTENER,)))
    manager = pb.unpack(found.message().filter_chains[0].filters[0].typed_config)
    jwt = pb.unpack(manager.http_filters[0].typed_config)
    return str(jwt.providers["origins-0"].local_jwks.inline_string)


@asynccontextmanager
async def issuer(text: str) -> AsyncIterator[tuple[str, asyncio.Event]]:
    """Publishes its keys once it may; its URL, and the event."""
    may = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await may.wait()
        writer.write(f"HTTP/1.1 200 OK\r\ncontent-length: {len(text)}\r\n\r\n{text}".encode())
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/keys", may


async def test_keys_arrive_after_the_configuration_and_change_it() -> None:
    text = json.dumps({"keys": [ECKey.generate_key("P-256").as_dict(private=False)]})
    loop, made = asyncio.get_running_loop(), asyncio.Queue[Built]()
    keys = KeyFetcher()
    builder = Builder(keys.want)

    def build(loaded: Loaded, servers: tuple[Registration, ...], version: str, roots: bytes) -> Built:
        built = builder(loaded, servers, version, roots)
        loop.call_soon_threadsafe(made.put_nowait, built)
        return built

    async with issuer(text) as (url, may):
        source = MemorySource(POLICY % url)
        async with ControlService(source, build, "127.0.0.1:0", allow_plaintext=True, keys=keys, grace=0.01):
            assert keys_in(await asyncio.wait_for(made.get(), 10)) == NOBODYS_KEY
            assert made.empty()
            may.set()
            assert json.loads(keys_in(await asyncio.wait_for(made.get(), 10))) == json.loads(text)
