"""The modules of `meshlib_httpx`, loaded a second time: in these, `httpx` is httpx2.

httpx2 has httpx's classes under other names, and an error or a stream has to be of the library that the
application calls. So the same source is run twice, once for each library; httpx itself need not be installed.
"""

import builtins
import importlib
import sys
from collections.abc import Mapping, Sequence
from importlib.machinery import SourceFileLoader
from importlib.util import find_spec, module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType

import httpx2

_SOURCE = "meshlib_httpx"
_OURS = "meshlib_httpx2"


def load(name: str) -> ModuleType:
    """The module `name` of `meshlib_httpx` as it is for httpx2."""
    if sys.modules.get("httpx") is httpx2:
        return importlib.import_module(f"{_SOURCE}.{name}")
    full = f"{_OURS}.{name}"
    made = sys.modules.get(full)
    if made is None:
        source = find_spec(_SOURCE)  # without importing it, which would want httpx
        assert source is not None  # noqa: S101 - of the same wheel
        assert source.origin is not None  # noqa: S101 - it has a file
        loader = SourceFileLoader(full, str(Path(source.origin).with_name(f"{name}.py")))
        spec = spec_from_loader(full, loader)
        assert spec is not None  # noqa: S101 - there is a loader
        made = module_from_spec(spec)
        made.__dict__["__builtins__"] = {**vars(builtins), "__import__": _import}
        sys.modules[full] = made
        try:
            loader.exec_module(made)
        except BaseException:
            del sys.modules[full]
            raise
    return made


def _import(
    name: str,
    globals_: Mapping[str, object] | None = None,
    locals_: Mapping[str, object] | None = None,
    names: Sequence[str] = (),
    level: int = 0,
) -> ModuleType:
    """Python's, but for the two names that mean something else here."""
    if name == "httpx":
        return httpx2
    package, _, rest = name.partition(".")
    if package == _SOURCE:
        return load(rest)
    return builtins.__import__(name, globals_, locals_, names, level)
