"""How this program was started, so that a command that it prints works where it is printed."""

import shlex
import shutil
import sys
from pathlib import Path

NAME = "meshlib"


def command() -> str:
    """What stands for `meshlib` in the shell that this program was started from."""
    started = Path(sys.argv[0])
    if started.name == "__main__.py":
        return f"{_shown(Path(sys.executable))} -m meshlib.cli"
    found = shutil.which(NAME)
    if found is not None and started.exists() and Path(found).samefile(started):
        return NAME
    return _shown(started)


def _shown(path: Path) -> str:
    """From the current folder, if it is below."""
    path = path.absolute()
    below = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    return shlex.quote(str(below) if below is path or len(below.parts) > 1 else f"./{below}")
