"""HTTPRetry as Envoy's RetryPolicy.

Rules (Istio):

- Without `retries` the mesh's default holds, else two retries of what surely did not reach anyone.
- `attempts` are retries on top of the first try; 0 is none at all.
- Numbers among the conditions are statuses. Conditions left out are the default ones.
- A retry goes to another endpoint unless `retryIgnorePreviousHosts` is false, or the destination sends
  each key to one endpoint.
- gRPC's C core never tries again after a back-off that rounds down to 0 ms, and takes off up to a fifth: its
  clients back off for 2 ms at least.
"""

from typing import Any

from meshlib.control.istio.virtualservice import HTTPRetry
from meshlib.xds import pb

DEFAULT_ON = "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes"
DEFAULT_ATTEMPTS = 2
HOST_ATTEMPTS = 5
GRPC_LEAST_BACK_OFF = 0.002
_BY_STATUS = "retriable-status-codes"
_PREVIOUS_HOSTS = "envoy.retry_host_predicates.previous_hosts"
_PREVIOUS_PRIORITIES = "envoy.retry_priorities.previous_priorities"


def retry_policy(
    said: HTTPRetry | None, default: HTTPRetry | None, *, sticky: bool = False, grpc: bool = False
) -> Any:
    """An envoy.config.route.v3.RetryPolicy, or None for no retries.

    `default` is the mesh's; `sticky`: the only destination sends each key to one endpoint; `grpc`: the
    client is gRPC's own.
    """
    said = said if said is not None else default
    if said is not None and said.attempts <= 0:
        return None
    made = pb.RetryPolicy(host_selection_retry_max_attempts=HOST_ATTEMPTS)
    made.num_retries.value = DEFAULT_ATTEMPTS if said is None else said.attempts
    made.retry_on, codes = _conditions(said.retry_on if said is not None else "")
    made.retriable_status_codes.extend(codes)
    if not sticky and (said is None or said.retry_ignore_previous_hosts is not False):
        predicate = pb.message("envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate")()
        made.retry_host_predicate.add(name=_PREVIOUS_HOSTS, typed_config=pb.pack(predicate))
    if said is None:
        return made
    if said.per_try_timeout:
        made.per_try_timeout.CopyFrom(pb.duration(said.per_try_timeout))
    if said.backoff:
        seconds = max(said.backoff, GRPC_LEAST_BACK_OFF) if grpc else said.backoff
        made.retry_back_off.base_interval.CopyFrom(pb.duration(seconds))
    if said.retry_remote_localities:
        config = pb.message("envoy.extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig")
        made.retry_priority.name = _PREVIOUS_PRIORITIES
        made.retry_priority.typed_config.CopyFrom(pb.pack(config(update_frequency=2)))
    return made


def _conditions(text: str) -> tuple[str, list[int]]:
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words:
        return DEFAULT_ON, []
    codes = [int(word) for word in words if word.isdecimal()]
    names = [word for word in words if not word.isdecimal()]
    if codes and _BY_STATUS not in names:
        names.append(_BY_STATUS)
    return ",".join(names), codes
