"""httpx's command line, loaded when it is called: with rich, pygments and click it is a third of httpx.

httpx2 does so itself. Where the application has imported httpx before, nothing is changed.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

_NAME = "httpx._main"


@contextmanager
def deferred() -> Iterator[None]:
    """An httpx that is imported within has a `main` that loads the rest."""
    if "httpx" in sys.modules or _NAME in sys.modules:
        yield
        return
    instead = ModuleType(_NAME)
    vars(instead)["main"] = _main
    sys.modules[_NAME] = instead
    try:
        yield
    finally:
        sys.modules.pop(_NAME, None)


def _main(*arguments: Any, **named: Any) -> Any:
    from httpx._main import main

    return main(*arguments, **named)
