"""Which YAML made a resource, as the control service wrote it into the metadata; for people."""

from typing import Any

from meshlib.core.route.rule import Origin
from meshlib.xds.names import MESHLIB_METADATA


def decode_origin(message: Any) -> Origin:
    """Of any message that has filter metadata."""
    if MESHLIB_METADATA not in message.metadata.filter_metadata:
        return Origin()
    return origin_of(message.metadata.filter_metadata[MESHLIB_METADATA].fields)


def origin_of(fields: Any) -> Origin:
    """Of the fields of a google.protobuf.Struct."""
    return Origin(*(fields[key].string_value if key in fields else "" for key in ("document", "source")))
