"""Which targets are in use, and which are to be forgotten: those idle for long, and those too many.

The ports that this process serves are never forgotten, however idle: their policy must hold at once.
"""

from meshlib.bootstrap import Bootstrap
from meshlib.xds.names import inbound_port

SWEEP_SECONDS = 60.0


class Targets:
    """When each target was used last. `touch` may be called by any thread, all else under a lock."""

    def __init__(self, bootstrap: Bootstrap, now: float) -> None:
        """The bounds are `idle_targets` and `max_targets`; times are in seconds of any one clock."""
        self._idle = bootstrap.idle_targets
        self._most = bootstrap.max_targets
        self._used: dict[str, float] = {}
        self._swept = now

    def __repr__(self) -> str:
        return f"Targets({len(self._used)})"

    @property
    def pause(self) -> float:
        """Seconds between two sweeps."""
        return min(SWEEP_SECONDS, self._idle)

    def touch(self, name: str, now: float) -> None:
        """A target was used."""
        self._used[name] = now

    def excess(self) -> list[str]:
        """Those unused for longest beyond the bound; they are forgotten here."""
        used = self._outgoing()
        oldest = sorted(used, key=used.__getitem__) if len(used) > self._most else []
        return self._drop(oldest[: len(used) - self._most])

    def idle(self, now: float) -> list[str]:
        """Those unused for too long, at each sweep that is due; they are forgotten here."""
        if now - self._swept < self.pause:
            return []
        self._swept = now
        return self._drop([name for name, used in self._outgoing().items() if now - used >= self._idle])

    def _outgoing(self) -> dict[str, float]:
        return {name: used for name, used in dict(self._used).items() if inbound_port(name) is None}

    def _drop(self, names: list[str]) -> list[str]:
        for name in names:
            self._used.pop(name, None)
        return names
