"""Every field of the traffic kinds has a row in docs/reference/istio-support.md, and every row a field."""

import importlib
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from meshlib.control.analysis.notapplied import NOT_YET, WHOLE_KINDS

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/reference/istio-support.md"
STATES = {"applied", "partly", "compiled", "validated", "n/a"}
IDLE = {"compiled", "validated"}
KINDS = [
    "VirtualService",
    "DestinationRule",
    "ServiceEntry",
    "WorkloadEntry",
    "WorkloadGroup",
    "Sidecar",
    "Gateway",
    "PeerAuthentication",
    "AuthorizationPolicy",
    "RequestAuthentication",
    "Telemetry",
]


def rows(kind: str) -> dict[str, list[str]]:
    """field → the other cells, of the section whose heading names the kind."""
    found: dict[str, list[str]] = {}
    section = ""
    for line in PAGE.read_text().splitlines():
        if line.startswith("## "):
            section = line
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
        if kind not in section or len(cells) < 4 or cells[0] in {"field", "kind", "---"}:
            continue
        if not cells[0].startswith("`"):
            if cells[0] != kind:
                continue
            cells = cells[1:]
        found[cells[0].strip("`")] = cells[1:]
    return found


def fields(model: type[BaseModel], above: str = "", inside: tuple[type, ...] = ()) -> Iterator[str]:
    """The JSON path of every leaf; a message inside itself is not entered again."""
    for name, info in model.model_fields.items():
        path = f"{above}{info.alias or name}"
        below = [m for m in messages(info.annotation) if m not in inside]
        if not below:
            yield path
        for message in below:
            yield from fields(message, path + ".", (*inside, message))


def messages(annotation: object) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for part in typing.get_args(annotation) for found in messages(part)]


def told(kind: str) -> set[str]:
    """The JSON paths of which `check` says that they have no effect here; those of a policy as the rule's."""
    if kind in WHOLE_KINDS:
        return {"*"}
    found: set[str] = set()
    for path in NOT_YET.get(kind, ()):
        model: type[BaseModel] | None = model_of(kind)
        names: list[str] = []
        for name in path:
            if model is None or name not in model.model_fields:  # which a port's policy does not have
                break
            info = model.model_fields[name]
            names.append(info.alias or name)
            model = next(iter(messages(info.annotation)), None)
        else:
            written = ".".join(names).removeprefix("subsets.")
            found.add(written.replace("trafficPolicy.portLevelSettings.", "trafficPolicy."))
    return found


def model_of(kind: str) -> type[BaseModel]:
    found: type[BaseModel] = getattr(importlib.import_module(f"meshlib.control.istio.{kind.lower()}"), kind)
    return found


def covers(row: str, path: str) -> bool:
    return path == row or row == "*" or (row.endswith(".*") and path.startswith(row[:-1]))


@pytest.mark.parametrize("kind", KINDS)
def test_every_field_has_a_row_and_every_row_a_field(kind: str) -> None:
    written, known = rows(kind), list(fields(model_of(kind)))
    assert len(known) >= 3
    assert [path for path in known if not any(covers(row, path) for row in written)] == []
    assert [row for row in written if not any(covers(row, path) for path in known)] == []


@pytest.mark.parametrize("kind", KINDS)
def test_every_row_says_its_state_and_where_it_is_tested(kind: str) -> None:
    for field, (state, _how, tested) in rows(kind).items():
        assert state in STATES, field
        places = [place.strip() for place in tested.split(",") if place.strip()]
        assert places or state == "n/a", field
        assert [place for place in places if not (ROOT / "tests" / place).exists()] == [], field


@pytest.mark.parametrize("kind", KINDS)
def test_what_has_no_effect_is_told_and_nothing_else(kind: str) -> None:
    without = {
        row if row == "*" else row.removesuffix(".*") for row, cells in rows(kind).items() if cells[0] in IDLE
    }
    if kind == "Telemetry":  # the rest is told, with its reason, by analysis/telemetry.py
        without &= told(kind)
    nothing = {row.removesuffix(".*") for row, cells in rows(kind).items() if cells[0] == "n/a"}
    assert without <= told(kind) <= without | nothing
