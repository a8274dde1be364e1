"""Everything that gRPC can say, once, over any channel; and a server for it. As a program, for namespaces:

python -m support.grpc_talk serve PORT
python -m support.grpc_talk ask TARGET AUTHORITY     prints what was heard, as JSON
"""

import json
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from support.grpc_server import PATH, Seen, _Service

TIMEOUT = 20.0
HEARD = {
    "echo": ["x" * 200_000, "through", "here"],
    "status": ["FAILED_PRECONDITION", "not now"],
    "count": ["0", "1", "2", "3", "4"],
    "broken": ["0", "DATA_LOSS", "in the middle", "broken"],
    "total": "a,b,c",
    "chat": ["a", "b", "c"],
}
"""What is heard, if nothing is lost on the way: messages, statuses, metadata before and after."""


def service(name: str = "through") -> grpc.GenericRpcHandler:
    """What is asked, for any server."""
    return _Service(Seen(name))


def talk(channel: Any) -> dict[str, Any]:
    """One call of each kind."""
    return {name: ask(channel) for name, ask in _CALLS.items()}


def _echo(channel: Any) -> list[str]:
    answer, call = channel.unary_unary(PATH + "echo").with_call(b"x" * 200_000, timeout=TIMEOUT)
    who, end = (dict(each) for each in (call.initial_metadata(), call.trailing_metadata()))
    return [answer.decode(), who["who"], end["end"]]


def _status(channel: Any) -> list[str]:
    try:
        channel.unary_unary(PATH + "status")(b"9 not now", timeout=TIMEOUT)
    except grpc.RpcError as error:
        return [error.code().name, error.details()]
    return []


def _count(channel: Any) -> list[str]:
    return [one.decode() for one in channel.unary_stream(PATH + "count")(b"5", timeout=TIMEOUT)]


def _broken(channel: Any) -> list[str]:
    found: list[str] = []
    try:
        found += (one.decode() for one in channel.unary_stream(PATH + "broken")(b"", timeout=TIMEOUT))
    except grpc.RpcError as error:
        found += [error.code().name, error.details(), dict(error.trailing_metadata())["end"]]
    return found


def _total(channel: Any) -> str:
    return channel.stream_unary(PATH + "total")(iter([b"a", b"b", b"c"]), timeout=TIMEOUT).decode()


def _chat(channel: Any) -> list[str]:
    """Each answer is awaited before the next is said: nothing waits for the end."""
    heard, said = threading.Semaphore(1), [b"a", b"b", b"c"]

    def speak() -> Any:
        for one in said:
            assert heard.acquire(timeout=TIMEOUT)
            yield one

    found = []
    for one in channel.stream_stream(PATH + "chat")(speak(), timeout=TIMEOUT):
        found.append(one.decode())
        heard.release()
    return found


_CALLS = {
    "echo": _echo,
    "status": _status,
    "count": _count,
    "broken": _broken,
    "total": _total,
    "chat": _chat,
}


def _serve(port: str) -> None:
    server = grpc.server(ThreadPoolExecutor(8))
    server.add_generic_rpc_handlers((service(),))
    server.add_insecure_port(f"0.0.0.0:{port}")
    server.start()
    print("serves", flush=True)
    threading.Event().wait()


def _ask(target: str, authority: str) -> None:
    with grpc.insecure_channel(target, [("grpc.default_authority", authority)]) as channel:
        print(json.dumps(talk(channel)))


if __name__ == "__main__":
    {"serve": _serve, "ask": _ask}[sys.argv[1]](*sys.argv[2:])
