"""outlierDetection as Envoy's.

Rules (Istio): only detectors that are asked for are enforced, but without any of them Envoy's own of five
5xx in a row is. With outlier detection there is no panic unless `minHealthPercent` asks for it. The old
`consecutiveErrors` counts gateway errors alone, as it did when it was current.
"""

from typing import Any

from meshlib.control.istio.destinationrule import OutlierDetection
from meshlib.xds import pb
from meshlib.xds.node import Flavour

GRPC_SHARE = 50
"""Percent of failed requests at which gRPC, which counts none in a row, ejects an endpoint."""


def outlier(cluster: Any, said: OutlierDetection | None, flavour: Flavour) -> None:
    """Puts the detection on an envoy.config.cluster.v3.Cluster."""
    if said is None:
        return
    made = cluster.outlier_detection
    made.enforcing_success_rate.value = 0
    _consecutive(made, said)
    if said.interval:
        made.interval.CopyFrom(pb.duration(said.interval))
    if said.base_ejection_time:
        made.base_ejection_time.CopyFrom(pb.duration(said.base_ejection_time))
    if said.max_ejection_percent > 0:
        made.max_ejection_percent.value = said.max_ejection_percent
    if said.split_external_local_origin_errors:
        made.split_external_local_origin_errors = True
        made.enforcing_local_origin_success_rate.value = 0
        if said.consecutive_local_origin_failures:
            made.consecutive_local_origin_failure.value = said.consecutive_local_origin_failures
            made.enforcing_consecutive_local_origin_failure.value = 100
    cluster.common_lb_config.healthy_panic_threshold.value = float(max(0, said.min_health_percent))
    if flavour is Flavour.GRPC:
        made.failure_percentage_threshold.value = GRPC_SHARE
        made.enforcing_failure_percentage.value = 100
        made.failure_percentage_minimum_hosts.value = 1
        made.failure_percentage_request_volume.value = 5


def error_codes(options: Any, said: OutlierDetection | None) -> None:
    """Puts the statuses that are failures on an envoy.extensions.upstreams.http.v3.HttpProtocolOptions."""
    codes = said.outlier_detection_http_error_codes if said is not None else ()
    if not codes:
        return
    matcher = options.outlier_detection.error_matcher
    for code in codes:
        rule = matcher if len(codes) == 1 else matcher.or_match.rules.add()
        header = rule.http_response_headers_match.headers.add(name=":status")
        header.string_match.exact = str(code)


def _consecutive(made: Any, said: OutlierDetection) -> None:
    gateway = said.consecutive_gateway_errors
    if gateway is None and said.consecutive_errors > 0:
        gateway = said.consecutive_errors
        if said.consecutive_5xx_errors is None:
            made.enforcing_consecutive_5xx.value = 0
    if gateway is not None:
        made.consecutive_gateway_failure.value = gateway
        made.enforcing_consecutive_gateway_failure.value = _share(gateway)
    if said.consecutive_5xx_errors is not None:
        made.consecutive_5xx.value = said.consecutive_5xx_errors
        made.enforcing_consecutive_5xx.value = _share(said.consecutive_5xx_errors)


def _share(count: int) -> int:
    return 100 if count else 0
