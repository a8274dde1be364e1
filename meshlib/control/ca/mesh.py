"""What the tools beside a control service must know of its mesh, noted in its state folder when it starts."""

import json
from dataclasses import dataclass
from pathlib import Path

from meshlib.control.ca.store import prepare, read_secret, write_secret
from meshlib.errors import ConfigError

FILE = "mesh.json"


@dataclass(frozen=True, slots=True)
class MeshNote:
    """The mesh of a state folder."""

    trust_domain: str = "cluster.local"
    root_namespace: str = "istio-system"

    def write(self, state_dir: Path) -> None:
        """ConfigError: it can't be written."""
        prepare(state_dir)
        said = {"trust_domain": self.trust_domain, "root_namespace": self.root_namespace}
        try:
            write_secret(state_dir / FILE, json.dumps(said).encode())
        except OSError as error:
            raise ConfigError(f"{state_dir / FILE} can't be written: {error.strerror}") from None

    @classmethod
    def read(cls, state_dir: Path) -> "MeshNote":
        """ConfigError: there is none, or it can't be used."""
        path = state_dir / FILE
        try:
            said = json.loads(read_secret(path))
            return cls(str(said["trust_domain"]), str(said["root_namespace"]))
        except FileNotFoundError:
            raise ConfigError(
                f"no control service has kept its state in {state_dir}; `meshlib control` does when it starts"
            ) from None
        except (ValueError, KeyError, TypeError):
            raise ConfigError(f"{path} can't be read; `meshlib control` writes it when it starts") from None
