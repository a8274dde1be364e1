"""Fault injection, as Istio's webhook checks it."""

from meshlib.control.istio.validity import hosts
from meshlib.control.istio.validity.report import Report
from meshlib.control.istio.virtualservice import Abort, Delay, HTTPFaultInjection
from meshlib.xds.grpc_status import STATUSES


def fault(given: HTTPFaultInjection, to: Report) -> None:
    """A delay, an abort or both."""
    if not (given.delay or given.abort):
        to.error("neither delay nor abort", "", "delay or abort")
    if given.delay:
        _delay(given.delay, to.at("delay"))
    if given.abort:
        _abort(given.abort, to.at("abort"))


def _delay(delay: Delay, to: Report) -> None:
    if delay.percent:
        hosts.percent(delay.percent, to.at("percent"))
        to.at("percent").old(
            "deprecated; a whole percentage here and in today's Istio. percentage replaces it"
        )
    if delay.percentage:
        hosts.share(delay.percentage.value, to.at("percentage", "value"))
    if delay.exponential_delay is not None:
        to.at("exponential_delay").error("Istio does not support it", "", "fixedDelay")
    elif delay.fixed_delay is None:
        to.warn("no fixedDelay, so that nothing is delayed", "", "fixedDelay of at least 1ms")
    hosts.duration(delay.fixed_delay, to.at("fixed_delay"))


def _abort(abort: Abort, to: Report) -> None:
    if abort.percentage:
        hosts.share(abort.percentage.value, to.at("percentage", "value"))
    if abort.http_status is not None and not 200 <= abort.http_status <= 599:
        to.at("http_status").error("not a status", abort.http_status, "200 to 599")
    if abort.grpc_status is not None and abort.grpc_status not in STATUSES:
        to.at("grpc_status").error("not a gRPC status", repr(abort.grpc_status), ", ".join(STATUSES))
    if abort.http2_error is not None:
        to.at("http2_error").error(
            "Istio does not support it", repr(abort.http2_error), "httpStatus, grpcStatus"
        )
    if abort.http_status is None and abort.grpc_status is None and abort.http2_error is None:
        to.warn("nothing is answered, so that nothing is aborted", "", "httpStatus or grpcStatus")
