"""How `meshlib control` is secured: its authority, the tokens that it takes, and how to join it."""

import os
import resource
import shlex
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from meshlib.control.ca.store import default_folder
from meshlib.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from meshlib.control.istio.meshconfig import MeshConfig
    from meshlib.control.serve.server import Security
    from meshlib.control.sources.source import Source

MANY_FILES = 65_536


@dataclass(frozen=True, slots=True)
class Asked:
    """What the command line says about security."""

    state: Path | None = None
    ca_dir: Path | None = None
    trust_domain: str = ""
    names: tuple[str, ...] = ()
    kubernetes_jwks: str = ""
    kubernetes_issuer: str = ""
    kubernetes_credentials: Path | None = None
    gateways: tuple[tuple[str, str], ...] = ()
    """Namespace and service account of each that may have keys of Secrets."""

    def folder(self) -> Path:
        """Where the authority is kept. BadParameter: nowhere."""
        found = self.state or default_folder(os.environ)
        if found is None:
            raise typer.BadParameter("there is no home folder; give one", param_hint="--state")
        return found


def secured(asked: Asked, source: "Source") -> "Security":
    """The authority and the tokens, made if there are none. ConfigError: they can't be used."""
    from meshlib.control.ca.authority import Authority
    from meshlib.control.ca.kubernetes import Cluster, KubernetesTokens
    from meshlib.control.ca.mesh import MeshNote
    from meshlib.control.ca.nodes import Permissions
    from meshlib.control.ca.request import service_names
    from meshlib.control.ca.tokens import JoinTokens
    from meshlib.control.serve.server import Security

    mesh, folder = _mesh(source), asked.folder()
    try:
        authority = Authority.open(
            folder,
            trust_domain=asked.trust_domain or mesh.trust_domain,
            now=time.time(),
            plugin=asked.ca_dir,
        )
    except ValueError as error:
        raise ConfigError(f"trust domain: {error}") from None
    MeshNote(authority.trust_domain, mesh.root_namespace).write(folder)
    cluster = Cluster(asked.kubernetes_issuer, asked.kubernetes_jwks, asked.kubernetes_credentials)
    pods = KubernetesTokens(cluster, authority.trust_domain) if cluster.issuer or cluster.jwks else None
    return Security(
        authority,
        JoinTokens.open(folder),
        pods,
        Permissions(folder),
        names=(*asked.names, socket.getfqdn()),
        aliases=mesh.trust_domain_aliases,
        root_namespace=mesh.root_namespace,
        adopted=lambda namespace: MeshNote(authority.trust_domain, namespace).write(folder),
        hosts=service_names,
    )


def _mesh(source: "Source") -> "MeshConfig":
    """The mesh's settings as they are at the start."""
    from meshlib.control.istio.meshconfig import MeshConfig

    found = [document for document in source.load().documents if document.kind == "MeshConfig"]
    spec = min(found, key=lambda document: document.age).spec if found else None
    return spec if isinstance(spec, MeshConfig) else MeshConfig()


def how_to_join(console: "Console", asked: Asked, security: "Security", address: str) -> None:
    """Prints the environment that a workload needs, ready to be pasted."""
    from meshlib.control.serve.server import listen_address

    host, port = listen_address(address)
    if host in ("0.0.0.0", "::"):  # noqa: S104 - compared, not bound
        host = (asked.names or (socket.getfqdn(),))[0]
    reached = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    state = f" --state {shlex.quote(str(asked.state))}" if asked.state else ""
    console.print("\nTo join the mesh, a workload needs in its environment:\n", highlight=False)
    environment(
        console,
        f"MESHLIB_CONTROL={reached}",
        f"MESHLIB_CA_FINGERPRINT={security.authority.fingerprint}",
        "MESHLIB_NAMESPACE=default MESHLIB_SERVICE_ACCOUNT=NAME",
        f"MESHLIB_TOKEN=$(meshlib ca token --namespace default --account NAME --ttl 1h{state})",
    )
    if security.pods is not None:
        console.print(
            "\nA pod of Kubernetes has a token, where it mounts one for audience istio-ca: "
            "MESHLIB_TOKEN_FILE=/var/run/secrets/tokens/istio-token",
            highlight=False,
            soft_wrap=True,
        )
    console.print("\nWho is connected: [bold]meshlib status[/]" + state.replace("[", r"\["), highlight=False)
    console.print()


def environment(console: "Console", *lines: str) -> None:
    """Prints lines to be pasted into a shell."""
    for line in lines:
        console.print(f"  export {line}", highlight=False, markup=False, soft_wrap=True)


def many_files() -> None:
    """Takes as many file descriptors as the system gives: each connection needs three."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MANY_FILES if hard == resource.RLIM_INFINITY else min(MANY_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
