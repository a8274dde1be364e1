"""The tables of docs/reference/grpc-interop.md, which are what the cases of interoperability expect."""

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs/reference/grpc-interop.md"
SLACK_SECONDS = 1.0
"""By which a busy machine may be late; nobody may be early."""
_TIMED = re.compile(r"(?P<words>.*) after (?P<least>[0-9.]+)( to (?P<most>[0-9.]+))? s")


def table(title: str) -> dict[str, dict[str, str]]:
    """The table below that heading: rows by their first cell, cells by the heading of their column."""
    below = PAGE.read_text().partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    lines = [line for line in below.splitlines() if line.startswith("|")]
    heads, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    return {cells[0].replace("`", ""): dict(zip(heads, cells, strict=True)) for cells in rows}


def agrees(cell: str, found: str) -> bool:
    """Whether that is what a cell says: `this`, `this or that`, `this after 1 s`, `this after 1 to 2 s`."""
    said, seen = _TIMED.fullmatch(cell), _TIMED.fullmatch(found)
    if said is None or seen is None:
        return found in cell.split(" or ")
    least, took = float(said["least"]), float(seen["least"])
    most = float(said["most"] or least) + SLACK_SECONDS
    return seen["words"] in said["words"].split(" or ") and least - 0.02 <= took <= most
