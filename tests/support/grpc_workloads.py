"""Programs with gRPC's own xDS in a mesh with identities: their bootstrap, by `meshlib bootstrap grpc`."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

from support.commands import MESHLIB, meshlib
from support.secure_mesh import SecureMesh

TESTS = Path(__file__).parents[1]


@dataclass
class Workloads:
    """Those of a mesh; `folder` has a short path, for sockets."""

    control: SecureMesh
    folder: Path

    def environ(self, account: str) -> dict[str, str]:
        """Of a workload that joins."""
        own = {name: value for name, value in os.environ.items() if not name.startswith("MESHLIB_")}
        said = self.control.settings(account) | {"state_dir": str(self.folder / f"{account}-state")}
        own["PYTHONPATH"] = os.pathsep.join((str(TESTS), own.get("PYTHONPATH", "")))
        return own | {f"MESHLIB_{name.upper()}": str(value) for name, value in said.items()}

    def once(self, account: str, *options: str) -> Path:
        """The bootstrap of a workload that the command leaves to itself."""
        out = self.folder / account
        with patch.dict(os.environ, self.environ(account), clear=True):
            done = meshlib("bootstrap", "grpc", "--out", str(out), *options)
        assert (done.returncode, done.stdout) == (0, f"export GRPC_XDS_BOOTSTRAP={out}/bootstrap.json\n"), (
            done
        )
        return out / "bootstrap.json"

    @contextlib.contextmanager
    def kept(self, account: str, program: list[str] | None = None, *options: str) -> Iterator[Path]:
        """The bootstrap of a workload that the command keeps."""
        out = self.folder / f"{account}-kept"
        process = subprocess.Popen(
            [*(program or MESHLIB), "bootstrap", "grpc", "--keep", "--out", str(out), *options],
            env=self.environ(account),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == f"export GRPC_XDS_BOOTSTRAP={out}/bootstrap.json\n"
            yield out / "bootstrap.json"
        finally:
            process.send_signal(signal.SIGTERM)
            _, errors = process.communicate(timeout=20)
            assert (process.returncode, errors) == (0, "")
            assert not (out / "control.sock").exists()
