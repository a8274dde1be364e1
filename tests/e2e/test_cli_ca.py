"""`meshlib ca`: what an operator sees, and that a running authority follows."""

import json
import stat
import time
from pathlib import Path

import pytest
from support.commands import meshlib
from support.pki import ca, plugin

from meshlib.control.ca.authority import Authority
from meshlib.control.ca.mesh import MeshNote
from meshlib.control.ca.tokens import JoinTokens


@pytest.fixture
def running(tmp_path: Path) -> Authority:
    return Authority.open(tmp_path / "state", trust_domain="cluster.local", now=time.time())


def words(text: str) -> str:
    return " ".join(text.replace("│", " ").split())


def test_status_in_words_and_as_json(tmp_path: Path, running: Authority) -> None:
    state = str(tmp_path / "state")
    done = meshlib("ca", "status", "--state", state)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[:2] == [
        "certificate authority: own, for trust domain cluster.local",
        f"fingerprint: {running.fingerprint}",
    ]
    assert "issues, ends " in done.stdout
    assert "UTC (in 3650 days)" in done.stdout
    assert "One root is trusted, and it issues." in done.stdout
    found = json.loads(meshlib("ca", "status", "--state", state, "-o", "json").stdout)
    assert found["fingerprint"] == running.fingerprint
    assert found["rotation"] == {"phase": "settled", "until": None}
    assert "PRIVATE" not in json.dumps(found)


def test_rotate_root_and_the_service_notices(tmp_path: Path, running: Authority) -> None:
    state, old = str(tmp_path / "state"), running.fingerprint
    done = meshlib("ca", "rotate-root", "--state", state, "--overlap", "1s", "--keep", "1h", "--force")
    assert done.returncode == 0, done.stderr
    assert "warning: --overlap 1s: who is not connected until the new root issues does not" in done.stderr
    assert "The new root is trusted beside the old one and issues from " in done.stdout
    assert "Nothing to do. Before then, give the new root to whoever trusts a file" in done.stdout
    now = time.time()
    assert running.reload(now + 2) is True
    assert running.fingerprint != old
    assert running.roots_pem.count("BEGIN CERTIFICATE") == 2
    assert (tmp_path / "state/roots.pem").read_text() == running.roots_pem


def test_a_rotation_that_leaves_clients_out_has_to_be_forced(tmp_path: Path, running: Authority) -> None:
    state, old = str(tmp_path / "state"), running.roots_pem
    done = meshlib("ca", "rotate-root", "--state", state, "--overlap", "5s", "--keep", "8s")
    assert (done.returncode, done.stdout) == (2, "")
    first, second, last = done.stderr.splitlines()
    assert first.startswith("warning: --overlap 5s: ")
    assert "Safe is 1h" in first
    assert second.startswith("warning: --keep 8s: ")
    assert "Safe is 25h" in second
    assert last == "Nothing was done; --force does it all the same."
    assert running.reload(time.time() + 2) is False
    assert running.roots_pem == old
    done = meshlib("ca", "rotate-root", "--state", state, "--overlap", "1h", "--keep", "25h")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_second_rotation_is_one_sentence(tmp_path: Path, running: Authority) -> None:
    state = str(tmp_path / "state")
    assert meshlib("ca", "rotate-root", "--state", state).returncode == 0
    done = meshlib("ca", "rotate-root", "--state", state)
    assert done.returncode == 2
    assert done.stderr == "meshlib: a rotation is under way; wait until its root issues\n"


def test_the_default_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    done = meshlib("ca", "status")
    assert done.returncode == 2
    assert f"there is no certificate authority in {tmp_path}/meshlib-control" in done.stderr
    Authority.open(tmp_path / "meshlib-control", trust_domain="cluster.local", now=time.time())
    assert meshlib("ca", "status").returncode == 0


@pytest.mark.parametrize("option", ["--overlap", "--keep"])
def test_durations_are_checked(running: Authority, tmp_path: Path, option: str) -> None:
    for text in ("soon", "-1h", "1"):
        done = meshlib("ca", "rotate-root", "--state", str(tmp_path / "state"), option, text)
        assert done.returncode == 2
        assert f"'{text}' is no duration such as 24h or 30m" in words(done.stderr)


def test_an_open_folder_is_one_sentence(running: Authority, tmp_path: Path) -> None:
    (tmp_path / "state").chmod(0o755)
    done = meshlib("ca", "status", "--state", str(tmp_path / "state"))
    assert done.returncode == 2
    assert done.stderr == (
        f"meshlib: the folder {tmp_path}/state is open to other users; run: chmod 700 {tmp_path}/state\n"
    )


def test_plug_in_files_are_checked(tmp_path: Path) -> None:
    now = time.time()
    plugin(tmp_path, root=ca("plugged root", begin=now - 9, end=now + 9e6), now=now)
    done = meshlib("ca", "status", "--plugin", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "certificate authority: Istio's plug-in files" in done.stdout
    (tmp_path / "ca-key.pem").chmod(0o644)
    done = meshlib("ca", "status", "--plugin", str(tmp_path))
    assert done.returncode == 2
    assert done.stderr == (
        f"meshlib: {tmp_path}/ca-key.pem is open to other users; run: chmod 600 {tmp_path}/ca-key.pem\n"
    )
    assert stat.S_IMODE((tmp_path / "ca-key.pem").stat().st_mode) == 0o644


def test_help_of_each() -> None:
    assert "rotate-root" in meshlib("ca", "--help").stdout
    for command in ("status", "rotate-root"):
        done = meshlib("ca", command, "--help")
        assert done.returncode == 0
        assert f"Usage: meshlib ca {command}" in done.stdout


def test_a_node_is_allowed_listed_and_removed(tmp_path: Path, running: Authority) -> None:
    state = tmp_path / "state"
    MeshNote("cluster.local", "mesh-admins").write(state)
    done = meshlib(
        "ca", "node", "vm1", "--account", "default/ratings", "--account", "shop/*", "--state", str(state)
    )
    assert (done.returncode, done.stderr) == (0, "vm1 may speak for default/ratings, shop/*\n")
    proof = JoinTokens.open(state).verify(done.stdout.strip(), time.time())
    assert (str(proof.identity), proof.once) == ("spiffe://cluster.local/ns/meshlib-node/sa/vm1", "")
    assert 3500 < proof.ends - time.time() <= 3600
    again = meshlib("ca", "node", "vm1", "--single-use", "--ttl", "15m", "--state", str(state))
    assert again.stderr == "vm1 may speak for default/ratings, shop/*\n"
    assert JoinTokens.open(state).verify(again.stdout.strip(), time.time()).once
    assert stat.S_IMODE((state / "nodes.json").stat().st_mode) == 0o600

    shown = meshlib("ca", "status", "--state", str(state))
    assert "node   vm1: may speak for default/ratings, shop/*\n" in shown.stdout
    (state / "nodes.json").chmod(0o640)
    shown = meshlib("ca", "status", "--state", str(state), "-o", "json")
    assert (shown.returncode, "chmod 600" in json.loads(shown.stdout)["warnings"][-1]) == (3, True)
    (state / "nodes.json").chmod(0o600)

    done = meshlib("ca", "node", "vm1", "--remove", "--state", str(state))
    assert (done.returncode, done.stdout) == (0, "")
    assert "end within 24 h" in done.stderr
    assert json.loads(meshlib("ca", "status", "--state", str(state), "-o", "json").stdout)["nodes"] == {}


@pytest.mark.parametrize(
    ("options", "code", "text"),
    [
        (["vm1"], 2, "vm1 is new: say for whom it may speak"),
        (["VM1", "--account", "shop/cart"], 2, "'VM1' is no name of a node"),
        (["vm1", "--account", "*/*"], 2, "is not NAMESPACE/ACCOUNT"),
        (["vm1", "--account", "mesh-admins/operator"], 2, "a node can't speak for operators"),
        (["vm1", "--account", "meshlib-node/vm2"], 2, "a node can't speak for nodes"),
        (["vm1", "--account", "shop/cart", "--ttl", "soon"], 2, "'soon' is no duration"),
        (["vm1", "--remove"], 2, "there is no node 'vm1'"),
        (["vm1", "--remove", "--account", "shop/cart"], 2, "speaks for nobody"),
    ],
)
def test_a_node_that_is_not_taken(
    options: list[str], code: int, text: str, tmp_path: Path, running: Authority
) -> None:
    state = tmp_path / "state"
    MeshNote("cluster.local", "mesh-admins").write(state)
    done = meshlib("ca", "node", *options, "--state", str(state))
    assert (done.returncode, done.stdout) == (code, "")
    assert text in words(done.stderr)
    assert not (state / "nodes.json").exists()


def test_no_token_makes_a_workload_a_node(tmp_path: Path, running: Authority) -> None:
    state = tmp_path / "state"
    MeshNote("cluster.local", "istio-system").write(state)
    done = meshlib("ca", "token", "--namespace", "meshlib-node", "--account", "vm1", "--state", str(state))
    assert (done.returncode, done.stdout) == (2, "")
    assert "nodes join by `meshlib ca node NAME`" in words(done.stderr)
