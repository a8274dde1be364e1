"""Envoy's HedgePolicy: whether the tries of a route's requests are hedged.

`initial_requests` and `additional_request_chance` are checked by Envoy, and do nothing there; so here.
"""

from typing import Any

from meshlib.dataplane.decode.errors import Refused

_CHANCES = (0, 1, 2)
"""The denominators of a FractionalPercent."""


def decode_hedge(message: Any, inherited: bool) -> bool:
    """The `hedge_policy` of a RouteAction or VirtualHost; `inherited`: what holds if it has none."""
    if not message.HasField("hedge_policy"):
        return inherited
    policy = message.hedge_policy
    if policy.HasField("initial_requests") and policy.initial_requests.value < 1:
        raise Refused("hedge_policy.initial_requests", "0 is less than 1")
    if policy.additional_request_chance.denominator not in _CHANCES:
        raise Refused("hedge_policy.additional_request_chance.denominator", "is unknown")
    return bool(policy.hedge_on_per_try_timeout)
