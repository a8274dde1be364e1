"""A rotation of the root whose phases end when a test says so, instead of by the clock."""

import time
from dataclasses import replace
from pathlib import Path

from meshlib.control.ca.state import read_state, write_state
from meshlib.control.ca.store import locked


def turn(folder: Path, *, settled: bool = False) -> None:
    """The rotation begun in this folder goes on now: the new root issues or, `settled`, it alone counts."""
    now = time.time()
    with locked(folder):
        state = read_state(folder)
        assert state is not None
        old, new = state.generations
        old = replace(old, trusted_until=now if settled else old.trusted_until)
        write_state(folder, replace(state, generations=(old, replace(new, issues_from=now))))
