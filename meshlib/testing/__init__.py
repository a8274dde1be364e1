"""A mesh for unit tests: rules from YAML, upstreams that are scripted, no network, no time that passes.

    def test_falls_back(mesh):                        # the fixture of the pytest plugin
        mesh.apply(Path("mesh/"))                     # Istio's YAML: a text, a file or a folder
        mesh.serve("ratings", 503, 503, 200)          # what the upstream answers, one after the other
        mesh.fault("reviews", delay="5s")             # takes no time
        …                                             # the code under test, with whichever client
        mesh.assert_called("ratings", times=3)

Outside of pytest: `with meshlib.testing.ScriptedMesh("mesh/") as mesh:`. Needs the extra `testing`.

Names are loaded when they are first used: pytest loads the plugin whether or not a test asks for it.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from meshlib.core.request import Failure
    from meshlib.testing.answers import Response
    from meshlib.testing.calls import Call, UnexpectedCall
    from meshlib.testing.clock import Clock, Stuck
    from meshlib.testing.dice import Dice
    from meshlib.testing.holds import Hold
    from meshlib.testing.mesh import ScriptedMesh
    from meshlib.testing.rules import Fault
    from meshlib.testing.upstreams import Upstream

__all__ = [
    "Call",
    "Clock",
    "Dice",
    "Failure",
    "Fault",
    "Hold",
    "Response",
    "ScriptedMesh",
    "Stuck",
    "UnexpectedCall",
    "Upstream",
]

_LAZY = {
    "Call": "meshlib.testing.calls",
    "Clock": "meshlib.testing.clock",
    "Dice": "meshlib.testing.dice",
    "Failure": "meshlib.core.request",
    "Fault": "meshlib.testing.rules",
    "Hold": "meshlib.testing.holds",
    "Response": "meshlib.testing.answers",
    "ScriptedMesh": "meshlib.testing.mesh",
    "Stuck": "meshlib.testing.clock",
    "UnexpectedCall": "meshlib.testing.calls",
    "Upstream": "meshlib.testing.upstreams",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'meshlib.testing' has no attribute {name!r}")
    value = getattr(importlib.import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
