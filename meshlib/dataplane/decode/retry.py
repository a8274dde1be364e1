"""Envoy's RetryPolicy as core's. Conditions that are unknown are left out, as Envoy does."""

from typing import Any

from google.protobuf.message import DecodeError

from meshlib.core.retry import RetryOn, RetryPolicy
from meshlib.dataplane.decode.errors import Refused
from meshlib.dataplane.decode.text import decode_seconds
from meshlib.xds import pb

PREVIOUS_PRIORITIES = "envoy.retry_priorities.previous_priorities"
PREVIOUS_HOSTS = "envoy.retry_host_predicates.previous_hosts"
MAX_RETRIES = 1_000
_KNOWN = {condition.value: condition for condition in RetryOn}
_MIN_INTERVAL = 0.001
"""Shorter intervals count as this (Envoy)."""


def decode_retry(message: Any) -> RetryPolicy:
    """An envoy.config.route.v3.RetryPolicy.

    Without a condition it is of use still: for the time of a try, and for requests that name their own.
    """
    words = (word.strip() for word in message.retry_on.split(","))
    retry_on = frozenset(_KNOWN[word] for word in words if word in _KNOWN)
    retries = message.num_retries.value if message.HasField("num_retries") else 1
    if retries > MAX_RETRIES:
        raise Refused("num_retries", f"{retries} is more than {MAX_RETRIES}")
    if message.host_selection_retry_max_attempts < 0:
        raise Refused("host_selection_retry_max_attempts", "is negative")
    if message.retriable_request_headers:
        raise Refused("retriable_request_headers", "is not supported")
    base, longest = _decode_back_off(message)
    avoid = _decode_predicates(message)
    per_try = decode_seconds(message, "per_try_timeout", 0.0)
    names = _decode_header_names(message)
    return RetryPolicy(
        retry_on=retry_on,
        retries=retries,
        per_try_timeout=per_try,
        status_codes=frozenset(message.retriable_status_codes),
        headers=names,
        base_interval=base,
        max_interval=longest,
        avoid_previous_hosts=avoid,
        host_selection_attempts=message.host_selection_retry_max_attempts or 1,
        leave_priorities_after=_decode_priority(message),
    )


def _decode_priority(message: Any) -> int:
    if not message.HasField("retry_priority"):
        return 0
    said = message.retry_priority
    if said.name != PREVIOUS_PRIORITIES:
        raise Refused("retry_priority.name", f"{said.name} is not supported")
    try:
        frequency = int(pb.unpack(said.typed_config).update_frequency)
    except (DecodeError, KeyError) as error:
        raise Refused("retry_priority.typed_config", f"can't be decoded: {error}") from None
    if frequency < 1:
        raise Refused("retry_priority.typed_config.update_frequency", f"{frequency} is not more than 0")
    return frequency


def _decode_back_off(message: Any) -> tuple[float, float]:
    if not message.HasField("retry_back_off"):
        return 0.025, 0.25
    back_off = message.retry_back_off
    try:
        base = decode_seconds(back_off, "base_interval", 0.0)
        if base <= 0:
            raise Refused("base_interval", "must be longer than nothing")
        base = max(base, _MIN_INTERVAL)
        longest = decode_seconds(back_off, "max_interval", 10 * base)
        longest = max(longest, _MIN_INTERVAL)
        if longest < base:
            raise Refused("max_interval", f"{longest:g} s is shorter than base_interval, {base:g} s")
    except Refused as refused:
        raise refused.within("retry_back_off") from None
    return base, longest


def _decode_predicates(message: Any) -> bool:
    for number, predicate in enumerate(message.retry_host_predicate):
        if predicate.name != PREVIOUS_HOSTS:
            raise Refused(f"retry_host_predicate[{number}].name", f"{predicate.name} is not supported")
    return len(message.retry_host_predicate) > 0


def _decode_header_names(message: Any) -> tuple[bytes, ...]:
    names = []
    for number, header in enumerate(message.retriable_headers):
        which = header.WhichOneof("header_match_specifier")
        wants_presence = which is None or (which == "present_match" and header.present_match)
        if not wants_presence or header.invert_match or not header.name:
            raise Refused(f"retriable_headers[{number}]", "only the presence of a named header is supported")
        names.append(header.name.lower().encode())
    return tuple(names)
