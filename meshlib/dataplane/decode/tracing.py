"""The tracing of an HttpConnectionManager as core's Tracing.

Rules:

- Without it no spans are made, as a real Envoy makes none.
- Who the spans go to (its provider) is the application's own affair: an SDK.
- A tag of a kind that only an Envoy knows is passed over.
"""

import math
from typing import Any

from meshlib.core.telemetry import CustomTag, TagSource, Tracing
from meshlib.dataplane.decode.errors import Refused

MOST_TAGS = 100


def decode_tracing(manager: Any) -> Tracing | None:
    """That of an HttpConnectionManager; paths of errors begin with `tracing`. None: no spans are made."""
    if not manager.HasField("tracing"):
        return None
    said = manager.tracing
    share = None
    for name in ("random_sampling", "overall_sampling"):
        if said.HasField(name):
            share = (1.0 if share is None else share) * _share(getattr(said, name).value, f"tracing.{name}")
    if share == 1.0 and not said.HasField("random_sampling"):
        share = None
    if len(said.custom_tags) > MOST_TAGS:
        raise Refused("tracing.custom_tags", f"more than {MOST_TAGS}")
    found = (_tag(one, f"tracing.custom_tags[{number}]") for number, one in enumerate(said.custom_tags))
    return Tracing(share, tuple(filter(None, found)))


def _share(percent: float, path: str) -> float:
    if not math.isfinite(percent) or not 0 <= percent <= 100:
        raise Refused(path, f"{percent:g} is no percentage")
    return percent / 100


def _tag(message: Any, path: str) -> CustomTag | None:
    if not message.tag:
        raise Refused(f"{path}.tag", "is empty")
    match message.WhichOneof("type"):
        case "literal":
            made = CustomTag(message.tag, TagSource.LITERAL, message.literal.value)
        case "environment":
            said = message.environment
            made = CustomTag(message.tag, TagSource.ENVIRONMENT, said.name, said.default_value)
        case "request_header":
            said = message.request_header
            made = CustomTag(message.tag, TagSource.HEADER, said.name, said.default_value)
        case _:
            return None
    if not made.value:
        raise Refused(f"{path}.{message.WhichOneof('type')}", "is empty")
    return made
