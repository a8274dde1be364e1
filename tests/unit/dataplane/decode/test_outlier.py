"""Envoy's OutlierDetection, every field, and which responses are failures."""

from typing import Any

import pytest

from meshlib.core.outlier_policy import FailurePercentage, InARow, OutlierPolicy, SuccessRate
from meshlib.core.request import ResponseHead
from meshlib.dataplane.decode.clusters import decode_cluster
from meshlib.dataplane.decode.errors import Refused
from meshlib.dataplane.decode.outlier import decode_outlier
from meshlib.dataplane.decode.outlier_errors import decode_errors
from meshlib.xds import pb

MATCH = "envoy.config.common.matcher.v3.MatchPredicate"
OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
EVERYTHING = {
    "consecutive_5xx": 2,
    "interval": "3s",
    "base_ejection_time": "4s",
    "max_ejection_percent": 55,
    "enforcing_consecutive_5xx": 66,
    "enforcing_success_rate": 77,
    "success_rate_minimum_hosts": 8,
    "success_rate_request_volume": 9,
    "success_rate_stdev_factor": 1234,
    "consecutive_gateway_failure": 11,
    "enforcing_consecutive_gateway_failure": 12,
    "split_external_local_origin_errors": True,
    "consecutive_local_origin_failure": 13,
    "enforcing_consecutive_local_origin_failure": 14,
    "enforcing_local_origin_success_rate": 15,
    "failure_percentage_threshold": 16,
    "enforcing_failure_percentage": 17,
    "enforcing_failure_percentage_local_origin": 18,
    "failure_percentage_minimum_hosts": 19,
    "failure_percentage_request_volume": 20,
    "max_ejection_time": "21s",
    "max_ejection_time_jitter": "22s",
    "successful_active_health_check_uneject_host": False,
    "always_eject_one_host": True,
}


def decode(values: dict[str, Any]) -> OutlierPolicy:
    return decode_outlier(pb.from_dict(pb.OutlierDetection, values))


def test_every_field() -> None:
    assert {field.name for field in pb.OutlierDetection.DESCRIPTOR.fields} == {*EVERYTHING, "monitors"}
    assert decode(EVERYTHING) == OutlierPolicy(
        InARow(2, 66),
        InARow(11, 12),
        InARow(13, 14),
        SuccessRate(1.234, 8, 9, 77),
        FailurePercentage(16, 19, 20, 17),
        SuccessRate(1.234, 8, 9, 15),
        FailurePercentage(16, 19, 20, 18),
        split=True,
        interval=3.0,
        base_ejection=4.0,
        max_ejection=21.0,
        jitter=22.0,
        max_ejection_percent=55,
        always_eject_one=True,
    )


def test_envoys_own_numbers() -> None:
    assert decode({}) == OutlierPolicy(InARow(5), None, None, SuccessRate(1.9, 5, 100))
    split = decode({"split_external_local_origin_errors": True})
    assert (split.consecutive_local, split.local_success_rate) == (InARow(5), SuccessRate(1.9, 5, 100))


@pytest.mark.parametrize("name", ["consecutive_5xx", "enforcing_consecutive_5xx"])
def test_0_is_off(name: str) -> None:
    assert decode({name: 0}).consecutive_5xx is None


def test_the_maximum_is_at_least_the_base_unless_it_is_given() -> None:
    assert decode({"base_ejection_time": "400s"}).max_ejection == 400.0
    assert decode({"base_ejection_time": "20s", "max_ejection_time": "20s"}).max_ejection == 20.0


@pytest.mark.parametrize(
    ("values", "path"),
    [
        ({"interval": "0s"}, "interval"),
        ({"interval": "-1s"}, "interval"),
        ({"base_ejection_time": "0s"}, "base_ejection_time"),
        ({"max_ejection_time": "0s"}, "max_ejection_time"),
        ({"max_ejection_time": "29s"}, "max_ejection_time"),
        ({"max_ejection_time_jitter": "-1s"}, "max_ejection_time_jitter"),
        ({"failure_percentage_threshold": 101}, "failure_percentage_threshold"),
        ({"max_ejection_percent": 101}, "max_ejection_percent"),
        ({"monitors": [{"name": "x"}]}, "monitors"),
        *(({name: 101}, name) for name in EVERYTHING if name.startswith("enforcing")),
    ],
)
def test_what_envoy_refuses(values: dict[str, Any], path: str) -> None:
    with pytest.raises(Refused) as refused:
        decode(values)
    assert refused.value.path == path


def status(code: str) -> dict[str, Any]:
    return headers({"name": ":status", "string_match": {"exact": code}})


def headers(*conditions: dict[str, Any]) -> dict[str, Any]:
    return {"http_response_headers_match": {"headers": list(conditions)}}


BAD = {"name": "x-bad", "present_match": True}


@pytest.mark.parametrize(
    ("rule", "failures"),
    [
        (status("429"), ["429", "429 bad"]),
        ({"or_match": {"rules": [status("429"), status("503")]}}, ["429", "429 bad", "503"]),
        ({"or_match": {"rules": [status("503"), headers(BAD)]}}, ["429 bad", "503", "200 bad"]),
        ({"and_match": {"rules": [status("429"), headers(BAD)]}}, ["429 bad"]),
        (headers(BAD, {"name": ":status", "string_match": {"prefix": "4"}}), ["429 bad"]),
        ({"not_match": status("429")}, ["503", "200", "200 bad"]),
        ({"any_match": True}, ["429", "429 bad", "503", "200", "200 bad"]),
        (headers({"name": ":status", "range_match": {"start": 500, "end": 600}}), ["503"]),
    ],
)
def test_which_responses_are_failures(rule: dict[str, Any], failures: list[str]) -> None:
    errors = decode_errors(pb.from_dict(pb.message(MATCH), rule))
    assert errors == decode_errors(pb.from_dict(pb.message(MATCH), rule))
    found = []
    for name in ("429", "429 bad", "503", "200", "200 bad"):
        code, _, bad = name.partition(" ")
        if errors(ResponseHead(int(code), ((b"X-Bad", b""),) if bad else ())):
            found.append(name)
    assert found == failures


@pytest.mark.parametrize(
    ("rule", "path"),
    [
        ({}, "rule"),
        ({"http_request_headers_match": {"headers": []}}, "http_request_headers_match"),
        ({"http_response_trailers_match": {"headers": []}}, "http_response_trailers_match"),
        ({"or_match": {"rules": [status("503")]}}, "or_match.rules"),
        ({"or_match": {"rules": [status("503"), {}]}}, "or_match.rules[1].rule"),
        (headers({"name": ""}), "http_response_headers_match.headers[0].name"),
    ],
)
def test_rules_that_can_not_be_decided(rule: dict[str, Any], path: str) -> None:
    with pytest.raises(Refused) as refused:
        decode_errors(pb.from_dict(pb.message(MATCH), rule))
    assert refused.value.path == path


def test_rules_within_rules_have_a_bound() -> None:
    rule = status("503")
    for _ in range(20):
        rule = {"not_match": rule}
    with pytest.raises(Refused, match="within each other"):
        decode_errors(pb.from_dict(pb.message(MATCH), rule))
    with pytest.raises(Refused, match="more than 200 rules"):
        decode_errors(pb.from_dict(pb.message(MATCH), headers(*[BAD] * 200)))


def test_a_cluster_says_in_its_http_options_what_fails() -> None:
    def cluster(rule: dict[str, Any], detection: dict[str, Any] | None) -> OutlierPolicy | None:
        options = pb.HttpProtocolOptions()
        options.explicit_http_config.http_protocol_options.SetInParent()
        options.outlier_detection.error_matcher.CopyFrom(pb.from_dict(pb.message(MATCH), rule))
        made = pb.Cluster(name="c", type="STATIC")
        made.load_assignment.cluster_name = "c"
        made.typed_extension_protocol_options[OPTIONS].CopyFrom(pb.pack(options))
        if detection is not None:
            made.outlier_detection.CopyFrom(pb.from_dict(pb.OutlierDetection, detection))
        return decode_cluster(made).outlier

    policy = cluster(status("429"), {})
    assert policy is not None
    assert policy.errors is not None
    assert policy.errors(ResponseHead(429))
    assert cluster(status("429"), None) is None
    with pytest.raises(Refused, match=r"error_matcher\.rule"):
        cluster({}, {})
