"""One kind of client in a process of its own: `python -m soak.load`, settings as JSON come first.

Lines that come name a phase, and are answered with it; so whoever changes something knows that every request
from then on is counted for the new one. A line of JSON a second goes out that says how big the process
is. When standard input ends, all ends, and the last line has what was asked and what failed.
"""

import asyncio
import contextlib
import json
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from soak.asking import Asker, Failed, Given, askers
from support.envoy import RealEnvoy

import meshlib
from meshlib.identity import renewal

MOST_WORDS = 20
"""Failures of a kind that are told with all their words."""


_saying = threading.Lock()


def say(what: dict[str, Any]) -> None:
    """A line of standard output, whoever says another."""
    with _saying:
        print(json.dumps(what), flush=True)


class Counts:
    """What was asked, and what came of it. Thread-safe."""

    def __init__(self) -> None:
        self.phase = 0
        self.good = 0
        self._lock = threading.Lock()
        self._asked: Counter[tuple[int, str, str]] = Counter()
        self._failed: Counter[tuple[int, int, str, str, str]] = Counter()
        self._words: dict[tuple[str, str, str], list[str]] = {}

    def begins(self, service: str, policy: str) -> int:
        """A request; the phase that it begins in."""
        with self._lock:
            self._asked[self.phase, service, policy] += 1
            return self.phase

    def well(self) -> None:
        """One had a good response."""
        with self._lock:
            self.good += 1

    def failed(self, began: int, service: str, policy: str, failed: Failed) -> None:
        """One failed."""
        with self._lock:
            self._failed[began, self.phase, service, policy, failed.reason.name] += 1
            words = self._words.setdefault((service, policy, failed.reason.name), [])
            if len(words) < MOST_WORDS:
                words.append(f"{time.time():.2f} phase {began} to {self.phase}: {failed.words}")

    @property
    def failures(self) -> int:
        """How many."""
        return sum(self._failed.values())

    def all(self) -> dict[str, Any]:
        """Everything."""
        asked = [[*key, count] for key, count in self._asked.items()]
        failed = [[*key, count] for key, count in self._failed.items()]
        return {
            "asked": asked,
            "failed": failed,
            "words": [[*key, words] for key, words in self._words.items()],
        }


def size(mesh: meshlib.Mesh | None, envoy: RealEnvoy | None, tasks: int) -> dict[str, Any]:
    """How big the process is, and what it goes by."""
    states = list(mesh.ledger.clusters.values()) if mesh is not None else []
    told: dict[str, Any] = {
        "rss_kb": _rss_kb(os.getpid()),
        "descriptors": len(list(Path("/proc/self/fd").iterdir())),
        "threads": threading.active_count(),
        "tasks": tasks,
        "slots": sum(one.active + one.retries + one.waiting + one.connections for one in states),
    }
    if mesh is not None:
        certificate = mesh.certs and mesh.certs.held and mesh.certs.held.not_after
        told |= {"certificate": certificate, "configuration": mesh.view.version}
    return told if envoy is None else told | {"envoy_kb": _rss_kb(envoy.process)}


def _rss_kb(process: int) -> int:
    (line,) = (
        one for one in Path(f"/proc/{process}/status").read_text().splitlines() if one.startswith("VmRSS")
    )
    return int(line.split()[1])


class Orders:
    """Standard input, read by a thread."""

    def __init__(self, counts: Counts) -> None:
        self._counts = counts
        self.end = threading.Event()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in sys.stdin:
            self._counts.phase = json.loads(line)
            say({"phase": self._counts.phase})
        self.end.set()


@contextlib.asynccontextmanager
async def _given(kind: str, told: dict[str, Any]) -> AsyncIterator[Given]:
    settings: dict[str, Any] = told["settings"]
    if kind == "envoy":
        from soak.beside import envoy_beside

        async with envoy_beside(settings, set(told["ports"].values())) as envoy:
            yield Given(told["ports"], None, envoy)
    else:
        with meshlib.connect(settings.pop("control"), **settings) as mesh:
            yield Given(told["ports"], mesh, None)


async def run(told: dict[str, Any]) -> None:
    """Until standard input ends."""
    counts = Counts()
    async with _given(told["kind"], told) as given:
        orders = Orders(counts)
        asking: list[Asker] = [made(given, counts, orders.end) for made in askers(told["kind"])]
        running = [asyncio.ensure_future(one.run()) for one in asking]
        while not orders.end.is_set():
            await asyncio.to_thread(orders.end.wait, 1.0)
            _tell(counts, given)
            for one in running:
                if one.done():
                    one.result()
        await asyncio.gather(*running)
        _tell(counts, given)
        say(counts.all())


def _tell(counts: Counts, given: Given) -> None:
    now = size(given.mesh, given.envoy, len(asyncio.all_tasks()))
    say({"at": time.time(), "good": counts.good, "failures": counts.failures, **now})


def main() -> None:
    told = json.loads(sys.stdin.readline())
    renewal.RATIO = told["renewed"]
    renewal.SPREAD = renewal.RATIO / 2
    asyncio.run(run(told))


if __name__ == "__main__":
    main()
