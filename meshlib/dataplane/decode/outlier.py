"""Envoy's OutlierDetection as core's policy. A detector that is enforced for 0 % is off.

`successful_active_health_check_uneject_host` has no effect: nothing here checks health actively, and
without such a check Envoy does not look at it either.
"""

from typing import Any

from meshlib.core.outlier_policy import FailurePercentage, InARow, OutlierPolicy, SuccessRate
from meshlib.dataplane.decode.errors import Refused
from meshlib.dataplane.decode.text import decode_seconds


def decode_outlier(message: Any) -> OutlierPolicy:
    """An envoy.config.cluster.v3.OutlierDetection."""
    if message.monitors:
        raise Refused("monitors", "is not supported")
    base = _seconds(message, "base_ejection_time", 30.0)
    longest = _seconds(message, "max_ejection_time", max(300.0, base))
    if longest < base:
        raise Refused("max_ejection_time", f"{longest:g} s is less than base_ejection_time, {base:g} s")
    split = message.split_external_local_origin_errors
    local = (
        _in_a_row(message, "consecutive_local_origin_failure", 100),
        _success_rate(message, "enforcing_local_origin_success_rate"),
        _failure_percentage(message, "enforcing_failure_percentage_local_origin"),
    )
    in_a_row, rate, percentage = local if split else (None, None, None)
    return OutlierPolicy(
        consecutive_5xx=_in_a_row(message, "consecutive_5xx", 100),
        consecutive_gateway=_in_a_row(message, "consecutive_gateway_failure", 0),
        consecutive_local=in_a_row,
        success_rate=_success_rate(message, "enforcing_success_rate"),
        failure_percentage=_failure_percentage(message, "enforcing_failure_percentage"),
        local_success_rate=rate,
        local_failure_percentage=percentage,
        split=split,
        interval=_seconds(message, "interval", 10.0),
        base_ejection=base,
        max_ejection=longest,
        jitter=decode_seconds(message, "max_ejection_time_jitter", 0.0),
        max_ejection_percent=_percent(message, "max_ejection_percent", 10),
        always_eject_one=message.always_eject_one_host.value,
    )


def _seconds(message: Any, name: str, default: float) -> float:
    found = decode_seconds(message, name, default)
    if found <= 0:
        raise Refused(name, "must be longer than nothing")
    return found


def _in_a_row(message: Any, name: str, otherwise: int) -> InARow | None:
    enforced = _percent(message, f"enforcing_{name}", otherwise)
    count = _number(message, name, 5)
    return InARow(count, enforced) if count and enforced else None


def _success_rate(message: Any, name: str) -> SuccessRate | None:
    enforced = _percent(message, name, 100)
    if not enforced:
        return None
    return SuccessRate(
        _number(message, "success_rate_stdev_factor", 1900) / 1000.0,
        _number(message, "success_rate_minimum_hosts", 5),
        _number(message, "success_rate_request_volume", 100),
        enforced,
    )


def _failure_percentage(message: Any, name: str) -> FailurePercentage | None:
    threshold = _percent(message, "failure_percentage_threshold", 85)
    enforced = _percent(message, name, 0)
    if not enforced:
        return None
    return FailurePercentage(
        threshold,
        _number(message, "failure_percentage_minimum_hosts", 5),
        _number(message, "failure_percentage_request_volume", 50),
        enforced,
    )


def _percent(message: Any, name: str, otherwise: int) -> int:
    found = _number(message, name, otherwise)
    if found > 100:
        raise Refused(name, f"{found} is more than 100")
    return found


def _number(message: Any, name: str, default: int) -> int:
    return int(getattr(message, name).value) if message.HasField(name) else default
