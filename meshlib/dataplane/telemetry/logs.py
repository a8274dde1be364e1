"""Where the lines of access logs go: the application's own setting, and what the configuration asks for.

Rules:

- The application's own setting is instead of what the configuration asks for.
- What comes from configuration is written to /dev/stdout and /dev/stderr. To a file only if the application
  allows a folder: it is one of the folder or below, an ordinary file or none yet, and no link.
- What is refused, or can't be opened, is told in one warning that names the YAML. Requests go on.
- A line is written with one call, so that those of several processes do not mix.
"""

import json
import logging
import os
import stat
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

from meshlib.bootstrap import Bootstrap
from meshlib.core.telemetry import AccessLog
from meshlib.dataplane.telemetry import accesslog
from meshlib.dataplane.telemetry.accesslog import Line
from meshlib.dataplane.telemetry.ended import Ended
from meshlib.dataplane.telemetry.expression import Condition, condition
from meshlib.errors import ConfigError
from meshlib.xds.accesslog import STDERR, STDOUT

log = logging.getLogger(__name__)

NOWHERE = "none"
"""The setting by which an application has nothing written, whatever the configuration says."""
_STANDARD = {STDOUT: 1, STDERR: 2}
_NEW = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC


class Log:
    """Where lines go. Thread-safe; what can't be written is lost, with one warning."""

    def __init__(self, path: str, line: Line, opened: int, wanted: Condition | None = None) -> None:
        """`opened`: the file's number, which is closed with this; `wanted`: which requests; None: all."""
        self.path = path
        self._line, self._wanted, self._to = line, wanted, opened
        self._guard = threading.Lock()
        self._failed = False

    def __repr__(self) -> str:
        return f"<Log to {self.path}>"

    def write(self, ended: Ended) -> None:
        """One line, if the request is wanted."""
        if self._wanted is not None and not self._wanted(ended):
            return
        try:
            os.write(self._to, self._line(ended))
        except OSError as error:
            with self._guard:
                failed, self._failed = self._failed, True
            if not failed:
                log.warning("the access log %s can't be written: %s", self.path, error.strerror or error)

    def __del__(self) -> None:
        # Not before: a request that ends late must not write into whatever has the number by then.
        if hasattr(self, "_to"):
            os.close(self._to)


def of_settings(settings: Bootstrap) -> tuple[Log, ...] | None:
    """What the application's own settings say; None: nothing. ConfigError: it can't be opened."""
    path = settings.access_log
    if not path:
        return None
    if path == NOWHERE:
        return ()
    line = accesslog.as_json() if settings.access_log_encoding == "JSON" else accesslog.text()
    try:
        opened = os.dup(_STANDARD[path]) if path in _STANDARD else _open(path)
    except OSError as error:
        raise ConfigError(f"access_log: {path} can't be written: {error.strerror or error}") from None
    return (Log(path, line, opened),)


class Configured:
    """Makes logs of what the configuration asks for, each once."""

    def __init__(self, folder: Path | None) -> None:
        """`folder`: where files may be; None: nowhere."""
        self._folder = folder
        self._made: dict[AccessLog, Log | None] = {}

    def of(self, wanted: Iterable[tuple[AccessLog, ...]]) -> list[tuple[Log, ...]]:
        """The logs of each; those that nobody wants any more are closed when nobody writes to them."""
        made: dict[AccessLog, Log | None] = {}
        found: list[tuple[Log, ...]] = []
        for asked in wanted:
            for one in asked:
                if one not in made:
                    made[one] = self._made[one] if one in self._made else self._make(one)
            found.append(tuple(filter(None, (made[one] for one in asked))))
        self._made = made
        return found

    def _make(self, one: AccessLog) -> Log | None:
        try:
            return self._opened(one)
        except (OSError, ValueError) as error:
            said = (error.strerror if isinstance(error, OSError) else None) or error
            log.warning("the access log %s%s is not written: %s", one.path, _asked_by(one), said)
            return None

    def _opened(self, one: AccessLog) -> Log:
        if one.unusable:
            raise ValueError(one.unusable)
        line = (
            accesslog.as_json(json.loads(one.json), omit_empty=one.omit_empty)
            if one.json
            else accesslog.text(one.text, omit_empty=one.omit_empty)
        )
        wanted: Callable[[Ended], bool] | None = condition(one.condition) if one.condition else None
        opened = os.dup(_STANDARD[one.path]) if one.path in _STANDARD else self._file(one.path)
        return Log(one.path, line, opened, wanted)

    def _file(self, path: str) -> int:
        if self._folder is None:
            raise ValueError("this application lets configuration write to no file; see `access_log_dir`")
        if "\0" in path or not path.startswith("/"):
            raise ValueError("it is no absolute path")
        folder, asked = self._folder.resolve(), Path(path)
        above = asked.parent.resolve()
        if asked.name in ("", "..") or not above.is_relative_to(folder):
            raise ValueError(f"it is not below {folder}, where this application lets configuration write")
        # Another's pipe would block whoever opens it, and a link leads elsewhere.
        opened = os.open(above / asked.name, _NEW | os.O_NOFOLLOW | os.O_NONBLOCK, 0o640)
        if not stat.S_ISREG(os.fstat(opened).st_mode):
            os.close(opened)
            raise ValueError("it is no ordinary file")
        return opened


def _asked_by(one: AccessLog) -> str:
    return f" ({one.source})" if one.source else ""


def _open(path: str) -> int:
    opened = os.open(path, _NEW, 0o640)
    if stat.S_ISDIR(os.fstat(opened).st_mode):
        os.close(opened)
        raise IsADirectoryError(0, "it is a folder")
    return opened
