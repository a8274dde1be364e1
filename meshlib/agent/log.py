"""What an Envoy says in its log: what it refuses is understood and told in our words, the rest handed on.

Rules:

- A listener that it refuses is told once, and once more when it has it: a port that is taken is asked for
  again every few seconds by the control service. What was not heard of for a minute is told anew.
- Of its log we see warnings and worse; what says in other words that something was refused is left out.
"""

import asyncio
import contextlib
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

OPTIONS = ("-l", "warning", "--component-log-level", "upstream:info")
"""Of Envoy: `upstream` says which listeners it has, and why not."""
FORGOTTEN_SECONDS = 60.0
LONGEST_LINE = 65536
_LINE = re.compile(r"\[[^\]]*\]\[\d+\]\[(\w+)\]\[(\w+)\] \[[^\]]*\] (.*)")
_REFUSED = re.compile(r"lds: listener '(.*?)' config rejected: (.*)")
_TAKEN = re.compile(r"lds: add/update listener '(.*)'")
_GONE = re.compile(r"lds: remove listener '(.*)'")
_SECRET = re.compile(r"(?:delta|gRPC) config for type\.googleapis\.com/\S+\.v3\.Secret rejected: (.*)")
_SAID_OTHERWISE = re.compile(
    r"listener '.*' failed to bind or apply socket options: "
    r"|(?:delta|gRPC) config for type\.googleapis\.com/\S+\.v3\.(?:Listener|Secret) rejected: "
)
_QUIET = frozenset(("trace", "debug", "info"))


@dataclass(frozen=True, slots=True)
class Told:
    """Something that its user is to know."""

    listener: str
    """Its name; empty: it is about a secret."""
    why: str
    """Why it is refused; empty: it is so no more."""


class Log:
    """The log of an Envoy, whichever process of it writes."""

    def __init__(
        self,
        tell: Callable[[Told], None] = lambda _: None,
        hand_on: Callable[[str], object] = sys.stderr.write,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.tell = tell
        self._hand_on, self._clock = hand_on, clock
        self._refused: dict[str, tuple[str, float]] = {}
        self._secrets: dict[str, float] = {}
        self._quiet = False
        """Whether the last line was left out, and so what still belongs to it."""

    def refused(self, listener: str) -> str:
        """Why it is refused, as Envoy says it; empty: it is not, as far as is known."""
        why, heard = self._refused.get(listener, ("", 0.0))
        return why if self._clock() - heard < FORGOTTEN_SECONDS else ""

    def refused_of(self, workload: str) -> str:
        """Why a listener of a node's workload is refused; empty: none is."""
        names = [name for name in self._refused if name.startswith(f"{workload}/")]
        return next(filter(None, map(self.refused, names)), "")

    async def follow(self, stream: asyncio.StreamReader) -> None:
        """Reads until its end."""
        rest = b""
        while more := await stream.read(LONGEST_LINE):
            *lines, rest = (rest + more).split(b"\n")
            if len(rest) > LONGEST_LINE:
                lines, rest = [*lines, rest], b""
            for line in lines:
                self.hear(line.decode(errors="replace"))
        if rest:
            self.hear(rest.decode(errors="replace"))

    def hear(self, line: str) -> None:
        """One line of it."""
        found = _LINE.match(line)
        if found is not None:
            level, component, text = found.groups()
            otherwise = (component == "upstream" and level in _QUIET) or bool(_SAID_OTHERWISE.match(text))
            self._quiet = self._understood(text) or otherwise
        if not self._quiet:
            with contextlib.suppress(OSError, ValueError):
                self._hand_on(f"{line}\n")

    def _understood(self, text: str) -> bool:
        if refused := _REFUSED.match(text):
            name, why = refused.groups()
            if self.refused(name) != why:
                self.tell(Told(name, why))
            self._refused[name] = why, self._clock()
        elif taken := _TAKEN.match(text):
            if self._refused.pop(taken[1], None) is not None:
                self.tell(Told(taken[1], ""))
        elif gone := _GONE.match(text):
            self._refused.pop(gone[1], None)
        elif secret := _SECRET.match(text):
            if self._clock() - self._secrets.get(secret[1], -FORGOTTEN_SECONDS) >= FORGOTTEN_SECONDS:
                self.tell(Told("", secret[1]))
            self._secrets[secret[1]] = self._clock()
        else:
            return False
        return True
