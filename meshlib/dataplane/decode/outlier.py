"""Envoy's OutlierDetection as core's policy. A detector that is enforced for 0 % is off."""

from typing import Any

from meshlib.core.balance.cluster import OutlierPolicy
from meshlib.dataplane.decode.errors import Refused
from meshlib.dataplane.decode.text import decode_seconds


def decode_outlier(message: Any) -> OutlierPolicy:
    """An envoy.config.cluster.v3.OutlierDetection."""
    times = {
        "interval": decode_seconds(message, "interval", 10.0),
        "base_ejection_time": decode_seconds(message, "base_ejection_time", 30.0),
    }
    longest = decode_seconds(message, "max_ejection_time", 300.0)
    for name, value in times.items():
        if value <= 0:
            raise Refused(name, "must be longer than nothing")
    percent = _number(message, "max_ejection_percent", 10)
    if percent > 100:
        raise Refused("max_ejection_percent", f"{percent} is more than 100")
    return OutlierPolicy(
        consecutive_5xx=_detector(message, "consecutive_5xx", 100),
        consecutive_gateway=_detector(message, "consecutive_gateway_failure", 0),
        interval=times["interval"],
        base_ejection=times["base_ejection_time"],
        max_ejection=longest,
        max_ejection_percent=percent,
        always_eject_one=message.always_eject_one_host.value,
    )


def _detector(message: Any, name: str, enforced: int) -> int | None:
    share = _number(message, f"enforcing_{name}", enforced)
    if share > 100:
        raise Refused(f"enforcing_{name}", f"{share} is more than 100")
    return (_number(message, name, 5) or None) if share else None


def _number(message: Any, name: str, default: int) -> int:
    return int(getattr(message, name).value) if message.HasField(name) else default
