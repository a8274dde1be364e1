"""What else is wrong with a spec of which some fields have the wrong form.

What has the wrong form is taken out, the rest is judged, and of the errors found those are kept that stay
true whatever was meant. Rules:

- What is said of a message, or of a field of it, may come from the message's other fields: nothing is
  kept about a message that something is missing from, nor about its fields themselves.
- What lies deeper in one field does not depend on the fields beside it, and an item not on other items.
- Where it does, the kind says so: nothing is kept when one of its deciding fields is missing.
"""

import copy
import difflib
from collections.abc import Iterable
from typing import Any

from pydantic import ValidationError

from meshlib.control.istio.document import FieldPath
from meshlib.control.istio.fields import camel
from meshlib.control.istio.kinds import Kind
from meshlib.control.istio.problem import Severity
from meshlib.control.istio.validity.report import Finding, Report
from meshlib.control.istio.wording import as_written

_ROUNDS = 8
"""Taking something out may show the next thing: a choice of two is one when both have the right form."""


def judge(kind: Kind, body: Any, places: Iterable[FieldPath]) -> list[Finding]:
    """The errors of the rest of a spec. `places` are what has the wrong form, as it was written."""
    rest, missing = copy.deepcopy(body), list(places)
    for _ in range(_ROUNDS):
        for place in missing:
            if not place or _decides(kind, str(place[0])):
                return []
        missing = sorted({_taken_out(rest, place) for place in missing}, key=str)
        try:
            spec = kind.model.model_validate(rest)
        except ValidationError as invalid:
            more = [as_written(rest, error["loc"]) for error in invalid.errors(include_url=False)]
            missing += more
            continue
        report = Report()
        kind.check(spec, report)
        return [
            found
            for found in report
            if found.severity is Severity.ERROR and not _hangs_on(as_written(rest, found.path), missing)
        ]
    return []


def _decides(kind: Kind, name: str) -> bool:
    """Whether a field of the spec is one of those, or may be meant to be."""
    return bool(difflib.get_close_matches(camel(name), list(kind.deciding), 1))


def _taken_out(rest: Any, place: FieldPath) -> FieldPath:
    """Takes the value out, or what it stands in if that is a list of plain values; returns what it was."""
    holder, path = rest, place
    for depth, part in enumerate(place[:-1]):
        try:
            holder = holder[part]
        except (KeyError, IndexError, TypeError):
            path = place[: depth + 1]
            break
    last = path[-1]
    if isinstance(holder, dict):
        holder.pop(last, None)
    elif isinstance(holder, list) and isinstance(last, int) and last < len(holder):
        if not all(isinstance(item, dict) or index == last for index, item in enumerate(holder)):
            return _taken_out(rest, path[:-1])
        # The items after it keep their places.
        holder[last] = {}
    return path


def _hangs_on(found: FieldPath, missing: Iterable[FieldPath]) -> bool:
    return any(_one_hangs_on(found, place) for place in missing)


def _one_hangs_on(found: FieldPath, missing: FieldPath) -> bool:
    shared = 0
    for one, other in zip(found, missing, strict=False):
        if one != other:
            break
        shared += 1
    if shared in (len(found), len(missing)):
        return True
    if isinstance(found[shared], int):
        return False
    return len(found) == shared + 1
