"""What the how-to about services outside of the mesh says is true when it is done."""

import re
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.raw_server import RawServer, raw_server
from support.small_ca import SmallCa
from support.told_names import told_names

import meshlib

PAGE = (Path(__file__).parents[2] / "docs/how-to/egress.md").read_text()
ENTRY, SHUT = re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


@pytest.fixture
def partner(tmp_path: Path) -> Iterator[RawServer]:
    ca = SmallCa()
    own = ca.issue(dns=["api.partner.example"])
    (tmp_path / "roots.pem").write_text(ca.pem)
    (tmp_path / "own.pem").write_bytes(own.key_pem + own.pem.encode())
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tmp_path / "own.pem")
    with raw_server(context) as server, told_names() as names:
        names.addresses["api.partner.example"] = ["127.0.0.1"]
        yield server


def test_the_partner_is_called_and_nobody_else(partner: RawServer, tmp_path: Path) -> None:
    mesh = tmp_path / "mesh"
    mesh.mkdir()
    here = ENTRY.replace("/etc/partner/", f"{tmp_path}/").replace("443", str(partner.port))
    (mesh / "mesh.yaml").write_text(f"{here}---\n{SHUT}")
    for namespace in ("default", "shop"):
        with meshlib.connect(mesh, namespace=namespace) as made, meshlib.Client(mesh=made) as client:
            answer = client.get("http://api.partner.example/echo")
            facts = answer.extensions["meshlib"]
            assert (answer.status_code, facts.endpoint) == (200, f"127.0.0.1:{partner.port}")
            assert facts.document == "VirtualService default/partner"
            if namespace == "shop":
                assert client.get("http://elsewhere.example/").status_code == 502
                with pytest.raises(meshlib.ConnectFailed):
                    client.get("https://elsewhere.example/")
                with pytest.raises(meshlib.NoUpstream):
                    meshlib.create_connection(("elsewhere.example", 5432), mesh=made)
