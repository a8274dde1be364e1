"""Unary calls as a test asks for them, and what they came to, over any channel of gRPC for Python."""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

Ended = tuple[str, str, float]
"""The answer, or the error (`CODE details`), and the seconds that the call took."""


def told(ended: Iterable[Ended]) -> dict[str, Any]:
    """{answers: {text: count}, errors: {"CODE details": count}, seconds: [of each call]}."""
    found = list(ended)
    return {
        "answers": Counter(answer for answer, error, _ in found if not error),
        "errors": Counter(error for _, error, _ in found if error),
        "seconds": [seconds for *_, seconds in found],
    }


def ask(channel: grpc.Channel, asked: dict[str, Any]) -> dict[str, Any]:
    """Calls as `asked` says: {calls, apart, metadata, deadline, method, message}.

    With `apart` they do not wait for one another, but begin so many seconds apart.
    """
    one, calls, apart = _made(channel, asked)

    def timed(number: int) -> Ended:
        time.sleep(number * (apart or 0))
        begun = time.monotonic()
        try:
            answer, error = one(), ""
        except grpc.RpcError as failed:
            answer, error = "", f"{failed.code().name} {failed.details()}"
        return answer, error, time.monotonic() - begun

    if apart is None:
        return told(map(timed, range(calls)))
    with ThreadPoolExecutor(calls) as pool:
        return told(pool.map(timed, range(calls)))


async def aask(channel: grpc.aio.Channel, asked: dict[str, Any]) -> dict[str, Any]:
    """The same over a channel for tasks."""
    one: Callable[[], Awaitable[str]]
    one, calls, apart = _made(channel, asked)

    async def timed(number: int) -> Ended:
        await asyncio.sleep(number * (apart or 0))
        begun = time.monotonic()
        try:
            answer, error = await one(), ""
        except grpc.aio.AioRpcError as failed:
            answer, error = "", f"{failed.code().name} {failed.details()}"
        return answer, error, time.monotonic() - begun

    if apart is not None:
        return told(await asyncio.gather(*map(timed, range(calls))))
    return told([await timed(number) for number in range(calls)])


def _made(channel: Any, asked: dict[str, Any]) -> tuple[Callable[[], Any], int, float | None]:
    """What makes one call, how many there are, and how far apart they are begun."""
    method = asked.get("method", "Hello")
    path = method if method.startswith("/") else f"/greeter.Greeter/{method}"
    call = channel.unary_unary(path, str.encode, bytes.decode)
    message, metadata = asked.get("message", "hello"), tuple(asked.get("metadata", {}).items())
    seconds = asked.get("deadline", 60)
    return (
        lambda: call(message, metadata=metadata, timeout=seconds),
        asked.get("calls", 1),
        asked.get("apart"),
    )
