"""The pytest plugin: the fixture `mesh`, what gives it rules, and the marker `mesh`.

It is loaded at every start of pytest wherever meshlib is installed, so it imports nothing until a test
asks for the fixture.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from meshlib.testing.mesh import ScriptedMesh

_MARKER = (
    "mesh(*rules, **settings): rules of the fixture `mesh` (YAML, or the path of a file or folder, from "
    "pytest's rootdir), and settings such as namespace= and labels= of the workload under test."
)


def pytest_configure(config: pytest.Config) -> None:
    """Registers the marker."""
    config.addinivalue_line("markers", _MARKER)


@pytest.fixture
def mesh_rules() -> Any:
    """Rules of every `mesh` here, to be overridden: YAML, the path of a file or folder, or several."""
    return ()


@pytest.fixture
def mesh(request: pytest.FixtureRequest, mesh_rules: Any) -> "Iterator[ScriptedMesh]":
    """A mesh without a network, which is the process's default one until the end of the test.

    At the end it fails a test that passed although somebody called what nobody serves.
    """
    from meshlib.testing.mesh import ScriptedMesh

    rules = list(mesh_rules) if isinstance(mesh_rules, list | tuple) else [mesh_rules]
    settings: dict[str, Any] = {}
    for mark in reversed(list(request.node.iter_markers("mesh"))):  # the closest last
        rules += mark.args
        settings |= mark.kwargs
    failed_before = request.session.testsfailed
    with ScriptedMesh(*rules, root=request.config.rootpath, **settings) as made:
        yield made
        if request.session.testsfailed == failed_before:
            made.assert_nothing_unexpected()
