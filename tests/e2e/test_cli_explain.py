"""`meshlib explain` on the tutorial's files: which line decides, in text and in JSON."""

import json
import shlex
import shutil
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import pytest
from support.commands import control, meshlib
from support.secure_mesh import secure_mesh

from meshlib import Client, ConnectFailed

URL = "http://reviews:9080/reviews/0"
JASON = ("-H", "end-user: jason", "-H", "user-agent: Mozilla/5.0 Chrome/140.0 Safari/537.36")
MESH_CONFIG = """
apiVersion: mesh.istio.io/v1alpha1
kind: MeshConfig
metadata: {name: mesh}
outboundTrafficPolicy: {mode: REGISTRY_ONLY}
"""
WORKLOAD = """
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: reviews-v2}
spec: {address: 127.0.0.1, ports: {http: 7002}, labels: {app: reviews, version: v2}}
"""


@pytest.fixture
def mesh(tmp_path: Path) -> Path:
    with as_file(files("meshlib_bookinfo") / "mesh") as shipped:
        shutil.copytree(shipped, tmp_path / "mesh")
    (tmp_path / "mesh" / "workloads.yaml").write_text(WORKLOAD)
    return tmp_path / "mesh"


def explain(*arguments: str) -> dict[str, Any]:
    done = meshlib("explain", "--output", "json", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return dict(json.loads(done.stdout))


def line_of(mesh: Path, text: str, after: str) -> int:
    lines = (mesh / "virtual-service-all.yml").read_text().splitlines()
    start = next(number for number, line in enumerate(lines) if after in line)
    return next(number for number, line in enumerate(lines) if number > start and text in line) + 1


def test_jason_with_chrome_goes_to_v2_within_two_seconds(mesh: Path) -> None:
    answer = explain("--config", str(mesh), "GET", URL, *JASON)
    assert answer["matched"] is True
    assert [(c["host"], c["subset"], c["port"], c["probability"]) for c in answer["clusters"]] == [
        ("reviews.default.svc.cluster.local", "v2", 9080, 1.0)
    ]
    assert answer["timeout_s"] == 2.0
    assert answer["mirrors"] == []
    assert answer["document"] == "VirtualService default/reviews"
    assert answer["source"] == f"virtual-service-all.yml:{line_of(mesh, '- match:', 'name: reviews')}"
    assert [(e["address"], e["eligible"]) for e in answer["endpoints"]] == [("127.0.0.1:7002", True)]


def test_everybody_else_goes_to_v1_with_a_copy_for_v3(mesh: Path) -> None:
    answer = explain("--config", str(mesh), URL)
    assert [c["subset"] for c in answer["clusters"]] == ["v1"]
    assert [(m["subset"], m["percent"]) for m in answer["mirrors"]] == [("v3", 100.0)]
    assert answer["timeout_s"] == 2.0
    assert answer["endpoints"] == []
    assert [step["matched"] for step in answer["steps"]] == [False, True]
    assert "header end-user is absent" in answer["steps"][0]["why_not"]


def test_productpage_is_tried_three_times(mesh: Path) -> None:
    answer = explain("--config", str(mesh), "http://productpage:9080/productpage")
    assert answer["retries"]["attempts"] == 2
    assert answer["retries"]["per_try_timeout_s"] == 1.0
    assert answer["retries"]["retry_on"] == ["connect-failure", "gateway-error", "refused-stream"]
    assert answer["timeout_s"] is None


def test_text_says_the_same(mesh: Path) -> None:
    done = meshlib("explain", "--config", str(mesh), "GET", URL, *JASON)
    assert done.returncode == 0, done.stderr
    assert "GET http://reviews:9080/reviews/0" in done.stdout
    assert "VirtualService default/reviews virtual-service-all.yml:" in done.stdout
    assert "100% → reviews.default.svc.cluster.local:9080 subset v2" in done.stdout
    assert "time-out 2 s" in done.stdout


def test_a_running_control_service_is_asked_as_that_client(mesh: Path) -> None:
    with control(mesh) as served:
        answer = explain("--control", served.address, "--from", "default/bookinfo-productpage", URL, *JASON)
        assert [c["subset"] for c in answer["clusters"]] == ["v2"]
        stranger = explain("--control", served.address, "--from", "elsewhere/stranger", URL)
        assert [c["subset"] for c in stranger["clusters"]] != ["v1"]


def test_a_host_outside_the_mesh_passes_through(mesh: Path) -> None:
    answer = explain("--config", str(mesh), "http://example.com/x")
    assert [(c["name"], c["passes_through"]) for c in answer["clusters"]] == [("PassthroughCluster", True)]
    text = meshlib("explain", "--config", str(mesh), "http://example.com/x").stdout
    assert "to the address that the request names, example.com:80" in text
    assert "no endpoint" not in text


def blocks(language: str) -> list[str]:
    """The blocks of the how-to in that language."""
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "explain.md").read_text()
    return [part.partition("```")[0] for part in page.split(f"```{language}\n")[1:]]


def test_the_how_to_shows_what_is_printed(tmp_path: Path) -> None:
    with as_file(files("meshlib_bookinfo") / "mesh") as shipped:
        shutil.copytree(shipped, tmp_path / "mesh")
    (policy,) = blocks("yaml")
    (tmp_path / "mesh" / "policy.yaml").write_text(policy)
    shown = [one for block in blocks("console") for one in block.split("$ meshlib ") if one]
    assert len(shown) == 6
    for one in shown:
        command, _, said = one.partition("\n")
        words = [word.replace("mesh/", str(tmp_path / "mesh")) for word in shlex.split(command)]
        done = meshlib(*words)
        assert (done.returncode, done.stdout) == (0, said), command


SERVER = ("--label", "app=reviews", "--from", "default/demo", "http://reviews:9080/reviews/0")
MODE = """
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default}
spec:
  mtls: {mode: MODE}
"""


@pytest.mark.parametrize("mode", ["STRICT", "PERMISSIVE", "DISABLE"])
def test_a_folder_means_a_mesh_with_identity(mode: str, mesh: Path) -> None:
    (mesh / "mode.yaml").write_text(MODE.replace("MODE", mode))
    answer = explain("--inbound", "--config", str(mesh), *SERVER)
    assert (answer["mode"], answer["mode_document"], answer["mode_source"], answer["with_authority"]) == (
        mode,
        "PeerAuthentication default/default",
        "mode.yaml:6",
        True,
    )
    who = "spiffe://cluster.local/ns/default/sa/demo"
    assert (answer["caller"], answer["principal"]) == (who, "" if mode == "DISABLE" else who)


def test_a_control_service_without_an_authority_says_what_is_in_force(mesh: Path) -> None:
    with control(mesh) as served:
        answer = explain("--inbound", "--control", served.address, *SERVER)
        assert (answer["mode"], answer["with_authority"], answer["principal"]) == ("DISABLE", False, "")
        text = meshlib("explain", "--inbound", "--control", served.address, *SERVER).stdout
        assert "(PERMISSIVE, but there is no certificate authority)" in text


def test_a_control_service_with_an_authority_says_what_is_in_force(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MESHLIB_ALLOW_PLAINTEXT")
    with secure_mesh(tmp_path) as secured:
        for name, value in secured.settings("reviews").items():
            monkeypatch.setenv(f"MESHLIB_{name.upper()}", str(value))
        answer = explain("--inbound", *SERVER)
        assert (answer["mode"], answer["with_authority"], answer["admitted"]) == ("PERMISSIVE", True, True)
        assert answer["principal"] == "spiffe://cluster.local/ns/default/sa/demo"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--config", "nowhere", "GET", URL), "nowhere"),
        (("GET", "reviews"), "http://"),
        (("GET", "ftp://reviews/"), "http://"),
        ((URL, "-H", "no colon"), "name: value"),
        ((URL, "-H", "x: 1\r\nend-user: jason"), "control character"),
        ((URL, "--label", "x"), "k=v"),
        (("--from", "justone", URL), "NAMESPACE/ACCOUNT"),
        (("--from", "spiffe://a/ns/b/sa/c", URL), "NAMESPACE/ACCOUNT"),
        (("--inbound", "--from", "justone", URL), "NAMESPACE/ACCOUNT"),
        (("--inbound", "--from", "spiffe://a/b", URL), "spiffe://<domain>"),
        (("--inbound", "--from", "a/b%c", URL), "is no name of a namespace"),
        (("--gateway", "edge", "--from", "nobody", URL), "'nobody' is no IP address"),
        (("--gateway", "edge", "--inbound", URL), "either a gateway or a server"),
        (("GET", URL, "more"), "more"),
        ((), "Missing argument"),
    ],
)
def test_bad_arguments_are_one_sentence_and_exit_2(arguments: tuple[str, ...], said: str, mesh: Path) -> None:
    config = () if "--config" in arguments else ("--config", str(mesh))
    done = meshlib("explain", *config, *arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("of", [(), ("--gateway", "edge")], ids=["client", "gateway"])
def test_no_control_service_is_exit_1(of: tuple[str, ...]) -> None:
    done = meshlib("explain", *of, "--control", "127.0.0.1:1", URL)
    assert done.returncode == 1
    assert "127.0.0.1:1" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_https_url_is_told_as_a_client_treats_it(mesh: Path) -> None:
    (mesh / "mesh.yaml").write_text(MESH_CONFIG)
    known = meshlib("explain", "--config", str(mesh), "https://reviews:9080/", *JASON)
    assert "https:// is encrypted by the application: no rule takes it" in known.stdout
    refused = meshlib("explain", "--config", str(mesh), "https://elsewhere.example/")
    assert "refused (ConnectFailed): elsewhere.example:443: it is unknown" in refused.stdout
    with (
        Client(control=str(mesh)) as client,
        pytest.raises(ConnectFailed, match=r"elsewhere\.example:443 is"),
    ):
        client.get("https://elsewhere.example/")
