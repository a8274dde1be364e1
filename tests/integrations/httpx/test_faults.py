"""Injected faults as an application meets them, with both clients, and what is told of them."""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.fake_mesh import FakeMesh, fake_mesh
from support.raw_server import RawServer, raw_server
from support.telemetry import Told

import meshlib
from meshlib.bootstrap import Bootstrap

URL = "http://reviews:9080/"
ALL = {"percentage": {"numerator": 100}}
DOWN = {"abort": {"http_status": 418, **ALL}}
SLOW = {"delay": {"fixed_delay": "0.05s", **ALL}}
both = pytest.mark.parametrize("kind", ["threads", "tasks"])


@pytest.fixture
def server() -> Iterator[RawServer]:
    with raw_server() as made:
        yield made


async def get(kind: str, mesh: FakeMesh, **more: Any) -> httpx.Response:
    known: Any = mesh
    if kind == "threads":
        with meshlib.Client(mesh=known) as client:
            return client.get(URL, **more)
    async with meshlib.AsyncClient(mesh=known) as aclient:
        return await aclient.get(URL, **more)


@both
async def test_an_abort_is_a_response_and_nobody_is_asked(kind: str) -> None:
    answer = await get(kind, fake_mesh([1], fault=DOWN))
    assert (answer.status_code, answer.text) == (418, "fault filter abort")
    assert answer.extensions["meshlib"].flag == "FI"
    assert answer.extensions["meshlib"].attempts == 0


@both
async def test_an_abort_of_a_grpc_request(kind: str) -> None:
    mesh = fake_mesh([1], fault={"abort": {"grpc_status": 14, **ALL}})
    answer = await get(kind, mesh, headers={"content-type": "application/grpc"})
    assert (answer.status_code, answer.content) == (200, b"")
    assert (answer.headers["grpc-status"], answer.headers["grpc-message"]) == ("14", "fault filter abort")


@both
async def test_a_delay_is_waited_for(kind: str, server: RawServer) -> None:
    began = time.monotonic()
    mesh = fake_mesh([server.port], fault=SLOW, route={"timeout": "0.04s"})
    answer = await get(kind, mesh)
    assert time.monotonic() - began >= 0.05
    assert (answer.status_code, answer.extensions["meshlib"].flag) == (200, "DI")
    assert (mesh.in_flight(), mesh.ledger.faults) == (0, 0)


@both
async def test_the_applications_own_time_out_counts_during_a_delay(kind: str) -> None:
    mesh = fake_mesh([1], fault={"delay": {"fixed_delay": "3600s", **ALL}})
    with pytest.raises(httpx.ReadTimeout):
        await get(kind, mesh, timeout=0.05)
    assert mesh.ledger.faults == 0


def test_flags_in_metrics_and_the_access_log(server: RawServer, tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    told = Told()
    for fault in (DOWN, SLOW, {**SLOW, **DOWN}):
        mesh = fake_mesh([server.port], fault=fault)
        mesh.telemetry = told.telemetry(replace(Bootstrap(), access_log=str(path)), lambda m=mesh: m.view)
        with meshlib.Client(mesh=mesh) as client:  # type: ignore[arg-type]
            client.get(URL)
    found = sorted((labels["response_code"], labels["response_flags"]) for _, labels in told.requests())
    assert found == [("200", "DI"), ("418", "DI,FI"), ("418", "FI")]
    lines = path.read_text().splitlines()
    assert [line.split('"')[2].split()[1:3] for line in lines] == [
        ["FI", "fault_filter_abort"],
        ["DI", "via_upstream"],
        ["DI,FI", "fault_filter_abort"],
    ]
    told.close()
