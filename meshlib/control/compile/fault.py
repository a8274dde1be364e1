"""HTTPFaultInjection as what Envoy's filter reads from a route.

Rules (Istio): a fault without a percentage never happens; delay and abort are drawn by themselves.
Delays that grow, and HTTP/2 errors, are not done by Envoy and left out.
"""

from typing import Any

from meshlib.control.compile.percent import fraction, percent_or
from meshlib.control.istio.virtualservice import HTTPFaultInjection
from meshlib.xds import pb
from meshlib.xds.grpc_status import STATUSES
from meshlib.xds.names import BLACK_HOLE_CLUSTER

FAULT = "envoy.filters.http.fault"


def fault(message: Any, said: HTTPFaultInjection | None) -> None:
    """Puts the faults on an envoy.config.route.v3.Route."""
    if said is None:
        return
    made = pb.HTTPFault()
    delay, abort = said.delay, said.abort
    if delay is not None and delay.fixed_delay:
        made.delay.fixed_delay.CopyFrom(pb.duration(delay.fixed_delay))
        made.delay.percentage.CopyFrom(fraction(percent_or(delay.percentage, float(delay.percent))))
    if abort is not None:
        share = fraction(percent_or(abort.percentage, 0.0))
        if abort.http_status is not None:
            made.abort.http_status = abort.http_status
            made.abort.percentage.CopyFrom(share)
        elif abort.grpc_status in STATUSES:
            made.abort.grpc_status = STATUSES.index(abort.grpc_status)
            made.abort.percentage.CopyFrom(share)
    if made.ByteSize():
        message.typed_per_filter_config[FAULT].CopyFrom(pb.pack(made))


def answer(message: Any, status: int) -> None:
    """Lets gRPC's own client answer what it can't be told otherwise: every call fails, as that status
    reads in gRPC. It must name a cluster nevertheless, of which nothing is asked.
    """
    message.route.cluster = BLACK_HOLE_CLUSTER
    made = pb.HTTPFault()
    if status < 300:  # reads as OK, which is no abort; the answer is no gRPC message either
        made.abort.grpc_status = STATUSES.index("UNKNOWN")
    else:
        made.abort.http_status = status
    made.abort.percentage.CopyFrom(fraction(100.0))
    message.typed_per_filter_config[FAULT].CopyFrom(pb.pack(made))
