"""Access logs by configuration, over a real control service: who writes which lines, while it is edited."""

from pathlib import Path

import pytest
from support.commands import wait_until
from support.secure_mesh import URL, SecureMesh, secure_mesh

import meshlib

MESH = """
apiVersion: mesh.istio.io/v1alpha1
kind: MeshConfig
metadata: {name: mesh}
extensionProviders:
- name: lines
  envoyFileAccessLog:
    path: FOLDER/lines
    logFormat: {text: "%REQ(:PATH)% %RESPONSE_CODE% %UPSTREAM_CLUSTER%"}
- name: outside
  envoyFileAccessLog: {path: FOLDER/../outside}
"""
TELEMETRY = """
apiVersion: telemetry.istio.io/v1
kind: Telemetry
metadata: {name: default}
spec:
  accessLogging:
"""


def entry(mode: str, expression: str = "true", provider: str = "lines") -> str:
    said = f"providers: [{{name: {provider}}}], match: {{mode: {mode}}}"
    return f"  - {{{said}, filter: {{expression: {expression!r}}}}}\n"


OUTBOUND = "outbound|9080||reviews.default.svc.cluster.local"


class Lines:
    """What stands in the log."""

    def __init__(self, folder: Path, control: SecureMesh, client: meshlib.Client) -> None:
        self.path = folder / "lines"
        self._mesh = MESH.replace("FOLDER", str(folder))
        self._control, self._client = control, client
        self._count = 0

    def edit(self, *entries: str) -> None:
        self._control.edit(self._mesh, TELEMETRY + "".join(entries))

    def ask(self) -> set[str]:
        """The lines of one request. Another one after it, so that its server is done with it."""
        self._count += 1
        for path in (str(self._count), "after"):
            assert self._client.get(f"{URL}/{path}").status_code == 200
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        return {line.partition(" ")[2] for line in lines if line.startswith(f"/{self._count} ")}

    def become(self, *clusters: str) -> None:
        """Waits until a request makes just these lines."""
        wanted = {f"200 {cluster}" for cluster in clusters}
        wait_until(lambda: self.ask() == wanted, 60, f"lines of {clusters}")


def test_a_live_edit_says_who_writes_what(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    with (
        secure_mesh(tmp_path) as control,
        control.served(access_log_dir=str(folder)) as app,
        control.joined("productpage", access_log_dir=str(folder)) as mesh,
        meshlib.Client(mesh=mesh) as client,
    ):
        lines, inbound = Lines(folder, control, client), f"inbound|{app.port}||"
        lines.become()
        lines.edit(entry("CLIENT_AND_SERVER"))
        lines.become(OUTBOUND, inbound)
        assert repr(mesh.telemetry).endswith(f": <Log to {folder}/lines>>")
        lines.edit(entry("CLIENT", "response.code >= 400"), entry("SERVER", "response.code < 400"))
        lines.become(inbound)
        lines.edit(entry("CLIENT", "request.method == 'GET'"), entry("SERVER", provider="outside"))
        lines.become(OUTBOUND)
        lines.edit(entry("CLIENT", provider="outside"))
        lines.become()
    assert not (tmp_path / "outside").exists()
    refused = [one.message for one in caplog.records if "is not written" in one.message]
    assert len(refused) == 1
    assert "is not below" in refused[0]
    assert "(mesh.yaml:" in refused[0]
