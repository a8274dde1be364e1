"""A gRPC server without generated code: methods that do what tests ask for, on raw bytes."""

import contextlib
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import grpc

PATH = "/test.Service/"


@dataclass
class Seen:
    """What a server was asked."""

    name: str
    calls: Counter[str] = field(default_factory=Counter)
    failing: dict[str, int] = field(default_factory=dict)
    """How many calls of a method fail yet, with UNAVAILABLE."""
    stalling: dict[str, int] = field(default_factory=dict)
    """How many calls of a method are not answered yet, until they are given up."""
    given_up: Counter[str] = field(default_factory=Counter)
    """How many of these were."""
    metadata: list[tuple[str, Any]] = field(default_factory=list)
    """Of the last call."""
    authority: str = ""
    cancelled: threading.Event = field(default_factory=threading.Event)
    left: float | None = None
    """Seconds that the last call had."""
    port: int = 0

    def clear(self) -> None:
        """Forgets what it was asked and told to do."""
        for each in (self.calls, self.failing, self.stalling, self.given_up, self.cancelled):
            each.clear()


class _Service(grpc.GenericRpcHandler):  # type: ignore[misc]
    def __init__(self, seen: Seen) -> None:
        self.seen = seen

    def service(self, details: Any) -> Any:
        method = details.method.rpartition("/")[2]
        found = getattr(self, method, None)
        if found is None:
            return None

        def begin(asked: Any, context: Any) -> Any:
            seen = self.seen
            seen.calls[method] += 1
            seen.metadata = [(one.key, one.value) for one in context.invocation_metadata()]
            seen.left = context.time_remaining()
            if seen.failing.get(method, 0) > 0:
                seen.failing[method] -= 1
                context.set_trailing_metadata((("why", "told to"),))
                context.abort(grpc.StatusCode.UNAVAILABLE, "told to")
            if seen.stalling.get(method, 0) > 0:
                seen.stalling[method] -= 1
                if not isinstance(asked, bytes):
                    list(asked)
                gone = threading.Event()
                if context.add_callback(gone.set):
                    gone.wait(60)  # a status at its deadline would race with the caller's own
                seen.given_up[method] += 1
                context.abort(grpc.StatusCode.CANCELLED, "given up")
            return found(asked, context)

        streams_in = method in ("total", "chat", "late")
        streams_out = method in ("count", "chat", "broken", "forever")
        if streams_out:

            def each(asked: Any, context: Any) -> Iterator[bytes]:
                yield from begin(asked, context)

            kind = (
                grpc.stream_stream_rpc_method_handler if streams_in else grpc.unary_stream_rpc_method_handler
            )
            return kind(each)
        kind = grpc.stream_unary_rpc_method_handler if streams_in else grpc.unary_unary_rpc_method_handler
        return kind(begin)

    def echo(self, asked: bytes, context: Any) -> bytes:
        context.set_trailing_metadata((("end", "here"),))
        context.send_initial_metadata((("who", self.seen.name), ("raw-bin", b"\x00\xff")))
        return asked

    def who(self, asked: bytes, context: Any) -> bytes:
        return self.seen.name.encode()

    def status(self, asked: bytes, context: Any) -> bytes:
        number, _, words = asked.partition(b" ")
        code = next(one for one in grpc.StatusCode if one.value[0] == int(number))
        context.abort(code, words.decode())
        return b""

    def headed(self, asked: bytes, context: Any) -> bytes:
        context.send_initial_metadata((("who", self.seen.name),))
        context.abort(grpc.StatusCode.UNAVAILABLE, "words")
        return b""

    def slow(self, asked: bytes, context: Any) -> bytes:
        ended = threading.Event()
        if not context.add_callback(ended.set):
            ended.set()
        if ended.wait(float(asked)):
            self.seen.cancelled.set()
        return b"late"

    def count(self, asked: bytes, context: Any) -> Iterator[bytes]:
        for number in range(int(asked)):
            yield b"%d" % number

    def broken(self, asked: bytes, context: Any) -> Iterator[bytes]:
        yield b"0"
        context.set_trailing_metadata((("end", "broken"),))
        context.abort(grpc.StatusCode.DATA_LOSS, "in the middle")

    def forever(self, asked: bytes, context: Any) -> Iterator[bytes]:
        ended, told = threading.Event(), self.seen.cancelled

        def end() -> None:  # also of a call that ends before this is asked for more
            ended.set()
            told.set()

        if not context.add_callback(end):
            end()
        yield b"0"
        ended.wait(60)

    def total(self, asked: Iterator[bytes], context: Any) -> bytes:
        return b",".join(asked)

    def chat(self, asked: Iterator[bytes], context: Any) -> Iterator[bytes]:
        context.send_initial_metadata((("who", self.seen.name),))
        yield from asked


@contextlib.contextmanager
def grpc_server(
    name: str = "v1", credentials: grpc.ServerCredentials | None = None, port: int = 0
) -> Iterator[Seen]:
    """Serves on loopback."""
    seen = Seen(name)
    pool = ThreadPoolExecutor(8)
    server = grpc.server(pool)
    server.add_generic_rpc_handlers((_Service(seen),))
    address = f"127.0.0.1:{port}"
    seen.port = (
        server.add_insecure_port(address)
        if credentials is None
        else server.add_secure_port(address, credentials)
    )
    server.start()
    try:
        yield seen
    finally:
        server.stop(0).wait()
        pool.shutdown()


def serve() -> None:
    """Prints the port, and serves until the process is killed."""
    with grpc_server() as seen:
        print(seen.port, flush=True)
        threading.Event().wait()
