"""The policy of a port that a workload serves: what a folder says, or what a running control service does.

Rules:

- A folder is compiled as by a control service with a certificate authority, for that is what its rules are
  written for: PERMISSIVE is PERMISSIVE.
- A control service is asked as that workload, and says what is in force. One that is talked to in plain text
  has no certificate authority: it hands out PERMISSIVE as DISABLE, and nobody can tell one from the other.
"""

import logging
import time
from dataclasses import dataclass
from typing import Any

import meshlib
from meshlib.bootstrap import Bootstrap, bootstrap
from meshlib.core.inbound import Inbound
from meshlib.dataplane.ads import decoders
from meshlib.dataplane.decode.errors import Refused
from meshlib.errors import ConfigError, RefusedResource
from meshlib.xds.kinds import Kind
from meshlib.xds.names import inbound_listener
from meshlib.xds.node import Client, Flavour

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Served:
    """A served port's policy, and of which configuration it is."""

    inbound: Inbound
    version: str
    with_authority: bool
    """Whether the mesh surely has a certificate authority, so that the mode is the one that is written."""


def served(where: object, namespace: str, labels: dict[str, str], port: int) -> Served:
    """What a workload's port asks of its callers. `where` as of `meshlib.connect`.

    ConfigError: a folder can't be read. ControlError: control is not reached, or what it says is refused.
    """
    settings = bootstrap(control=where, namespace=namespace, labels=labels, state_dir="")
    if settings.local:
        return _of_folder(settings, port)
    with meshlib.connect(where, namespace=namespace, labels=labels, state_dir="") as mesh:
        inbound = mesh.prepare_inbound(port)
        return Served(inbound, inbound.version, with_authority=mesh.certs is not None)


def loaded(folder: object) -> Any:
    """The documents of a folder; what is wrong with them is told. ConfigError: it can't be read."""
    from meshlib.control.istio.problem import Severity
    from meshlib.control.sources.files import FileSource

    try:
        found = FileSource(folder).load()  # type: ignore[arg-type]
    except OSError as error:
        raise ConfigError(f"control: {error}") from None
    for problem in found.problems:
        log.log(logging.ERROR if problem.severity is Severity.ERROR else logging.WARNING, "%s", problem)
    return found


def _of_folder(settings: Bootstrap, port: int) -> Served:
    from cryptography.hazmat.primitives.serialization import Encoding

    from meshlib.control.build import Builder
    from meshlib.control.ca.issuer import make_root

    now = time.time()
    _, root = make_root("explain", "cluster.local", now)
    version = f"{int(now * 1000)}.1"
    compiler = Builder()(loaded(settings.control), (), version, root.public_bytes(Encoding.PEM)).compiler
    client = Client(Flavour.MESHLIB, settings.namespace, settings.service_account, settings.labels)
    name = inbound_listener(port)
    found = compiler.resources(client, frozenset({name}))
    listener = next(one for one in found if one.kind is Kind.LISTENER and one.name == name)
    try:
        inbound = decoders()[Kind.LISTENER](listener.message())
    except Refused as error:
        raise RefusedResource(f"listener {name}: {error}") from None
    return Served(inbound, version, with_authority=True)
