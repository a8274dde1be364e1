"""The examples of nodes: what of them can be tried without systemd and without a cluster."""

import configparser
import os
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.commands import MESHLIB, meshlib
from typer.main import get_command

from meshlib.agent.workloads import read
from meshlib.bootstrap import bootstrap
from meshlib.cli.commands import app

EXAMPLES = Path(__file__).parents[2] / "examples"
VM, DAEMONSET = EXAMPLES / "node_vm", EXAMPLES / "node_daemonset"


def unit(name: str) -> configparser.SectionProxy:
    parser = configparser.ConfigParser(interpolation=None, delimiters="=")
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(VM / name)
    return parser["Service"]


def understood(words: list[str]) -> dict[str, Any]:
    """What the command line says, if it is one. A click exception: it is none."""
    command: Any = get_command(app)
    said: dict[str, Any] = {}
    parent = None
    while True:
        context = command.make_context("meshlib", list(words), parent=parent)
        said |= context.params
        rest = [*context._protected_args, *context.args]
        if not (hasattr(command, "resolve_command") and rest):
            return said
        parent = context
        _, command, words = command.resolve_command(context, rest)


@pytest.mark.parametrize("folder", [VM, DAEMONSET])
def test_the_rules_are_accepted(folder: Path) -> None:
    found = meshlib("check", str(folder / "mesh"))
    assert found.returncode == 0, found.stdout + found.stderr


def test_the_units_run_what_there_is() -> None:
    program, *words = shlex.split(unit("meshlib-node.service")["ExecStart"])
    assert program == "/opt/meshlib/bin/meshlib"
    assert understood(words)["name"] == "%H"
    program, *words = shlex.split(unit("ratings.service")["ExecStart"])
    said = understood(words)
    assert (said["service"], said["account"], said["port"]) == ("ratings", "ratings", ["9080"])
    assert said["agent_only"], "it starts with the machine, as the node does"
    assert said["command"][-2:] == ["/usr/bin/node", "/opt/ratings/ratings.js"]
    assert {"RuntimeDirectory", "StateDirectory", "EnvironmentFile"} <= set(unit("meshlib-node.service"))


def test_the_variables_are_settings(tmp_path: Path) -> None:
    lines = (VM / "node.env").read_text().splitlines()
    found = bootstrap(dict(line.split("=", 1) for line in lines))
    assert (found.control, str(found.token_file)) == ("10.0.0.1:15010", "/etc/meshlib/token")
    roots = tmp_path / "roots.pem"
    said = {one["name"]: str(one.get("value", "worker-1")) for one in container()["env"]}
    said = {name: value.replace("$(NODE_NAME)", "worker-1") for name, value in said.items()}
    assert said["MESHLIB_CA_FILE"] == "/var/run/meshlib-ca/roots.pem"
    found = bootstrap(said | {"MESHLIB_CA_FILE": str(roots)})
    assert str(found.token_file) == "/var/run/meshlib-tokens/worker-1"


def manifests() -> dict[str, Any]:
    text = (DAEMONSET / "daemonset.yaml").read_text()
    return {one["kind"]: one for one in yaml.safe_load_all(text)}


def container() -> Any:
    (found,) = manifests()["DaemonSet"]["spec"]["template"]["spec"]["containers"]
    return found


def test_the_manifest_is_whole() -> None:
    found = manifests()
    spec = found["DaemonSet"]["spec"]
    pod = spec["template"]["spec"]
    assert found["DaemonSet"]["metadata"]["namespace"] == found["Namespace"]["metadata"]["name"]
    assert spec["selector"]["matchLabels"] == spec["template"]["metadata"]["labels"]
    assert pod["hostNetwork"] is pod["hostPID"] is container()["securityContext"]["privileged"] is True
    mounted = {one["name"]: one for one in container()["volumeMounts"]}
    assert set(mounted) == {one["name"] for one in pod["volumes"]}
    assert mounted["netns"]["mountPropagation"] == "HostToContainer"
    said = understood(["node", *container()["args"]])
    assert (said["name"], str(said["file"])) == ("$(NODE_NAME)", "/etc/meshlib/workloads.yaml")
    assert str(said["file"].parent) == mounted["workloads"]["mountPath"]


def test_the_list_of_pods_is_read() -> None:
    (found,) = read(DAEMONSET / "workloads.yaml")
    assert (found.service_account, found.ports) == ("details", (("http", 9080),))
    assert found.netns.startswith("/run/netns/cni-")


def test_a_program_before_its_agent_is_told_of_a_node_of_its_own(tmp_path: Path) -> None:
    socket = tmp_path / "own" / "node.sock"
    settings = ["--socket", str(socket), "--service", "s", "--port", "80", "--control", "127.0.0.1:1"]
    own = {name: value for name, value in os.environ.items() if not name.startswith("MESHLIB_")}
    found = subprocess.run(
        [*MESHLIB, "node", "run", *settings, "--", "true"],
        env=own | {"MESHLIB_STATE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert found.returncode == 1
    assert f"no `meshlib node` answers at {socket}; one is run for this program\n" in found.stderr
