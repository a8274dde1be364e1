"""A gRPC server in the mesh, for threads and for tasks, whose handlers tell what they were given."""

import asyncio
import contextlib
import json
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from support.commands import wait_until

import meshlib_grpc
from meshlib.core.request import RequestHead
from meshlib.dataplane import context as inherited

SERVICE = "test.Service"
PATH = f"/{SERVICE}/"
KINDS = ("threads", "tasks")
UNARY = ("bounce", "echo", "given", "refuse", "fail", "coded", "slow")


def parse(message: bytes) -> bytes:
    """No message is `bad`."""
    if message == b"bad":
        raise ValueError("it is bad")
    return message


def write(response: bytes) -> bytes:
    """None is `unwritable`."""
    if response == b"unwritable":
        raise ValueError("it can't be written")
    return response


def given(context: Any) -> bytes:
    """What a handler is told, and what its calls would carry."""
    head = RequestHead("GET", "http", "back:9080", "/", [])
    inherited.hand_on(head, inside=True)
    caller = meshlib_grpc.caller()
    left = inherited.time_left()
    told = {
        "principal": caller.principal if caller else None,
        "claims": dict(caller.claims) if caller else None,
        "peer": context.peer(),
        "metadata": [
            [key, value if isinstance(value, str) else f"bytes {value.hex()}"]
            for key, value in context.invocation_metadata()
        ],
        "handed": {name.decode(): value.decode() for name, value in head.headers},
        "left": left,
        "remaining": context.time_remaining(),
    }
    return json.dumps(told).encode()


class Running:
    """What runs, and what its handlers saw."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.left = threading.Event()
        self.entered = threading.Event()
        self.port = 0
        self.server: Any = None
        self.loop: asyncio.AbstractEventLoop | None = None
        """Of a server for tasks."""


class _Threads(Running):
    def methods(self) -> dict[str, Any]:
        one, out = grpc.unary_unary_rpc_method_handler, grpc.unary_stream_rpc_method_handler
        up, both = grpc.stream_unary_rpc_method_handler, grpc.stream_stream_rpc_method_handler
        made = {
            **{name: (one, getattr(self, name)) for name in UNARY},
            **{name: (out, getattr(self, name)) for name in ("count", "broken", "forever")},
            "total": (up, self.total),
            "chat": (both, self.chat),
        }
        return {name: kind(self.noting(name, run), parse, write) for name, (kind, run) in made.items()}

    def noting(self, name: str, run: Any) -> Any:
        def begin(asked: Any, context: Any) -> Any:
            self.calls.append(name)
            return run(asked, context)

        return begin

    def bounce(self, asked: bytes, context: Any) -> bytes:
        return asked

    def echo(self, asked: bytes, context: Any) -> bytes:
        context.send_initial_metadata((("who", "me"),))
        context.set_trailing_metadata((("end", "here"),))
        return asked

    def given(self, asked: bytes, context: Any) -> bytes:
        return given(context)

    def refuse(self, asked: bytes, context: Any) -> bytes:
        context.set_trailing_metadata((("why", "so"),))
        context.abort(grpc.StatusCode.NOT_FOUND, "not here")
        return b""

    def fail(self, asked: bytes, context: Any) -> bytes:
        raise ZeroDivisionError("by zero")

    def coded(self, asked: bytes, context: Any) -> bytes:
        context.set_code(grpc.StatusCode.ALREADY_EXISTS)
        context.set_details("there already")
        return b""

    def slow(self, asked: bytes, context: Any) -> bytes:
        gone = threading.Event()
        if context.add_callback(gone.set) is False:
            gone.set()
        self.entered.set()
        if gone.wait(float(asked)):
            self.left.set()
        return b"late"

    def count(self, asked: bytes, context: Any) -> Iterator[bytes]:
        for number in range(int(asked)):
            yield b"%d" % number

    def broken(self, asked: bytes, context: Any) -> Iterator[bytes]:
        yield b"0"
        context.abort(grpc.StatusCode.DATA_LOSS, "in the middle")

    def forever(self, asked: bytes, context: Any) -> Iterator[bytes]:
        gone = threading.Event()
        if context.add_callback(gone.set) is False:
            gone.set()
        try:
            yield b"0"
            gone.wait(30)
        finally:  # gRPC does not come back for more if the caller is gone by then
            self.left.set()

    def total(self, asked: Iterator[bytes], context: Any) -> bytes:
        return b",".join(asked)

    def chat(self, asked: Iterator[bytes], context: Any) -> Iterator[bytes]:
        yield from asked


class _Tasks(Running):
    def methods(self) -> dict[str, Any]:
        one, out = grpc.unary_unary_rpc_method_handler, grpc.unary_stream_rpc_method_handler
        up, both = grpc.stream_unary_rpc_method_handler, grpc.stream_stream_rpc_method_handler
        of_threads = _Threads()
        of_threads.calls = self.calls
        made = {
            **{name: (one, getattr(self, name)) for name in UNARY},
            **{name: (out, getattr(self, name)) for name in ("count", "broken", "forever", "written")},
            "total": (up, self.total),
            "chat": (both, self.chat),
            "read": (both, self.read),
        }
        found = {name: kind(run, parse, write) for name, (kind, run) in made.items()}
        # gRPC runs handlers that are no coroutines on threads.
        on_threads = {f"{name}_on_thread": one for name, one in of_threads.methods().items()}
        return {**found, **on_threads}

    async def bounce(self, asked: bytes, context: Any) -> bytes:
        return asked

    async def echo(self, asked: bytes, context: Any) -> bytes:
        self.calls.append("echo")
        await context.send_initial_metadata((("who", "me"),))
        context.set_trailing_metadata((("end", "here"),))
        return asked

    async def given(self, asked: bytes, context: Any) -> bytes:
        self.calls.append("given")
        return given(context)

    async def refuse(self, asked: bytes, context: Any) -> bytes:
        context.set_trailing_metadata((("why", "so"),))
        await context.abort(grpc.StatusCode.NOT_FOUND, "not here")
        return b""

    async def fail(self, asked: bytes, context: Any) -> bytes:
        raise ZeroDivisionError("by zero")

    async def coded(self, asked: bytes, context: Any) -> Any:
        context.set_code(grpc.StatusCode.ALREADY_EXISTS)
        context.set_details("there already")

    async def slow(self, asked: bytes, context: Any) -> bytes:
        self.entered.set()
        try:
            await asyncio.sleep(float(asked))
        except asyncio.CancelledError:
            self.left.set()
            raise
        return b"late"

    async def count(self, asked: bytes, context: Any) -> AsyncIterator[bytes]:
        self.calls.append("count")
        for number in range(int(asked)):
            yield b"%d" % number

    async def written(self, asked: bytes, context: Any) -> None:
        self.calls.append("written")
        for number in range(int(asked)):
            await context.write(b"%d" % number)

    async def broken(self, asked: bytes, context: Any) -> AsyncIterator[bytes]:
        yield b"0"
        await context.abort(grpc.StatusCode.DATA_LOSS, "in the middle")

    async def forever(self, asked: bytes, context: Any) -> AsyncIterator[bytes]:
        yield b"0"
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            self.left.set()
            raise

    async def total(self, asked: AsyncIterator[bytes], context: Any) -> bytes:
        self.calls.append("total")
        return b",".join([one async for one in asked])

    async def chat(self, asked: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        self.calls.append("chat")
        async for one in asked:
            yield one

    async def read(self, asked: Any, context: Any) -> None:
        while (one := await context.read()) is not grpc.aio.EOF:
            await context.write(one)


@contextlib.contextmanager
def serving(kind: str, mesh: Any, **options: Any) -> Iterator[Running]:
    """A server of `meshlib_grpc` at a free port of loopback, or at `port`, or at a list of them."""
    port = options.pop("port", 0)
    ports = port if isinstance(port, list) else [port]
    again = options.pop("again", None)

    def add(server: Any) -> int:
        return next(iter([server.add_port(f"127.0.0.1:{one}") for one in ports]), 0)

    with _running(kind, lambda kind: _ours(kind, mesh, options), add, again) as found:
        yield found


@contextlib.contextmanager
def serving_of_grpcs(kind: str, interceptor: Any, credentials: Any = None) -> Iterator[Running]:
    """A server of gRPC's own, with an interceptor; None: a bare one."""

    interceptors = [] if interceptor is None else [interceptor]

    def make(kind: str) -> Any:
        if kind == "tasks":
            return grpc.aio.server(interceptors=interceptors)
        return grpc.server(ThreadPoolExecutor(4), interceptors=interceptors)

    def add(server: Any) -> int:
        address = "127.0.0.1:0"
        port = (
            server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
        )
        return int(port)

    with _running(kind, make, add) as found:
        yield found


def _ours(kind: str, mesh: Any, options: dict[str, Any]) -> Any:
    options = {"register": False, **options}
    if kind == "tasks":
        return meshlib_grpc.aio_server(mesh=mesh, **options)
    return meshlib_grpc.server(ThreadPoolExecutor(8), mesh=mesh, **options)


@contextlib.contextmanager
def _running(kind: str, make: Any, add: Any, again: Any = None) -> Iterator[Running]:
    """`again`: the error by which a first start fails."""
    found: Any = _Tasks() if kind == "tasks" else _Threads()
    handlers = (grpc.method_handlers_generic_handler(SERVICE, found.methods()),)
    if kind == "threads":
        server = found.server = make(kind)
        server.add_generic_rpc_handlers(handlers)
        try:
            found.port = add(server)
            if again is not None:
                with pytest.raises(again):
                    server.start()
            server.start()
            yield found
        finally:
            assert server.stop(0.2).wait(20)
        return
    loop = found.loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def run(work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, loop).result(30)

    async def start() -> None:
        server = found.server = make(kind)
        server.add_generic_rpc_handlers(handlers)
        found.port = add(server)
        if again is not None:
            with pytest.raises(again):
                await server.start()
        await server.start()

    try:
        run(start())
        yield found
    finally:
        run(found.server.stop(0.2))
        run(_rest())
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _rest() -> None:
    """What gRPC still does for calls that were cut off."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    if others:
        await asyncio.wait(others, timeout=5)


def until_left(running: Running) -> None:
    """Its handler heard that the caller is gone."""
    wait_until(running.left.is_set, 10, "the handler")
