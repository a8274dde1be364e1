"""A configuration as it is built: what compiles it for each client, and what is wrong with it."""

from collections.abc import Callable
from dataclasses import dataclass

from meshlib.control.istio.meshconfig import MeshConfig
from meshlib.control.istio.problem import Problem
from meshlib.control.registration import Registration
from meshlib.control.serve.closures import Compiler
from meshlib.control.sources.source import Loaded
from meshlib.xds.node import Client


@dataclass(frozen=True, slots=True)
class Built:
    """One configuration, and what is wrong with it beyond what its documents' source said."""

    compiler: Compiler
    problems: tuple[Problem, ...] = ()
    analyse: Callable[[], tuple[Problem, ...]] | None = None
    """Finds what is wrong between the documents; called on a thread once the configuration is served, for
    nobody should wait for it. None: nothing changed since the last one."""
    notes: Callable[[Client, frozenset[str]], tuple[str, ...]] | None = None
    """What a client that asks for these listeners does not get that documents say it has, and why."""
    mesh: MeshConfig | None = None
    """The settings of the mesh in this configuration."""


Build = Callable[[Loaded, tuple[Registration, ...], str, bytes], Built]
"""Documents, registrations, a version and the mesh's roots (PEM) to a configuration; runs on a thread."""
