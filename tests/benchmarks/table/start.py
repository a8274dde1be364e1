"""What it takes to begin: import, a client, the first response. Prints milliseconds and MiB as JSON.

python -m benchmarks.table.start httpx|mesh URL '{"control": "…"}'
"""

import time

BEGUN = time.perf_counter()

import json  # noqa: E402 - the clock runs
import sys  # noqa: E402
from pathlib import Path  # noqa: E402


def main() -> None:
    """One request."""
    who, url, settings = sys.argv[1:]
    if who == "httpx":
        import httpx

        client = httpx.Client(trust_env=False)
    else:
        import meshlib

        client = meshlib.Client(**json.loads(settings))
    imported = time.perf_counter()
    assert client.get(url).status_code == 200
    ended = time.perf_counter()
    status = Path("/proc/self/status").read_text()
    resident = int(status.partition("VmRSS:")[2].split()[0]) / 1024
    told = {"imported": (imported - BEGUN) * 1e3, "ready": (ended - BEGUN) * 1e3, "resident": resident}
    print(json.dumps(told))
    client.close()


if __name__ == "__main__":
    main()
