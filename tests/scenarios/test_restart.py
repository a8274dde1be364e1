"""The control service comes, changes, dies and returns; the application goes on and nothing stays behind."""

import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.named_server import named_server
from support.resources import DECODERS, routed, served_by, target
from support.served import Served

from meshlib.bootstrap import bootstrap
from meshlib.dataplane.mesh import Mesh
from meshlib.errors import ControlUnavailable


def mesh_of(address: str, state_dir: Path | str, **more: object) -> Mesh:
    return Mesh(
        bootstrap({}, allow_plaintext=True, control=address, state_dir=state_dir, **more), decode=DECODERS
    )


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def sockets() -> int:
    return sum(1 for fd in Path("/proc/self/fd").iterdir() if "socket" in str(_link(fd)))


def _link(fd: Path) -> str:
    try:
        return str(fd.readlink())
    except OSError:
        return ""


def clusters(mesh: Mesh, name: str) -> list[str]:
    host = mesh.view.tables[name].find_host("any")
    assert host is not None
    return [c.name for route in host.routes for c in route.action.clusters]  # type: ignore[union-attr]


def test_first_call_change_and_close(tmp_path: Path) -> None:
    with Served("5.1", target("a:80", "one")) as served:
        before = sockets()
        mesh = mesh_of(served.address, tmp_path)
        assert "not started" in repr(mesh)
        assert not [t for t in threading.enumerate() if t.name == "meshlib-ads"]
        mesh.prepare("a:80")
        assert clusters(mesh, "a:80") == ["one"]
        assert mesh.view.version == "5.1"
        assert mesh.view.endpoints["one"].size == 1
        served.publish("5.2", target("a:80", "two", 2))
        until(lambda: clusters(mesh, "a:80") == ["two"] and set(mesh.view.clusters) == {"two"})
        assert "connected to" in repr(mesh)
        assert "configuration 5.2, 1 targets" in repr(mesh)
        mesh.close()
        assert not [t for t in threading.enumerate() if t.name == "meshlib-ads"]
        until(lambda: sockets() <= before)


def test_a_rule_is_of_the_configuration_that_changed_it(tmp_path: Path) -> None:
    with Served("5.1", target("a:80", "one")) as served, mesh_of(served.address, tmp_path) as mesh:
        assert mesh.prepare("a:80").tables["a:80"].version == "5.1"
        served.publish("5.2", target("a:80", "one", 2))
        until(lambda: mesh.view.version == "5.2")
        assert mesh.view.tables["a:80"].version == "5.1"
        served.publish("5.3", target("a:80", "two", 2))
        # Its cluster is heard of before its routes are.
        until(lambda: clusters(mesh, "a:80") == ["two"] or mesh.view.tables["a:80"].version != "5.1")
        assert (clusters(mesh, "a:80"), mesh.view.tables["a:80"].version) == (["two"], "5.3")
    with mesh_of(served.address, tmp_path) as mesh:
        assert mesh.prepare("a:80").tables["a:80"].version == "5.3"


async def test_asyncio(tmp_path: Path) -> None:
    with Served("5.1", target("a:80", "one")) as served:
        async with mesh_of(served.address, tmp_path) as mesh:
            await mesh.aprepare("a:80")
            assert clusters(mesh, "a:80") == ["one"]


def test_an_unknown_target_is_answered(tmp_path: Path) -> None:
    with Served("5.1") as served, mesh_of(served.address, tmp_path) as mesh:
        mesh.prepare("nobody:80")
        assert dict(mesh.view.tables) == {}


def test_nothing_known(tmp_path: Path) -> None:
    said = r"a:80: the control service 127\.0\.0\.1:1 was not reached"
    with (
        mesh_of("127.0.0.1:1", tmp_path, first_call_timeout=0.2) as mesh,
        pytest.raises(ControlUnavailable, match=said),
    ):
        mesh.prepare("a:80")


def test_starts_from_disk_while_control_is_down(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Served("5.1", target("a:80", "one")) as served:
        port = served.port
        with mesh_of(served.address, tmp_path) as mesh:
            mesh.prepare("a:80")
    with mesh_of(f"127.0.0.1:{port}", tmp_path) as mesh:
        mesh.prepare("a:80")
        assert clusters(mesh, "a:80") == ["one"]
        assert mesh.view.endpoints["one"].size == 1
        assert "1 of them from disk" in repr(mesh)
        assert sum("serving by the last good configuration" in r.message for r in caplog.records) == 1
        with Served("6.1", target("a:80", "two"), port=port):
            until(lambda: clusters(mesh, "a:80") == ["two"])
            assert "from disk" not in repr(mesh)


def test_starts_from_disk_with_a_cluster_that_does_not_exist(tmp_path: Path) -> None:
    with Served("5.1", routed("a:80", "gone")) as served:
        port = served.port
        with mesh_of(served.address, tmp_path) as mesh:
            mesh.prepare("a:80")
            mesh.prepare("b:80")
    with mesh_of(f"127.0.0.1:{port}", tmp_path) as mesh:
        mesh.prepare("a:80")
        assert clusters(mesh, "a:80") == ["gone"]
        assert dict(mesh.view.clusters) == {}
        mesh.prepare("b:80")
        assert set(mesh.view.tables) == {"a:80"}


def test_starts_from_disk_while_control_hangs(tmp_path: Path) -> None:
    with Served("5.1", target("a:80", "one")) as served:
        port = served.port
        with mesh_of(served.address, tmp_path) as mesh:
            mesh.prepare("a:80")
    # It takes connections, and says nothing.
    with socket.create_server(("127.0.0.1", port)), mesh_of(f"127.0.0.1:{port}", tmp_path) as mesh:
        mesh.prepare("a:80")
        assert clusters(mesh, "a:80") == ["one"]
        assert not mesh.connected


def test_what_is_no_control_service(tmp_path: Path) -> None:
    with (
        named_server("web") as port,
        mesh_of(f"127.0.0.1:{port}", tmp_path, first_call_timeout=1.5) as mesh,
        pytest.raises(ControlUnavailable, match=r"INTERNAL: it does not speak HTTP/2"),
    ):
        mesh.prepare("a:80")


def test_a_name_with_several_addresses(tmp_path: Path) -> None:
    with (
        Served("5.1", target("a:80", "one")) as served,
        mesh_of(f"localhost:{served.port}", tmp_path) as mesh,
    ):
        mesh.prepare("a:80")
        assert mesh.connected


def test_what_is_the_same_after_a_restart(tmp_path: Path) -> None:
    with Served("5.1", target("a:80", "one")) as served:
        port = served.port
        mesh = mesh_of(served.address, tmp_path)
        mesh.prepare("a:80")
    with mesh:
        until(lambda: not mesh.connected)
        with Served("6.1", target("a:80", "one"), port=port):
            until(lambda: mesh.connected and mesh.view.version == "6.1")
            assert clusters(mesh, "a:80") == ["one"]


def test_a_restarted_control_service_wins_and_an_older_one_does_not(tmp_path: Path) -> None:
    with Served("5.7", target("a:80", "one")) as served:
        port = served.port
        mesh = mesh_of(served.address, tmp_path)
        mesh.prepare("a:80")
    with mesh:
        until(lambda: not mesh.connected)
        assert clusters(mesh, "a:80") == ["one"]
        with Served("4.9", target("a:80", "old"), port=port):
            until(lambda: "4.9, older than the one in force" in repr(mesh))
            assert clusters(mesh, "a:80") == ["one"]
        with Served("6.1", target("a:80", "new"), port=port):
            until(lambda: clusters(mesh, "a:80") == ["new"])


def test_a_refused_resource_keeps_the_last_good_one(tmp_path: Path) -> None:
    with Served("5.1", target("a:80", "one")) as served, mesh_of(served.address, tmp_path) as mesh:
        mesh.prepare("a:80")
        broken = (routed("a:80", "one")[0], routed("a:80", "")[1])
        served.publish("5.2", (*broken, *served_by("one", 1)))
        until(
            lambda: any(
                "routes a:80" in kind.error
                for c in served.hub.connections
                for kind in c.stream.subscriptions.values()
            )
        )
        assert clusters(mesh, "a:80") == ["one"]
