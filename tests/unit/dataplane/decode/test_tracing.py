"""Tracing of a connection manager as a value, and what is refused."""

from typing import Any

import pytest

from meshlib.core.telemetry import CustomTag, TagSource, Tracing
from meshlib.dataplane.decode.errors import Refused
from meshlib.dataplane.decode.tracing import decode_tracing
from meshlib.xds import pb


def tracing(**said: Any) -> Any:
    return pb.from_dict(pb.HttpConnectionManager, {"tracing": said})


@pytest.mark.parametrize(
    ("said", "share"),
    [
        ({}, None),
        ({"random_sampling": {"value": 12.5}, "overall_sampling": {"value": 100}}, 0.125),
        ({"random_sampling": {}}, 0.0),
        ({"random_sampling": {"value": 100}}, 1.0),
        ({"random_sampling": {"value": 50}, "overall_sampling": {"value": 50}}, 0.25),
        ({"overall_sampling": {"value": 100}, "client_sampling": {"value": 1}}, None),
        ({"overall_sampling": {}}, 0.0),
        ({"provider": {"name": "whoever"}, "verbose": True}, None),
    ],
)
def test_shares(said: dict[str, Any], share: float | None) -> None:
    assert decode_tracing(tracing(**said)) == Tracing(share)


def test_without_it_there_are_no_spans() -> None:
    assert decode_tracing(pb.HttpConnectionManager()) is None


def test_tags() -> None:
    tags = [
        {"tag": "a", "literal": {"value": "x"}},
        {"tag": "b", "environment": {"name": "POD", "default_value": "y"}},
        {"tag": "c", "request_header": {"name": "X-C"}},
        {"tag": "d", "metadata": {"kind": {"request": {}}, "metadata_key": {"key": "k"}}},
        {"tag": "e", "value": "%PROTOCOL%"},
    ]
    found = decode_tracing(tracing(custom_tags=tags))
    assert found == Tracing(
        None,
        (
            CustomTag("a", TagSource.LITERAL, "x"),
            CustomTag("b", TagSource.ENVIRONMENT, "POD", "y"),
            CustomTag("c", TagSource.HEADER, "X-C"),
        ),
    )


@pytest.mark.parametrize(
    ("said", "path"),
    [
        ({"random_sampling": {"value": 100.5}}, "tracing.random_sampling"),
        ({"overall_sampling": {"value": -1}}, "tracing.overall_sampling"),
        ({"random_sampling": {"value": "NaN"}}, "tracing.random_sampling"),
        ({"custom_tags": [{"literal": {"value": "x"}}]}, "tracing.custom_tags[0].tag"),
        ({"custom_tags": [{"tag": "a", "literal": {}}]}, "tracing.custom_tags[0].literal"),
        ({"custom_tags": [{"tag": "a", "request_header": {}}]}, "tracing.custom_tags[0].request_header"),
        ({"custom_tags": [{"tag": "a", "literal": {"value": "x"}}] * 101}, "tracing.custom_tags"),
    ],
)
def test_what_is_refused(said: dict[str, Any], path: str) -> None:
    with pytest.raises(Refused) as refused:
        decode_tracing(tracing(**said))
    assert refused.value.path == path
