"""The contestants' processes: started together, asked one at a time."""

import asyncio
import contextlib
import importlib.util
import json
import os
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.table.contestants import NEEDS

TESTS = Path(__file__).parents[2]
Given = tuple[str, str, Mapping[str, Any]]
"""Who, a URL, and the settings of its mesh."""


class Worker:
    """A contestant's process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def order(self, **order: Any) -> dict[str, float]:
        """Does it, and gives what it took."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(order).encode() + b"\n")
        line = await self.process.stdout.readline()
        assert line, "a contestant ended; its error is above"
        told: dict[str, float] = json.loads(line)
        return told


@contextlib.asynccontextmanager
async def started(
    given: Mapping[str, tuple[str, str, Mapping[str, Any]]],
) -> AsyncIterator[dict[str, Worker]]:
    """One by each name; all are ready."""
    pipe = asyncio.subprocess.PIPE
    made: dict[str, Worker] = {}
    try:
        for name, (who, url, settings) in given.items():
            said = json.dumps({"who": who, "url": url, "settings": settings})
            command = (sys.executable, "-m", "benchmarks.table.worker", said)
            made[name] = Worker(
                await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, env=environment())
            )
        for one in made.values():
            assert one.process.stdout is not None
            assert await one.process.stdout.readline() == b"{}\n"
        yield made
        for one in made.values():
            assert one.process.stdin is not None
            one.process.stdin.close()
        for one in made.values():
            assert await asyncio.wait_for(one.process.wait(), 20) == 0
    finally:
        for one in made.values():
            if one.process.returncode is None:
                one.process.kill()
                await one.process.wait()


@contextlib.asynccontextmanager
async def bulk_server() -> AsyncIterator[int]:
    """`bulk.py` in a process of its own: its port."""
    command = (sys.executable, "-m", "benchmarks.table.bulk")
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, env=environment()
    )
    try:
        assert process.stdout is not None
        yield int(await process.stdout.readline())
    finally:
        process.kill()
        await process.wait()


def environment() -> dict[str, str]:
    """Of a process that knows of no mesh by its environment."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("MESHLIB_")}
    return own | {"PYTHONPATH": os.pathsep.join((str(TESTS), own.get("PYTHONPATH", "")))}


def installed(who: str) -> bool:
    """Whether a contestant can take part."""
    return who not in NEEDS or importlib.util.find_spec(NEEDS[who]) is not None


def seconds_of_cpu(process: int) -> float:
    """That it has had."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
