"""The file of a node's workloads: a list in YAML, read again when it changes.

Rules:

- A file that can't be read, or in which anything is wrong, changes nothing: the last good one stays, and what
  is wrong is said once.
- A workload that changes leaves and comes back; the others notice nothing.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Hashable
from pathlib import Path
from typing import Any

import yaml

from meshlib.agent.workload import Workload
from meshlib.errors import ConfigError

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.25
MAX_BYTES = 1024 * 1024


class _Loader(yaml.CSafeLoader):
    """Plain values, and no name twice."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        """As it is, but for names that stand twice."""
        names = [self.construct_object(name, deep=True) for name, _ in node.value]
        for place, name in enumerate(names):
            if name in names[:place]:
                line = node.value[place][0].start_mark.line + 1
                raise yaml.constructor.ConstructorError(problem=f"line {line}: {name!r} stands twice")
        return super().construct_mapping(node, deep)


def read(path: Path) -> tuple[Workload, ...]:
    """The workloads of a file. ConfigError: what is wrong, and where."""
    try:
        with path.open("rb") as file:
            text = file.read(MAX_BYTES + 1)
        if len(text) > MAX_BYTES:
            raise ConfigError(f"{path}: more than {MAX_BYTES} bytes")
        said = yaml.load(text, _Loader)  # noqa: S506, TID251 - constructs plain values only
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except (yaml.YAMLError, TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: {' '.join(str(error).split())}") from None
    return of_list(said, f"{path}: ")


def of_list(said: Any, where: str) -> tuple[Workload, ...]:
    """Workloads of a list; None is an empty one. ConfigError."""
    if said is None:
        return ()
    if not isinstance(said, list):
        raise ConfigError(f"{where}found {type(said).__name__}; allowed is a list of workloads")
    found = [Workload.of(one, f"{where}[{place}].") for place, one in enumerate(said)]
    names = [one.name for one in found]
    for place, name in enumerate(names):
        if name in names[:place]:
            raise ConfigError(f"{where}[{place}].name: {name!r} stands twice")
    return tuple(found)


async def follow(path: Path) -> AsyncIterator[tuple[Workload, ...]]:
    """The workloads now, and again whenever they are others; for ever."""
    last: tuple[Workload, ...] | None = None
    stamp: object = ()
    while True:
        now = _stamp(path)
        if now != stamp:
            stamp = now
            try:
                found = read(path)
            except ConfigError as error:
                stays = "; the last good one stays" if last is not None else ""
                log.error("workloads: %s%s", error, stays)
            else:
                if found != last:
                    last = found
                    yield found
        await asyncio.sleep(LOOK_SECONDS)


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
