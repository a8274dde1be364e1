"""Whom the cases of interoperability are played with: five ways to make the same gRPC calls.

Each is a `Client`: called with a host and port of the mesh and with what is to be asked, it gives what came
of it.
"""

import asyncio
import contextlib
import json
import os
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import grpc
from support.grpc_asking import aask, ask
from support.xds_clients import command

import meshlib
import meshlib_grpc


class Told(NamedTuple):
    """What came of calls."""

    answers: Counter[str]
    errors: Counter[str]
    """By code."""
    seconds: list[float]
    """Of each call."""
    details: frozenset[str] = frozenset()

    @property
    def words(self) -> str:
        """`answered`, or the codes."""
        return ", ".join([*(["answered"] if self.answers else []), *sorted(self.errors)])


class Client(Protocol):
    """Makes calls to a host of the mesh."""

    def __call__(self, host: str, **asked: Any) -> Told:
        """`asked` as `grpc_asking` reads it."""
        ...


def told(found: dict[str, Any]) -> Told:
    errors: Counter[str] = Counter()
    for text, count in found["errors"].items():
        errors[text.partition(" ")[0]] += count
    return Told(Counter(found["answers"]), errors, found["seconds"], frozenset(found["errors"]))


@contextlib.contextmanager
def _by_channels(make: Callable[[str], grpc.Channel]) -> Iterator[Client]:
    """Asks over a channel for each host."""
    channels: dict[str, grpc.Channel] = {}

    def asking(host: str, **asked: Any) -> Told:
        if host not in channels:
            channels[host] = make(host)
        return told(ask(channels[host], asked))

    try:
        yield asking
    finally:
        for each in channels.values():
            each.close()


@contextlib.contextmanager
def threads(mesh: meshlib.Mesh) -> Iterator[Client]:
    """`meshlib_grpc.channel`."""
    with _by_channels(lambda host: meshlib_grpc.channel(host, mesh)) as asking:
        yield asking


@contextlib.contextmanager
def tasks(mesh: meshlib.Mesh) -> Iterator[Client]:
    """`meshlib_grpc.aio_channel`."""
    channels: dict[str, grpc.aio.Channel] = {}
    with asyncio.Runner() as runner:

        async def run(host: str, asked: dict[str, Any]) -> dict[str, Any]:
            if host not in channels:
                channels[host] = meshlib_grpc.aio_channel(host, mesh)
            return await aask(channels[host], asked)

        async def close() -> None:
            for each in channels.values():
                await each.close()

        try:
            yield lambda host, **asked: told(runner.run(run(host, asked)))
        finally:
            runner.run(close())


@contextlib.contextmanager
def through(port: int) -> Iterator[Client]:
    """gRPC's plain channels to a proxy at that port."""

    def made(host: str) -> grpc.Channel:
        options = (("grpc.default_authority", host), ("grpc.use_local_subchannel_pool", 1))
        return grpc.insecure_channel(f"127.0.0.1:{port}", options)

    with _by_channels(made) as asking:
        yield asking


@contextlib.contextmanager
def foreign(kind: str, bootstrap: Path) -> Iterator[Client]:
    """gRPC's own xDS client; kind is python or node."""
    with subprocess.Popen(
        command(kind, ""),
        env=os.environ | {"GRPC_XDS_BOOTSTRAP": str(bootstrap)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:

        def asking(host: str, **asked: Any) -> Told:
            assert process.stdin is not None
            assert process.stdout is not None
            print(json.dumps({"target": f"xds:///{host}", **asked}), file=process.stdin, flush=True)
            return told(json.loads(process.stdout.readline()))

        try:
            yield asking
        finally:
            process.kill()
