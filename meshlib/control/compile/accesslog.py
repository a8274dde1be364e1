"""Access logs, as Envoy's file loggers with a format and a filter of CEL.

Rule: a format or filter that Envoy does not take would make it refuse the whole listener. A log with one is
left out, and `meshlib check` says so.
"""

import json
from collections.abc import Iterable
from typing import Any

from meshlib.control.graph.telemetries import FileLog
from meshlib.xds import accesslog, cel, pb
from meshlib.xds.names import MESHLIB_METADATA

_FILE = "envoy.extensions.access_loggers.file.v3.FileAccessLog"
_EXPRESSION = "envoy.extensions.access_loggers.filters.cel.v3.ExpressionFilter"
_WITHOUT_QUERY = "envoy.extensions.formatter.req_without_query.v3.ReqWithoutQuery"
_NEEDS_FORMATTER = "REQ_WITHOUT_QUERY"


def put_logs(manager: Any, listener: Any, logs: Iterable[FileLog]) -> None:
    """On an HttpConnectionManager; the Listener's metadata names the YAML of each."""
    sources = []
    for log in logs:
        if wrong_format(log) or wrong_filter(log.expression):
            continue
        manager.access_log.add().CopyFrom(_log(log))
        sources.append(log.source)
    if sources:
        listener.metadata.filter_metadata[MESHLIB_METADATA].update({"access_logs": sources})


def wrong_format(log: FileLog) -> str:
    """Why a format is not taken; empty: it is."""
    return accesslog.wrong(_format(log))


def _format(log: FileLog) -> str | dict[str, Any]:
    return dict(json.loads(log.json)) if log.json else log.text


def wrong_filter(expression: str) -> str:
    """Why an expression is not taken; empty: it is, or there is none."""
    try:
        if expression:
            cel.condition(expression)
    except ValueError as error:
        return str(error)
    return ""


def _log(log: FileLog) -> Any:
    settings = pb.message(_FILE)(path=log.path)
    form, said = settings.log_format, _format(log)
    form.omit_empty_values = log.omit_empty
    if isinstance(said, str):
        form.text_format_source.inline_string = said
    else:
        form.json_format.update(said)
    if any(one.name == _NEEDS_FORMATTER for one in accesslog.operators(said)):
        formatter = pb.pack(pb.message(_WITHOUT_QUERY)())
        form.formatters.add(name="envoy.formatter.req_without_query", typed_config=formatter)
    made = pb.message("envoy.config.accesslog.v3.AccessLog")(name=accesslog.FILE_LOG)
    made.typed_config.CopyFrom(pb.pack(settings))
    if log.expression:
        asked = pb.message(_EXPRESSION)(expression=log.expression)
        extension = made.filter.extension_filter
        extension.name = accesslog.CEL_FILTER
        extension.typed_config.CopyFrom(pb.pack(asked))
    return made
