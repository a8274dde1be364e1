"""The access logs of an HttpConnectionManager as core's AccessLogs.

Rules:

- A format that is none is refused, as a real Envoy refuses it.
- What only a real Envoy can do (another kind of log or filter) stops no traffic: the listener is taken, and
  that log is not written, with its reason.
"""

import json
from collections.abc import Iterable
from typing import Any

from google.protobuf.message import DecodeError

from meshlib.core.telemetry import AccessLog
from meshlib.dataplane.decode.errors import Refused
from meshlib.xds import accesslog, cel, pb
from meshlib.xds.names import MESHLIB_METADATA

MOST_LOGS = 16
SOURCES = "access_logs"
"""Where in the listener's metadata the YAML of each log is named, in their order."""
_FILE = "envoy.extensions.access_loggers.file.v3.FileAccessLog"
_EXPRESSION = "envoy.extensions.access_loggers.filters.cel.v3.ExpressionFilter"


def decode_logs(manager: Any, listener: Any) -> tuple[AccessLog, ...]:
    """Those of an HttpConnectionManager; paths of errors begin with `access_log`."""
    if len(manager.access_log) > MOST_LOGS:
        raise Refused("access_log", f"more than {MOST_LOGS}")
    sources = _sources(listener.metadata)
    found = []
    for number, one in enumerate(manager.access_log):
        source = sources[number] if number < len(sources) else ""
        try:
            found.append(_log(one, source))
        except Refused as refused:
            raise refused.within(f"access_log[{number}]") from None
    return tuple(found)


def _sources(metadata: Any) -> list[str]:
    if MESHLIB_METADATA not in metadata.filter_metadata:
        return []
    said = metadata.filter_metadata[MESHLIB_METADATA].fields
    return [one.string_value for one in said[SOURCES].list_value.values] if SOURCES in said else []


def _log(message: Any, source: str) -> AccessLog:
    try:
        settings = pb.unpack(message.typed_config)
    except KeyError:
        return AccessLog("", source=source, unusable=f"{message.name} is not supported")
    except DecodeError as error:
        raise Refused("typed_config", f"can't be decoded: {error}") from None
    if settings.DESCRIPTOR.full_name != _FILE:
        return AccessLog("", source=source, unusable=f"{message.name} is not supported")
    if not settings.path:
        raise Refused("typed_config.path", "is empty")
    text, as_json, omit = _format(settings)
    condition, unusable = _condition(message)
    return AccessLog(settings.path, text, as_json, omit, condition, source, unusable)


def _format(settings: Any) -> tuple[str, str, bool]:
    which = settings.WhichOneof("access_log_format")
    if which is None:
        raise Refused("typed_config.log_format", "is not set")
    if which != "log_format":
        raise Refused(f"typed_config.{which}", "is not supported")
    said = settings.log_format
    form = said.WhichOneof("format")
    path = f"typed_config.log_format.{form}"
    if form == "json_format":
        members = _whole(pb.to_dict(said.json_format))
        _check(accesslog.texts(members), path)
        return "", json.dumps(members, sort_keys=True), said.omit_empty_values
    if form != "text_format_source" or said.text_format_source.WhichOneof("specifier") != "inline_string":
        raise Refused(path if form else "typed_config.log_format", "is not supported or not set")
    text = said.text_format_source.inline_string
    _check((text,), path)
    return text, "", said.omit_empty_values


def _whole(value: Any) -> Any:
    """JSON of a Struct, whose numbers are all floats, as Envoy writes it."""
    if isinstance(value, dict):
        return {name: _whole(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_whole(one) for one in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _check(forms: Iterable[str], path: str) -> None:
    count = 0
    for form in forms:
        try:
            count += sum(isinstance(piece, accesslog.Operator) for piece in accesslog.pieces(form))
        except ValueError as error:
            raise Refused(path, str(error)) from None
    if count > accesslog.MOST_OPERATORS:
        raise Refused(path, f"more than {accesslog.MOST_OPERATORS} operators")


def _condition(message: Any) -> tuple[str, str]:
    """The condition, and why it can't be asked."""
    if not message.HasField("filter"):
        return "", ""
    which = message.filter.WhichOneof("filter_specifier")
    packed = message.filter.extension_filter.typed_config
    if which != "extension_filter" or packed.type_url.rpartition("/")[2] != _EXPRESSION:
        return "", f"its filter {which or 'without a kind'} is not supported"
    try:
        text = pb.unpack(packed).expression
        cel.condition(text)
    except DecodeError as error:
        raise Refused("filter.extension_filter.typed_config", f"can't be decoded: {error}") from None
    except ValueError as error:
        return "", f"its filter {text!r} is not supported: {error}"
    return text, ""
