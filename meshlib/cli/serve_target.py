"""From `module:name` to an ASGI application."""

import importlib
import inspect
import sys
from pathlib import Path
from typing import Any

from meshlib.errors import ConfigError

INTERFACES = ("auto", "asgi", "wsgi")


def load(target: str, interface: str = "auto", threads: int = 32, factory: bool = False) -> Any:
    """The application that `module:attribute` names, as ASGI 3. ConfigError: there is none.

    A WSGI application runs in `threads` threads. `factory`: it is called for the application.
    """
    found = _find(target)
    if factory:
        found = found()
    if not callable(found):
        raise ConfigError(f"{target}: found {type(found).__name__}, which is no application")
    if interface == "asgi" or (interface == "auto" and _is_asgi(found)):
        return found
    from meshlib_wsgi.behind_asgi import behind_asgi

    return behind_asgi(found, threads)


def _find(target: str) -> Any:
    module, colon, names = target.partition(":")
    if not module or not colon or not names:
        raise ConfigError(f"{target!r}: MODULE:NAME is needed, such as reviews.app:application")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # the application's own import
        raise ConfigError(f"{target}: there is no module {error.name!r} on sys.path") from None
    for name in names.split("."):
        if not hasattr(found, name):
            raise ConfigError(f"{target}: {name!r} is not in {getattr(found, '__name__', found)!s}")
        found = getattr(found, name)
    return found


def _is_asgi(app: Any) -> bool:
    """An ASGI 3 application is a coroutine function, or an object that is called like one."""
    call = app if inspect.isfunction(app) or inspect.ismethod(app) else getattr(app, "__call__", None)  # noqa: B004
    return inspect.iscoroutinefunction(call)
