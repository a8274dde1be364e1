"""How long the caller still waits bounds the calls made for it, in every framework, and travels on."""

import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.fake_mesh import fake_mesh
from support.frameworks import NAMES, application
from support.policed import POLICY, gate
from support.raw_server import RawServer, raw_server

import meshlib
from meshlib.dataplane import context
from meshlib.dataplane.gate import Gate

WAITS = {"x-envoy-expected-rq-timeout-ms": "5000"}
GRPC = {"content-type": "application/grpc", "grpc-timeout": "5000m"}
TOLD = re.compile(rb"x-envoy-expected-rq-timeout-ms: (\d+)")


@pytest.fixture
def guard(tmp_path: Path) -> Iterator[Gate]:
    made = gate(tmp_path, POLICY.split("---")[0])
    yield made
    made.mesh.close()


@pytest.fixture
def server() -> Iterator[RawServer]:
    with raw_server() as made:
        yield made


@pytest.mark.parametrize("name", NAMES)
async def test_the_next_service_is_told_what_is_left(name: str, guard: Gate, server: RawServer) -> None:
    mesh: Any = fake_mesh([server.port], route={"timeout": "3600s"})

    def call() -> str:
        with meshlib.Client(mesh=mesh) as client:
            return str(client.get("http://reviews:9080/echo").status_code)

    async with application(name, guard, call) as ask:
        for headers in (WAITS, GRPC):
            assert (await ask("POST", "/any", headers)).text == "200"
            found = TOLD.search(server.heads[-1])
            assert found is not None
            assert 0 < int(found[1]) <= 5000
        assert (await ask("GET", "/any", {})).text == "200"
        found = TOLD.search(server.heads[-1])
        assert found is not None
        assert int(found[1]) == 3_600_000


@pytest.mark.parametrize("name", NAMES)
async def test_a_call_for_who_has_gone_ends(name: str, guard: Gate, server: RawServer) -> None:
    mesh: Any = fake_mesh([server.port])

    def call() -> str:
        with meshlib.Client(mesh=mesh, timeout=60) as client, pytest.raises(httpx.ReadTimeout):
            client.get("http://reviews:9080/slow/5")
        return "ended"

    async with application(name, guard, call) as ask:
        began = time.monotonic()
        answer = await ask("GET", "/any", {"x-envoy-expected-rq-timeout-ms": "50"})
        assert answer.text == "ended"
        assert time.monotonic() - began < 3


@pytest.mark.parametrize("name", NAMES)
async def test_a_thread_that_copies_its_context_is_bound_too(name: str, guard: Gate) -> None:
    import contextvars

    def left() -> str:
        found: list[float | None] = []
        copied = contextvars.copy_context()
        thread = threading.Thread(target=lambda: found.append(copied.run(context.time_left)))
        thread.start()
        thread.join()
        return "none" if found[0] is None else f"{found[0]:.0f}"

    async with application(name, guard, left) as ask:
        assert (await ask("GET", "/any", WAITS)).text == "5"
        assert (await ask("GET", "/any", {})).text == "none"
