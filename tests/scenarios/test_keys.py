"""Keys that an issuer publishes reach those who check its tokens, without a build that waits for them."""

import asyncio
import http.server
import json
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
from joserfc.jwk import ECKey
from support.commands import wait_until
from support.oracle_policies import Signers
from support.policed import PAGE, gate, peer
from support.policed import POLICY as SERVICE

from meshlib.control.build import Builder
from meshlib.control.built import Built
from meshlib.control.compile.authn import NOBODYS_KEY
from meshlib.control.graph.policies import KeySource
from meshlib.control.jwks import KeyErrands, KeyFetcher
from meshlib.control.registration import Registration
from meshlib.control.service import ControlService
from meshlib.control.sources.source import Loaded, MemorySource
from meshlib.core.actions import Reply
from meshlib.core.inbound import Admitted
from meshlib.core.request import RequestHead
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
            assert keys_in(await asyncio.wait_for(made.get(), 30)) == NOBODYS_KEY
            assert made.empty()
            may.set()
            assert json.loads(keys_in(await asyncio.wait_for(made.get(), 30))) == json.loads(text)


# A folder instead of a control service


class Published:
    """A server that publishes a key set; how often it was asked."""

    def __init__(self) -> None:
        self.keys, self.status, self.asked = "", 200, 0

    @contextmanager
    def at(self) -> Iterator[str]:
        """Its URL."""
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked += 1
                self.send_response(outer.status)
                self.send_header("content-length", str(len(outer.keys)))
                self.end_headers()
                self.wfile.write(outer.keys.encode())

            def log_message(self, *_: object) -> None:
                """Silence."""

        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
            thread.start()
            try:
                yield f"http://127.0.0.1:{server.server_address[1]}/keys"
            finally:
                server.shutdown()
                thread.join()


TOKENS = """
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: tokens}
spec:
  selector: {matchLabels: {app: reviews}}
  jwtRules: [{issuer: me, jwksUri: "%s"}]
"""


def test_a_folder_fetches_keys_too_and_again_after_a_failure(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    signer, issuer = Signers(), Published()
    token = signer.token(
        {"alg": "RS256", "kid": "r"}, {"iss": "me", "sub": "jason", "exp": int(time.time()) + 60}
    )
    asking = RequestHead("GET", "http", "reviews:9080", "/", [(b"authorization", f"Bearer {token}".encode())])
    issuer.status = 503
    with issuer.at() as url:
        found = gate(tmp_path, SERVICE.split("---")[0] + "---" + TOKENS % url)
        with found.mesh:
            found.prepare()
            refused = found.admit(asking, peer(PAGE))
            assert isinstance(refused, Reply)
            assert refused.status == 401
            wait_until(lambda: issuer.asked > 0, 30, "the first try")
            issuer.status, issuer.keys = 200, signer.jwks
            wait_until(lambda: isinstance(found.admit(asking, peer(PAGE)), Admitted), 30, "the keys")
            let_in = found.admit(asking, peer(PAGE))
            assert isinstance(let_in, Admitted)
            assert let_in.caller.claims["sub"] == "jason"
    assert f"no keys from {url} ({url} answers 503); trying again in 1 s" in caplog.text
    wait_until(lambda: "meshlib-local-keys" not in {t.name for t in threading.enumerate()}, 30, "its thread")


def test_a_forks_child_fetches_for_itself() -> None:
    signer, issuer = Signers(), Published()
    issuer.keys = signer.jwks
    with issuer.at() as url:
        source = KeySource(url, "me")
        errands = KeyErrands(lambda: None)
        errands.want({source: 5.0})
        errands._sets.start(time.monotonic())  # the parent is fetching at the moment of the fork
        errands.after_fork_in_child()
        errands.go()
        wait_until(lambda: errands.want({source: 5.0}) != {}, 30, "the keys")
    assert json.loads(errands.want({source: 5.0})[source]) == json.loads(signer.jwks)
