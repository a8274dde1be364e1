"""How much memory there is: the machine's, or less if a control group (a container, systemd's) says so."""

import os
from pathlib import Path

_ROOT, _OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def memory(root: Path = _ROOT, own: Path = _OWN) -> int:
    """Bytes."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for line in _text(own).splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            found += _limits(root, path, "memory.max")
        elif "memory" in controllers.split(","):
            found += _limits(root / "memory", path, "memory.limit_in_bytes")
    return min(found)


def _limits(root: Path, path: str, name: str) -> list[int]:
    """Of a group and of those that it is in; a container may not see its own path, but the root."""
    parts = [part for part in path.split("/") if part not in ("", "..")]
    places = [root.joinpath(*parts[:count]) for count in range(len(parts) + 1)]
    said = [_text(place / name).strip() for place in places]
    return [int(text) for text in said if text.isdecimal()]


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
