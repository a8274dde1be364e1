"""`meshlib bootstrap grpc` without a control service: what is printed in plain text, and what is refused."""

import json
import os
from pathlib import Path
from unittest.mock import patch

import pytest
from support.commands import meshlib

PLAIN = {"MESHLIB_CONTROL": "127.0.0.1:15010", "MESHLIB_ALLOW_PLAINTEXT": "true"}


def run(environ: dict[str, str], *options: str) -> tuple[int, str, str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("MESHLIB_")}
    with patch.dict(os.environ, own | environ, clear=True):
        done = meshlib("bootstrap", "grpc", *options)
    return done.returncode, done.stdout, done.stderr


def test_in_plain_text_the_bootstrap_is_printed() -> None:
    options = ("--name", "me", "--namespace", "shop", "--service-account", "cart", "--label", "app=cart")
    code, out, err = run({**PLAIN, "MESHLIB_LOCALITY": "eu/a"}, *options)
    assert (code, err) == (0, "")
    assert json.loads(out) == {
        "xds_servers": [
            {
                "server_uri": "127.0.0.1:15010",
                "channel_creds": [{"type": "insecure"}],
                "server_features": ["xds_v3"],
            }
        ],
        "node": {
            "id": "me",
            "cluster": "cart.shop",
            "locality": {"region": "eu", "zone": "a"},
            "metadata": {
                "GENERATOR": "grpc",
                "NAMESPACE": "shop",
                "SERVICE_ACCOUNT": "cart",
                "LABELS": {"app": "cart"},
            },
        },
        "server_listener_resource_name_template": "xds.istio.io/grpc/lds/inbound/%s",
    }


def test_in_plain_text_the_bootstrap_is_written(tmp_path: Path) -> None:
    code, out, _ = run(PLAIN, "--out", str(tmp_path / "it's here"))
    assert code == 0
    assert out == f"""export GRPC_XDS_BOOTSTRAP='{tmp_path}/it'"'"'s here/bootstrap.json'\n"""
    made = json.loads((tmp_path / "it's here/bootstrap.json").read_text())
    assert made["node"]["id"] == f"grpc~default.default~{os.uname().nodename}"


@pytest.mark.parametrize(
    ("environ", "options", "why"),
    [
        (PLAIN, ("--keep",), "--keep: in plain text"),
        ({}, ("--control", "mesh/"), "gRPC needs a control service, ADDRESS:PORT; mesh is a folder"),
        ({}, ("--control", "nowhere"), "control: found 'nowhere'; allowed is host:port"),
        ({"MESHLIB_STATE_DIR": ""}, (), "nowhere to keep a certificate: --out, or MESHLIB_STATE_DIR"),
        ({}, ("--label", "app"), "labels: found 'app'"),
    ],
)
def test_what_is_refused(environ: dict[str, str], options: tuple[str, ...], why: str) -> None:
    code, out, err = run(environ, *options)
    assert (code, out) == (2, "")
    assert why in err


def test_a_folder_that_others_can_write_to_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o770)
    code, _, err = run(PLAIN, "--out", str(tmp_path))
    assert code == 2
    assert "can be written to by others; needed is: chmod go-w" in err


def test_nothing_proves_who_this_is(tmp_path: Path) -> None:
    code, out, err = run({"MESHLIB_STATE_DIR": str(tmp_path)}, "--control", "127.0.0.1:1")
    assert (code, out) == (1, "")
    assert "no certificate from the control service 127.0.0.1:1" in err
