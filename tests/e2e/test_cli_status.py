"""`meshlib status` of a real control service with a real client and a server that joined."""

from pathlib import Path

import pytest
from support.commands import control, wait_until
from support.commands import meshlib as command

import meshlib

SERVICE = """
apiVersion: v1
kind: Service
metadata: {name: echo}
spec:
  selector: {app: echo}
  ports: [{name: http, port: 8000}]
"""


def test_nobody(tmp_path: Path) -> None:
    (tmp_path / "mesh.yaml").write_text(SERVICE)
    with control(tmp_path) as served:
        assert served.status()["clients"] == []
        done = command("status", "--control", served.address)
    assert done.returncode == 0
    assert "no client is connected" in done.stdout


def test_a_client_and_a_server(tmp_path: Path) -> None:
    (tmp_path / "mesh.yaml").write_text(SERVICE)
    with control(tmp_path) as served:
        joined = meshlib.register(
            control=served.address,
            service_account="echo",
            labels={"app": "echo"},
            address="127.0.0.1",
            ports={"http": 1},
            state_dir="",
        )
        with joined, meshlib.Client(control=served.address, service_account="caller", state_dir="") as client:
            with pytest.raises(meshlib.ConnectFailed):
                client.get("http://echo:8000/")
            wait_until(lambda: served.status()["registrations"] != [], 60, "the registration")
            found = served.status()
            callers = [one for one in found["clients"] if one["service_account"] == "caller"]
            asked = {kind["kind"]: kind for kind in callers[0]["kinds"]}
            assert asked["LDS"]["names"] == ["echo:8000"]
            assert [kind["nack"] for kind in asked.values()] == [""] * len(asked)
            assert callers[0]["behind_versions"] == 0
            assert [(r["service_account"], r["ports"]) for r in found["registrations"]] == [
                ("echo", {"http": 1})
            ]
            done = command("status", "--control", served.address)
    assert "default/caller" in done.stdout
    assert "up to date" in done.stdout
    assert "127.0.0.1:1 http" in done.stdout


def test_no_control_service_is_one_sentence_and_exit_1() -> None:
    done = command("status", "--control", "127.0.0.1:1", "--timeout", "2")
    assert done.returncode == 1
    assert "no status from 127.0.0.1:1" in done.stderr
    assert "Traceback" not in done.stderr
