"""What a token says, as headers and as metadata (Envoy).

Rules:

- A number is written as a whole one if it is that and not negative, else with six digits; a list or an object
  is base64 of its JSON; null, and what no header can hold, is nothing.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any


def claim_text(claims: Mapping[str, Any], name: str) -> bytes | None:
    """A claim as a header's value; None: it is not there, or can't be one."""
    found: Any = claims
    for part in name.split("."):
        if not isinstance(found, Mapping) or part not in found:
            return None
        found = found[part]
    match found:
        case bool():
            return b"true" if found else b"false"
        case str():
            text = found
        case int() | float():
            text = str(int(found)) if found >= 0 and found == int(found) else f"{found:.6f}"
        case dict() | list():
            return base64.b64encode(json.dumps(found, separators=(",", ":"), ensure_ascii=False).encode())
        case _:
            return None
    data = text.encode("utf-8", "replace")
    return None if set(data) & {0, 10, 13} else data


def split(claims: Mapping[str, Any], names: Sequence[str]) -> Mapping[str, Any]:
    """The claims, and of these names the text as a list: it has spaces between."""
    texts = {name: claims[name].split(" ") for name in names if isinstance(claims.get(name), str)}
    return {**claims, **texts} if texts else claims
