"""One contestant in a process of its own. Reads an order a line, does it, writes what it took.

    python -m benchmarks.table.worker '{"who": "mesh", "url": "http://a/", "settings": {}}'

Orders: {"do": "ask", "count": 100, "at_once": 1}, {"do": "download", "size": 1}, {"do": "upload", "size": 1}.
An answer has `seconds` and `cpu` of the whole, `p50` of a request, and `peak`, the process's memory in MiB.
"""

import asyncio
import json
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.table.contestants import CONTESTANTS


def main() -> None:
    """Until its standard input ends."""
    given = json.loads(sys.argv[1])
    with asyncio.Runner() as runner:
        made = runner.run(_make(given))
        print("{}", flush=True)
        for line in sys.stdin:
            order = json.loads(line)
            cpu, begun = time.process_time(), time.perf_counter()
            if hasattr(made, "call"):
                took = _call(made, order["count"], order["at_once"])
            else:
                took = runner.run(_ask(made, order))
            told = {
                "seconds": time.perf_counter() - begun,
                "cpu": time.process_time() - cpu,
                "p50": statistics.median(took) if took else 0.0,
                "peak": _peak(),
            }
            print(json.dumps(told), flush=True)
        if not hasattr(made, "call"):
            runner.run(made.close())
    if hasattr(made, "call"):
        made.close()


async def _make(given: dict[str, Any]) -> Any:
    return CONTESTANTS[given["who"]](given["url"], settings=given["settings"])


async def _ask(made: Any, order: dict[str, Any]) -> list[float]:
    if order["do"] != "ask":
        await getattr(made, order["do"])(order["size"])
        return []
    took: list[float] = []
    left = iter(range(order["count"]))

    async def work() -> None:
        for _ in left:
            begun = time.perf_counter()
            await made.ask()
            took.append(time.perf_counter() - begun)

    await asyncio.gather(*(work() for _ in range(order["at_once"])))
    return took


def _call(made: Any, count: int, at_once: int) -> list[float]:
    took: list[float] = []
    left = iter(range(count))

    def work(_: int) -> None:
        for _ in left:
            begun = time.perf_counter()
            made.call()
            took.append(time.perf_counter() - begun)

    if at_once == 1:
        work(0)
    else:
        with ThreadPoolExecutor(at_once) as threads:
            list(threads.map(work, range(at_once)))
    return took


def _peak() -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


if __name__ == "__main__":
    main()
