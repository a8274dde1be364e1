"""Envoy's header lists (`request_headers_to_add`, `…_to_remove`) as core's edits."""

from typing import Any

from meshlib.core.headers import EMPTY, Append, EditLevel, HeaderEdit, HeaderEdits, parse_template
from meshlib.dataplane.decode.errors import Refused, decode_each

MAX_EDITS = 1_000
"""Of one level: the bound that Envoy's own validation sets."""
_NAME_BYTES = frozenset(b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz")


def decode_edits(message: Any, side: str) -> HeaderEdits:
    """The edits of one level; `side` is `request` or `response`."""
    add, remove = f"{side}_headers_to_add", f"{side}_headers_to_remove"
    options, names = getattr(message, add), getattr(message, remove)
    if not options and not names:
        return EMPTY
    if len(options) > MAX_EDITS or len(names) > MAX_EDITS:
        raise Refused(add, f"more than {MAX_EDITS} edits")
    edits = decode_each(options, add, _decode_edit)
    removed = frozenset(_name(name, f"{remove}[{number}]") for number, name in enumerate(names))
    return HeaderEdits((EditLevel(tuple(edits), removed),))


def _decode_edit(option: Any) -> HeaderEdit:
    header = option.header
    name = _name(header.key, "header.key")
    if option.HasField("append"):
        action = Append.APPEND if option.append.value else Append.OVERWRITE_OR_ADD
    else:
        try:
            action = Append(option.append_action)
        except ValueError:
            raise Refused("append_action", f"{option.append_action} is unknown") from None
    text = header.value or header.raw_value.decode("utf-8", "replace")
    if any(mark in text for mark in "\0\r\n"):
        raise Refused("header.value", "holds a line end or a NUL")
    try:
        template = parse_template(text)
    except ValueError as error:
        raise Refused("header.value", str(error)) from None
    return HeaderEdit(name, template, action, option.keep_empty_value)


def _name(name: str, path: str) -> bytes:
    lower = name.lower().encode()
    if lower == b"host" or lower.startswith(b":"):
        raise Refused(path, f"{name} can't be edited; the authority has a rewrite of its own")
    if not lower or not _NAME_BYTES.issuperset(lower):
        raise Refused(path, f'"{name}" is no header name')
    return lower
