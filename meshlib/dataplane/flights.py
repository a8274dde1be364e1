"""What an application is told of a request that failed: the kind of error, its words, and its flight.

An adapter has one class for each kind, which is its library's error too.
"""

from meshlib import errors
from meshlib.core.request import Failure
from meshlib.dataplane.drive import FlightFailed

KINDS: dict[Failure, type[errors.RequestError]] = {
    Failure.CONNECT_FAILED: errors.ConnectFailed,
    Failure.CONNECT_TIMED_OUT: errors.ConnectTimedOut,
    Failure.RESET_BEFORE_REQUEST: errors.UpstreamReset,
    Failure.RESET: errors.UpstreamReset,
    Failure.BROKEN_OFF: errors.UpstreamReset,
    Failure.REFUSED_STREAM: errors.UpstreamReset,
    Failure.REMOTE_RESET: errors.UpstreamReset,
    Failure.TRY_TIMED_OUT: errors.UpstreamTimedOut,
    Failure.TIMED_OUT: errors.UpstreamTimedOut,
    Failure.PROTOCOL: errors.UpstreamProtocolError,
}


def kind_of(error: FlightFailed) -> type[errors.RequestError]:
    """Which of meshlib's errors it is."""
    return KINDS[error.failed.how]


def words_of(error: FlightFailed) -> str:
    """What the error says."""
    message, detail = error.failed.how.value, error.failed.detail
    return f"{message}: {detail}" if detail and detail != message else message


def flight_of(error: FlightFailed) -> errors.Flight:
    """Where the request was on its way to."""
    facts = error.facts
    return errors.Flight(
        facts.route, facts.cluster, facts.endpoint, facts.attempts, facts.config_version, facts.source
    )
