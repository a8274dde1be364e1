"""What drives a demo: scenarios in turn, rows of expected against seen, edits of its YAML."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import httpx

from meshlib.errors import MeshError

PUSH_LIMIT = 1.0
"""Seconds within which a saved edit takes effect."""
LOOKING_LIMIT = 20.0


@dataclass(frozen=True)
class Row:
    """One line of the result."""

    scenario: str
    expected: str
    seen: str
    passed: bool


class Driver:
    """Drives one; `told` is called with each finished row."""

    def __init__(self, mesh: Path, told: Callable[[Row], None]) -> None:
        """`mesh`: the folder of YAML in force."""
        self.rows: list[Row] = []
        self._mesh = mesh
        self._told = told

    async def _play(self, *scenarios: Callable[[], Awaitable[None]]) -> None:
        """Each in turn; one that ends by an error is a row that did not pass."""
        for scenario in scenarios:
            try:
                await scenario()
            except (httpx.HTTPError, MeshError) as error:
                name = scenario.__name__.replace("_", " ")
                self._row(name, "an answer", str(error) or type(error).__name__, False)

    def _row(self, scenario: str, expected: str, seen: str, passed: bool) -> None:
        row = Row(scenario, expected, seen, passed)
        self.rows.append(row)
        self._told(row)

    def _put(self, name: str, text: str) -> float:
        """Saves a document; when that was."""
        (self._mesh / name).write_text(text)
        return time.monotonic()

    def _remove(self, name: str) -> float:
        """Removes a document; when that was."""
        (self._mesh / name).unlink(missing_ok=True)
        return time.monotonic()

    async def _look(self, true: Callable[[], bool]) -> None:
        """Waits until it holds, or long enough."""
        until = time.monotonic() + LOOKING_LIMIT
        while not true() and time.monotonic() < until:  # noqa: ASYNC110 what is asked has no event
            await asyncio.sleep(0.02)

    async def _until_true(self, ask: Callable[[], Awaitable[bool]], since: float) -> float | None:
        """Seconds from `since` until it holds; None: it never did."""
        while time.monotonic() < since + LOOKING_LIMIT:
            if await ask():
                return time.monotonic() - since
            await asyncio.sleep(0.02)
        return None

    async def _answer(self, url: str) -> str:
        """The status of a plain request on a connection of its own, as curl makes it."""
        async with httpx.AsyncClient(trust_env=False, timeout=5.0) as curl:
            try:
                return str((await curl.get(url)).status_code)
            except httpx.TransportError:
                return "cut off"


def quick(took: float | None) -> bool:
    """Whether an edit that took so long was in force in time."""
    return took is not None and took < PUSH_LIMIT


def seconds(took: float | None) -> str:
    """`0.21 s`, or `never`."""
    return "never" if took is None else f"{took:.2f} s"
