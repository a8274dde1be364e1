"""Errors that are meshlib's and those of `websockets` at once: what its users catch, and reconnect after.

    ConnectFailed          ConnectionError
    ConnectTimedOut        ConnectionError and TimeoutError
    UpstreamReset          websockets.InvalidMessage, because of an EOFError
    UpstreamTimedOut       TimeoutError
    UpstreamProtocolError  websockets.InvalidMessage
    Unavailable            ConnectionError          (meshlib.ControlUnavailable)
    Refused                ConnectionError          (meshlib.RefusedResource)

A response that is no 101 is `websockets.InvalidStatus`, as it is without the mesh, and says `flight` too.
"""

from websockets.exceptions import InvalidMessage

from meshlib import errors
from meshlib.core.actions import Facts
from meshlib.core.request import Failure
from meshlib.dataplane.drive import FlightFailed
from meshlib.dataplane.tcp.errors import ConnectFailed, ConnectTimedOut

_RESET = (
    *(Failure.RESET_BEFORE_REQUEST, Failure.RESET, Failure.BROKEN_OFF),
    *(Failure.REFUSED_STREAM, Failure.REMOTE_RESET),
)


class UpstreamReset(errors.UpstreamReset, InvalidMessage):
    """The connection broke before a response."""


class UpstreamTimedOut(errors.UpstreamTimedOut, TimeoutError):
    """The time of the route, or of the last try, ran out."""


class UpstreamProtocolError(errors.UpstreamProtocolError, InvalidMessage):
    """The peer does not speak HTTP."""


def flight_of(facts: Facts) -> errors.Flight:
    """What was tried, by which rule."""
    return errors.Flight(
        facts.route, facts.cluster, facts.endpoint, facts.attempts, facts.config_version, facts.source
    )


def of_failure(error: FlightFailed) -> errors.RequestError:
    """The error of a handshake without a response."""
    failed, flight = error.failed, flight_of(error.facts)
    message = failed.how.value
    if failed.detail and failed.detail != message:
        message = f"{message}: {failed.detail}"
    if failed.how in _RESET:
        made = UpstreamReset(message, flight)
        made.__cause__ = EOFError(message)  # by which `websockets` knows that to try again may help
        return made
    match failed.how:
        case Failure.CONNECT_FAILED:
            return ConnectFailed(message, flight)
        case Failure.CONNECT_TIMED_OUT:
            return ConnectTimedOut(message, flight)
        case Failure.PROTOCOL:
            return UpstreamProtocolError(message, flight)
    return UpstreamTimedOut(message, flight)
