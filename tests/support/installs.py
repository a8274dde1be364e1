"""What a page tells its reader to install, and whether that brings all that its code imports."""

import ast
import re
import sys
from collections.abc import Iterable
from importlib.metadata import packages_distributions, requires

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

_INSTALL = re.compile(r"^(?:\S*/)?pip install (?:-\S+ )*(.*)$", re.MULTILINE)


def told(page: str) -> list[Requirement]:
    """Of every `pip install` that stands alone on a line."""
    return [
        Requirement(word.strip("'\""))
        for line in _INSTALL.findall(page)
        for word in line.split("#")[0].split()
    ]


def brought(requirements: Iterable[Requirement]) -> set[str]:
    """The names of all distributions that come with these, of which each is installed here."""
    seen: set[tuple[str, frozenset[str]]] = set()
    left = list(requirements)
    while left:
        one = left.pop()
        name, extras = canonicalize_name(one.name), frozenset(one.extras)
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        for line in requires(name) or ():
            needed = Requirement(line)
            if needed.marker is None or any(needed.marker.evaluate({"extra": e}) for e in extras or {""}):
                left.append(needed)
    return {name for name, _ in seen}


def missing(page: str, blocks: Iterable[str]) -> set[str]:
    """The modules that Python blocks import and that come with nothing that the page installs."""
    have, by_module = brought(told(page)), packages_distributions()
    modules = {
        alias.name if isinstance(node, ast.Import) else str(node.module)
        for block in blocks
        for node in ast.walk(ast.parse(block))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    tops = {module.partition(".")[0] for module in modules} - set(sys.stdlib_module_names)
    return {
        top
        for top in tops
        if not top.startswith("meshlib")
        and not have & {canonicalize_name(name) for name in by_module.get(top, ())}
    }
