"""Access logs of listeners as values, in the view, and what is refused or passed over."""

from collections.abc import Callable
from typing import Any

import pytest
from support.resources import DECODERS, target

from meshlib.core.telemetry import NOTHING, AccessLog, Telling
from meshlib.core.view import TargetListener
from meshlib.dataplane.decode.errors import Refused
from meshlib.dataplane.decode.listeners import listener_value
from meshlib.dataplane.views import Views
from meshlib.xds import pb
from meshlib.xds.kinds import Kind
from meshlib.xds.snapshot import Resource

FILE = "envoy.extensions.access_loggers.file.v3.FileAccessLog"
CEL = "envoy.extensions.access_loggers.filters.cel.v3.ExpressionFilter"


def a_log(path: str = "/dev/stdout", text: str = "%PROTOCOL%\n", expression: str = "") -> Any:
    settings = pb.message(FILE)(path=path)
    settings.log_format.text_format_source.inline_string = text
    made = pb.message("envoy.config.accesslog.v3.AccessLog")(name="file")
    made.typed_config.CopyFrom(pb.pack(settings))
    if expression:
        packed = pb.pack(pb.message(CEL)(expression=expression))
        made.filter.extension_filter.typed_config.CopyFrom(packed)
    return made


def listener(*logs: Any, name: str = "a:80", routes: str = "a:80", sources: list[str] | None = None) -> Any:
    manager = pb.HttpConnectionManager()
    manager.rds.route_config_name = routes
    manager.access_log.extend(logs)
    manager.tracing.SetInParent()
    message = pb.Listener(name=name)
    message.api_listener.api_listener.CopyFrom(pb.pack(manager))
    if sources:
        message.metadata.filter_metadata["meshlib"].update({"access_logs": sources})
    return message


def decoded(*logs: Any, **more: Any) -> tuple[AccessLog, ...]:
    found = listener_value(listener(*logs, **more))
    assert isinstance(found, TargetListener)
    return found.telling.logs


def test_text_and_json() -> None:
    as_json = pb.message(FILE)(path="/b")
    as_json.log_format.json_format.update({"b": ["%PROTOCOL%", 1, None], "a": 1.5})
    as_json.log_format.omit_empty_values = True
    other = pb.message("envoy.config.accesslog.v3.AccessLog")(name="file")
    other.typed_config.CopyFrom(pb.pack(as_json))
    assert decoded(a_log(expression="response.code > 1"), other, sources=["f.yaml:1", "f.yaml:2"]) == (
        AccessLog("/dev/stdout", "%PROTOCOL%\n", condition="response.code > 1", source="f.yaml:1"),
        AccessLog("/b", json='{"a": 1.5, "b": ["%PROTOCOL%", 1, null]}', omit_empty=True, source="f.yaml:2"),
    )


def test_what_only_an_envoy_can_do_is_taken_and_not_written() -> None:
    unknown = pb.message("envoy.config.accesslog.v3.AccessLog")(name="otel")
    unknown.typed_config.type_url = "type.googleapis.com/envoy.extensions.access_loggers.otel.Config"
    other_kind = pb.message("envoy.config.accesslog.v3.AccessLog")(name="cors")
    other_kind.typed_config.CopyFrom(pb.pack(pb.Cors()))
    by_status = a_log()
    by_status.filter.status_code_filter.comparison.value.default_value = 400
    why = "the attribute response.flags is not supported at 10, where 'flags' stands"
    found = decoded(unknown, other_kind, by_status, a_log(expression="response.flags == 1"))
    assert [one.unusable for one in found] == [
        "otel is not supported",
        "cors is not supported",
        "its filter status_code_filter is not supported",
        "its filter 'response.flags == 1' is not supported: " + why,
    ]


def _broken_bytes(log: Any) -> None:
    log.typed_config.value = b"\xff"


def _old_format(log: Any) -> None:
    log.typed_config.CopyFrom(pb.pack(pb.message(FILE)(path="/a", format="%PROTOCOL%")))


def _no_format(log: Any) -> None:
    log.typed_config.CopyFrom(pb.pack(pb.message(FILE)(path="/a")))


def _from_a_file(log: Any) -> None:
    settings = pb.message(FILE)(path="/a")
    settings.log_format.text_format_source.filename = "/etc/passwd"
    log.typed_config.CopyFrom(pb.pack(settings))


@pytest.mark.parametrize(
    ("broken", "path"),
    [
        (_broken_bytes, "access_log[0].typed_config"),
        (_old_format, "access_log[0].typed_config.format"),
        (_no_format, "access_log[0].typed_config.log_format"),
        (_from_a_file, "access_log[0].typed_config.log_format.text_format_source"),
    ],
)
def test_what_is_refused(broken: Callable[[Any], None], path: str) -> None:
    log = a_log()
    broken(log)
    with pytest.raises(Refused) as refused:
        decoded(log)
    assert refused.value.path == f"api_listener.api_listener.{path}"


def test_formats_are_checked_and_bounded() -> None:
    for text, reason in (("50%", "no operator begins"), ("%PROTOCOL%" * 501, "more than 500 operators")):
        with pytest.raises(Refused, match=reason):
            decoded(a_log(text=text))
    with pytest.raises(Refused, match="more than 16"):
        decoded(*(a_log() for _ in range(17)))
    with pytest.raises(Refused, match=r"access_log\[0\].typed_config.path: is empty"):
        decoded(a_log(path=""))


def test_the_view_says_what_to_tell_of_a_target_at_once() -> None:
    views = Views({**DECODERS, Kind.LISTENER: listener_value})
    views.want(["a:80"])

    def give(*logs: Any) -> None:
        made = Resource.of(Kind.LISTENER, "a:80", listener(*logs, routes=routes.name))
        assert views.apply(Kind.LISTENER, "1", {"a:80": made}) == {}

    pieces = target("a:80", "one")
    routes = next(one for one in pieces if one.kind is Kind.ROUTES)
    give(a_log())
    for one in pieces:
        if one.kind is not Kind.LISTENER:
            views.apply(one.kind, "1", {one.name: one})
    told = Telling((AccessLog("/dev/stdout", "%PROTOCOL%\n"),))
    assert views.view.telling == {"a:80": told}
    before = views.view.telling
    give(a_log())
    assert views.view.telling is before
    give()
    assert views.view.telling == {}
    give(a_log())
    views.apply(Kind.LISTENER, "2", {"a:80": Resource(Kind.LISTENER, "a:80", "2", b"\xff")})
    assert views.view.telling == {"a:80": told}
    views.forget(["a:80"])
    assert views.view.telling == {}
    assert Telling() == NOTHING
