"""Peers that hang, lie or flood: the library goes on with what it knew, the service with everybody else."""

import itertools
import random
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import grpc
import pytest
from support.ads_peer import encoded, follow
from support.commands import wait_until
from support.named_server import named_server
from support.resources import target
from support.served import Served

import meshlib
from meshlib import Mesh
from meshlib.bootstrap import bootstrap
from meshlib.xds import pb
from meshlib.xds.kinds import Kind
from meshlib.xds.node import Client, Flavour, to_node

LIES_SECONDS = 0.5
MUCH_MEMORY = 256 * 1024 * 1024


@contextmanager
def on_sockets(port: int, treat: Callable[[socket.socket], None]) -> Iterator[threading.Event]:
    """A server that treats each connection so; the event: there was one."""
    met, end = threading.Event(), threading.Event()
    kept: list[socket.socket] = []

    def accept(listening: socket.socket) -> None:
        while not end.is_set():
            try:
                connection, _ = listening.accept()
            except TimeoutError:
                continue
            met.set()
            kept.append(connection)
            try:
                treat(connection)
            except OSError:
                continue

    with socket.create_server(("127.0.0.1", port)) as listening:
        listening.settimeout(0.05)
        thread = threading.Thread(target=accept, args=(listening,))
        thread.start()
        try:
            yield met
        finally:
            end.set()
            thread.join()
            for connection in kept:
                connection.close()


def silent(connection: socket.socket) -> None:
    """Nothing."""


def random_bytes(connection: socket.socket) -> None:
    connection.sendall(random.Random(7).randbytes(100_000))


def hangs_up(connection: socket.socket) -> None:
    connection.close()


def other_protocol(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello")


def huge_frame(connection: socket.socket) -> None:
    connection.sendall(b"\xff\xff\xff\x00\x00\x00\x00\x00\x01" + bytes(1_000_000))


@contextmanager
def on_streams(port: int, lies: Callable[[], Iterator[bytes]]) -> Iterator[threading.Event]:
    """A gRPC server that answers every stream with these messages; the event: there was a stream."""
    met = threading.Event()

    def stream(_requests: Any, _context: Any) -> Iterator[bytes]:
        met.set()
        yield from lies()

    server = grpc.server(ThreadPoolExecutor(4), options=[("grpc.max_send_message_length", -1)])
    _, service, method = pb.DELTA_ADS.split("/")
    handler = grpc.stream_stream_rpc_method_handler(stream)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
    assert server.add_insecure_port(f"127.0.0.1:{port}") == port
    server.start()
    try:
        yield met
    finally:
        server.stop(None).wait()


def response(kind: str, **fields: Any) -> Any:
    return pb.DeltaDiscoveryResponse(type_url=kind, system_version_info="5.2", **fields)


def no_messages() -> Iterator[bytes]:
    for size in itertools.count(1):
        yield random.Random(size).randbytes(size % 1000)


def unknown_types() -> Iterator[bytes]:
    for number in range(1000):
        yield encoded(response("type.googleapis.com/nobody.Knows", nonce=str(number)))


def broken_resources() -> Iterator[bytes]:
    for kind in Kind:
        made = response(kind.type_url, nonce="same")
        for name in ("svc:80", "routes svc:80", "c"):
            found = made.resources.add(name=name, version="1")
            found.resource.type_url, found.resource.value = kind.type_url, b"\xff\xff\xff"
        yield encoded(made)


def other_peoples_resources() -> Iterator[bytes]:
    body = pb.pack(pb.Cluster(name="x", alt_stat_name="x" * 10_000))
    for number in range(400):
        made = response(Kind.CLUSTER.type_url, nonce=str(number))
        for index in range(200):
            made.resources.add(name=f"{number}-{index}", version="1").resource.CopyFrom(body)
        yield encoded(made)


def repeats_itself() -> Iterator[bytes]:
    until = time.monotonic() + LIES_SECONDS
    message = encoded(response(Kind.ENDPOINTS.type_url, nonce="1"))
    while time.monotonic() < until:
        yield message


SOCKETS = [silent, random_bytes, hangs_up, other_protocol, huge_frame]
STREAMS = [no_messages, unknown_types, broken_resources, other_peoples_resources, repeats_itself]


@contextmanager
def hostile(port: int, how: Any) -> Iterator[threading.Event]:
    with (on_sockets if how in SOCKETS else on_streams)(port, how) as met:
        yield met


@pytest.mark.parametrize("how", [*SOCKETS, *STREAMS], ids=lambda how: how.__name__)
def test_the_library_goes_on_with_what_it_knew(how: Any) -> None:
    with ExitStack() as stack:
        good, better = (stack.enter_context(named_server(name)) for name in ("good", "better"))
        with Served("5.1", target("svc:80", "c", good)) as served:
            mesh = stack.enter_context(Mesh(bootstrap({}, allow_plaintext=True, control=served.address)))
            client = stack.enter_context(meshlib.Client(mesh=mesh))
            assert client.get("http://svc/").text == "good GET /"
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        with hostile(served.port, how) as met:
            assert met.wait(60)
            until = time.monotonic() + LIES_SECONDS
            while time.monotonic() < until:
                assert client.get("http://svc/").text == "good GET /"
                time.sleep(0.01)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before < MUCH_MEMORY
        with Served("6.1", target("svc:80", "c", better), port=served.port):
            wait_until(lambda: client.get("http://svc/").text == "better GET /", 60, "the honest service")


def subscribing(names: list[str]) -> Any:
    return pb.DeltaDiscoveryRequest(
        node=to_node(Client(Flavour.MESHLIB, id="flood")),
        type_url=Kind.CLUSTER.type_url,
        resource_names_subscribe=names,
    )


def ever_new_names() -> Iterator[Any]:
    for number in itertools.count():
        yield subscribing([f"{number}-{index}" for index in range(500)])


def long_names() -> Iterator[Any]:
    yield subscribing(["x" * 2000])


def large_messages() -> Iterator[Any]:
    yield subscribing(["x" * 1000 + str(number) for number in range(6000)])


@pytest.mark.parametrize(
    ("flood", "code"),
    [
        (ever_new_names, grpc.StatusCode.RESOURCE_EXHAUSTED),
        (large_messages, grpc.StatusCode.RESOURCE_EXHAUSTED),
        (long_names, grpc.StatusCode.INVALID_ARGUMENT),
    ],
)
def test_a_client_that_floods_is_cut_off_and_nobody_else(
    flood: Callable[[], Iterator[Any]], code: grpc.StatusCode
) -> None:
    with Served("5.1", target("svc:80", "c", 1)) as served, ExitStack() as stack:
        channels = [stack.enter_context(grpc.insecure_channel(served.address)) for _ in range(2)]
        honest = follow(channels[0], "honest", "svc:80")
        assert next(honest).kind is Kind.LISTENER
        stream = channels[1].stream_stream(pb.DELTA_ADS, request_serializer=encoded)
        with pytest.raises(grpc.RpcError) as refused:
            for _ in stream(flood(), timeout=90):
                pass
        assert refused.value.code() is code
        assert [next(honest).kind for _ in range(3)] == [Kind.ROUTES, Kind.CLUSTER, Kind.ENDPOINTS]


def test_requests_without_end_delay_nobody() -> None:
    again = subscribing(["c"])
    with Served("5.1", target("svc:80", "c", 1)) as served, ExitStack() as stack:
        channels = [stack.enter_context(grpc.insecure_channel(served.address)) for _ in range(2)]
        honest = follow(channels[0], "honest", "svc:80")
        assert len([next(honest) for _ in range(4)]) == 4
        stream = channels[1].stream_stream(pb.DELTA_ADS, request_serializer=encoded)
        flooding = stream(itertools.repeat(again))
        time.sleep(0.5)
        began = time.monotonic()
        served.publish("5.2", target("svc:80", "other", 2))
        assert next(honest).version == "5.2"
        assert time.monotonic() - began < 10
        flooding.cancel()
