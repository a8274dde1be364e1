"""The SPIFFE Workload API with the `spiffe` package: certificates and roots, for whom the kernel says."""

import asyncio
import contextlib
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from support.small_ca import SmallCa

from meshlib.agent import workload_api
from meshlib.agent.callers import Enrolled
from meshlib.agent.workload_api import HEADER, SERVICE, WorkloadApi
from meshlib.agent.workload_messages import message
from meshlib.dataplane.tls import Held
from meshlib.errors import ConfigError
from meshlib.identity.spiffe import SpiffeId

ROOT = SmallCa()
CA = SmallCa("issuer", ROOT)
CART, TILL = (SpiffeId("cluster.local", "shop", name) for name in ("cart", "till"))
TESTS = Path(__file__).parents[1]


@dataclass
class Node:
    """What is enrolled, with which certificates."""

    socket: Path
    enrolled: list[Enrolled] = field(default_factory=list)
    held: dict[SpiffeId, Held] = field(default_factory=dict)

    def has(self, who: SpiffeId, **where: Any) -> None:
        """A workload comes, with a certificate."""
        self.enrolled.append(Enrolled(who, **where))
        self.held[who] = CA.held(str(who))


@pytest.fixture
def folder() -> Iterator[Path]:
    """One with a short name."""
    made = Path(tempfile.mkdtemp(prefix="wl-"))
    yield made
    shutil.rmtree(made)


@pytest.fixture
async def node(folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Node]:
    monkeypatch.setattr(workload_api, "LOOK_SECONDS", 0.05)
    made = Node(folder / "api.sock")
    async with WorkloadApi(made.socket, lambda: made.enrolled, made.held.get):
        yield made


@contextlib.asynccontextmanager
async def process(*command: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A program, ended at the end."""
    made = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(TESTS)},
    )
    try:
        yield made
    finally:
        if made.returncode is None:
            made.send_signal(signal.SIGKILL)
        await made.communicate()


def client(node: Node, how: str = "once") -> tuple[str, ...]:
    return (sys.executable, "-m", "support.spiffe_client", str(node.socket), how)


async def line(of: asyncio.subprocess.Process) -> str:
    assert of.stdout is not None
    return (await asyncio.wait_for(of.stdout.readline(), 60)).decode().strip()


@contextlib.asynccontextmanager
async def namespace() -> AsyncIterator[str]:
    """The file of a network namespace."""
    async with process("unshare", "--net", sys.executable, "-c", "print(1, flush=True); input()") as holds:
        await line(holds)
        yield f"/proc/{holds.pid}/ns/net"


def serial(held: Held) -> str:
    from meshlib.identity.pem import load_bundle

    return f"{load_bundle(held.chain_pem)[0].serial_number:x}"


async def test_a_process_gets_the_certificate_of_the_workload_that_it_was_started_as(node: Node) -> None:
    node.has(CART, pid=os.getpid())
    async with process(*client(node)) as asks:
        assert await line(asks) == f"{CART} {serial(node.held[CART])} 1"


async def test_whoever_is_in_a_workloads_network_namespace_is_the_workload(node: Node) -> None:
    async with namespace() as ours, namespace() as other:
        node.has(CART, netns=ours)
        node.has(TILL, netns=other)
        enter = ("nsenter", f"--net={ours}")
        async with process(*enter, *client(node)) as asks:
            assert await line(asks) == f"{CART} {serial(node.held[CART])} 1"


async def test_who_is_no_workload_gets_nothing(node: Node) -> None:
    async with namespace() as ours, process("sleep", "60") as stranger:
        node.has(CART, netns=ours)
        node.has(TILL, pid=stranger.pid)
        # The node's own namespace is nobody's, whatever is said of it.
        node.enrolled.append(Enrolled(CART, netns="/proc/self/ns/net"))
        node.enrolled.append(Enrolled(CART, netns="/no/such/file"))
        async with process(*client(node)) as asks:
            said = await line(asks)
        assert said.startswith("no: ")
        assert "this is no workload of the node" in said
        assert "PERMISSION_DENIED" in said
        # In a namespace that nobody has, a process of a workload is nobody, too.
        node.has(TILL, pid=os.getpid())
        async with process("unshare", "--net", *client(node)) as asks:
            assert "PERMISSION_DENIED" in await line(asks)


async def test_several_workloads_in_one_namespace_are_all_told(node: Node) -> None:
    node.has(TILL, pid=os.getpid())
    node.has(CART, pid=os.getpid())
    async with process(*client(node)) as asks:
        assert (await line(asks)).startswith(f"{CART},{TILL} ")


async def test_a_watch_follows_renewals_new_roots_and_the_end_of_its_workload(node: Node) -> None:
    node.has(CART, pid=os.getpid())
    async with process(*client(node, "watch")) as watches:
        assert await line(watches) == f"{CART} {serial(node.held[CART])} 1"
        node.held[CART] = CA.held(str(CART))
        assert await line(watches) == f"{CART} {serial(node.held[CART])} 1"
        held = CA.held(str(CART))
        node.held[CART] = Held(
            held.chain_pem, held.key_pem, held.roots_pem + SmallCa("next").pem, held.principal
        )
        assert await line(watches) == f"{CART} {serial(held)} 2"
        node.enrolled.clear()
        assert "PERMISSION_DENIED" in await line(watches)


async def test_one_whose_certificate_is_not_there_yet_waits(node: Node) -> None:
    node.enrolled.append(Enrolled(CART, pid=os.getpid()))
    async with process(*client(node, "watch")) as watches:
        await asyncio.sleep(0.5)
        node.held[CART] = CA.held(str(CART))
        assert (await line(watches)).startswith(f"{CART} ")


# What another client might do


async def asked(node: Node, method: str, *metadata: tuple[str, str]) -> tuple[str, str]:
    """How a call from this process ends; its first answer ends it, too."""
    async with grpc.aio.insecure_channel(f"unix:{node.socket}") as channel:
        call = channel.unary_stream(f"/{SERVICE}/{method}")(b"", metadata=metadata, timeout=30)
        try:
            async for _ in call:
                return "OK", ""
        except grpc.aio.AioRpcError as error:
            return error.code().name, error.details() or ""
    return "OK", "nothing"


async def test_without_the_header_nothing_is_said(node: Node) -> None:
    node.has(CART, pid=os.getpid())
    assert await asked(node, "FetchX509SVID", HEADER) == ("OK", "")
    for metadata in ((), (("workload.spiffe.io", "false"),)):
        for method in ("FetchX509SVID", "FetchX509Bundles"):
            code, text = await asked(node, method, *metadata)
            assert (code, text) == ("INVALID_ARGUMENT", "the header workload.spiffe.io: true is missing")


@pytest.mark.parametrize("method", ["FetchJWTSVID", "FetchJWTBundles", "ValidateJWTSVID"])
async def test_there_are_no_jwts(method: str, node: Node) -> None:
    node.has(CART, pid=os.getpid())
    code, text = await asked(node, method, HEADER)
    assert (code, text) == ("UNIMPLEMENTED", "JWT-SVIDs are not issued in this mesh; X509-SVIDs are")


async def test_connections_are_bounded_and_garbage_ends_its_own(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.has(CART, pid=os.getpid())
    monkeypatch.setattr(workload_api, "OF_ONE", 3)
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(3):
            _, writer = await asyncio.open_unix_connection(node.socket)
            stack.callback(writer.close)
        async with asyncio.timeout(30):
            reader, writer = await asyncio.open_unix_connection(node.socket)
            stack.callback(writer.close)
            assert await reader.read() == b""
    monkeypatch.setattr(workload_api, "OF_ONE", 64)
    reader, writer = await asyncio.open_unix_connection(node.socket)
    writer.write(os.urandom(100_000))
    async with asyncio.timeout(60):
        with contextlib.suppress(ConnectionError):
            while await reader.read(1000):
                pass
    writer.close()
    assert await asked(node, "FetchX509Bundles", HEADER) == ("OK", "")


async def test_who_came_to_the_private_socket_is_nobody(node: Node) -> None:
    made = WorkloadApi(
        node.socket.with_name("other"), lambda: [Enrolled(CART, pid=os.getpid())], node.held.get
    )
    async with made, grpc.aio.insecure_channel(f"unix:{made._folder / 'grpc'}") as channel:
        call = channel.unary_stream(f"/{SERVICE}/FetchX509SVID")(b"", metadata=[HEADER], timeout=30)
        assert (await call.code()).name == "PERMISSION_DENIED"


async def test_the_socket_is_for_everybody_and_gone_at_the_end(folder: Path) -> None:
    path = folder / "api.sock"
    async with WorkloadApi(path, list, lambda _: None) as made:
        assert path.stat().st_mode & 0o777 == 0o666
        assert made._folder.stat().st_mode & 0o777 == 0o700
        private = made._folder
    assert not path.exists()
    assert not private.exists()
    with pytest.raises(ConfigError, match="No such file"):
        async with WorkloadApi(folder / "no" / "api.sock", list, lambda _: None):
            pass


def test_the_messages_are_those_of_the_spiffe_package() -> None:
    from spiffe._proto import workload_pb2

    for name in (
        "X509SVIDRequest",
        "X509SVIDResponse",
        "X509SVID",
        "X509BundlesRequest",
        "X509BundlesResponse",
    ):
        ours, theirs = message(name).DESCRIPTOR, getattr(workload_pb2, name).DESCRIPTOR
        assert {one.name: (one.number, one.type, one.is_repeated) for one in ours.fields} == {
            one.name: (one.number, one.type, one.is_repeated) for one in theirs.fields
        }
