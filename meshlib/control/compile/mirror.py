"""Mirrors of a rule as Envoy's RequestMirrorPolicies.

Rules (Istio): the share is `mirrorPercentage`, else `mirror_percent`, else everything; a share of 0 is
no mirror. The copy keeps the request's host.
"""

from typing import Any

from meshlib.control.compile.context import Context
from meshlib.control.compile.destination import cluster_of
from meshlib.control.compile.percent import fraction, percent_or
from meshlib.control.istio.virtualservice import Destination, HTTPRoute


def mirrors(action: Any, route: HTTPRoute, context: Context, namespace: str) -> None:
    """Puts the mirrors on an envoy.config.route.v3.RouteAction."""
    if route.mirror is not None:
        old = 100.0 if route.mirror_percent is None else float(route.mirror_percent)
        _add(action, route.mirror, percent_or(route.mirror_percentage, old), context, namespace)
    for mirror in route.mirrors:
        if mirror.destination is not None:
            _add(action, mirror.destination, percent_or(mirror.percentage, 100.0), context, namespace)


def _add(action: Any, to: Destination, percent: float, context: Context, namespace: str) -> None:
    if percent <= 0:
        return
    policy = action.request_mirror_policies.add(
        cluster=cluster_of(context, to, namespace), disable_shadow_host_suffix_append=True
    )
    policy.trace_sampled.value = False
    policy.runtime_fraction.default_value.CopyFrom(fraction(percent))
