"""More hosts at once than may be held: each is served in its turn."""

import asyncio
import threading
from pathlib import Path

from support.resources import DECODERS, target
from support.served import Served

from meshlib.bootstrap import bootstrap
from meshlib.dataplane.mesh import Mesh
from meshlib.xds.snapshot import Resource


def mesh_of(address: str, state_dir: Path, **more: object) -> Mesh:
    found = bootstrap({}, allow_plaintext=True, control=address, state_dir=state_dir, **more)
    return Mesh(found, decode=DECODERS)


def hosts(count: int) -> tuple[list[str], list[Resource]]:
    names = [f"h{number}:80" for number in range(count)]
    return names, [one for name in names for one in target(name, f"to {name}")]


def test_threads_that_call_more_hosts_than_may_be_held_are_all_served(tmp_path: Path) -> None:
    names, there = hosts(3)
    seen: list[str] = []

    def call(mesh: Mesh, name: str) -> None:
        for _ in range(10):
            view = mesh.prepare(name)
            assert view.tables.keys() == {name}
            assert view.clusters.keys() == view.endpoints.keys() == {f"to {name}"}
            seen.append(name)

    with (
        Served("5.1", there) as served,
        mesh_of(served.address, tmp_path, max_targets=1, first_call_timeout=30) as mesh,
    ):
        threads = [threading.Thread(target=call, args=(mesh, name)) for name in names]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert sorted(seen) == sorted(names * 10)


async def test_tasks_that_call_more_hosts_than_may_be_held_are_all_served(tmp_path: Path) -> None:
    names, there = hosts(60)
    with Served("5.1", there) as served:
        async with mesh_of(served.address, tmp_path, max_targets=10, first_call_timeout=30) as mesh:
            views = await asyncio.gather(*map(mesh.aprepare, names))
            assert all(name in view.tables for name, view in zip(names, views, strict=True))
            assert len(mesh.view.tables) == 10
    assert len(list(tmp_path.glob("*.mesh"))) == 60
