"""Errors that are meshlib's and urllib3's at once, so that code written for urllib3 catches them.

    ConnectFailed          urllib3.exceptions.NewConnectionError and MaxRetryError
    ConnectTimedOut        ConnectTimeoutError and MaxRetryError
    UpstreamReset          ProtocolError and MaxRetryError
    UpstreamTimedOut       ReadTimeoutError and MaxRetryError
    UpstreamProtocolError  ProtocolError and MaxRetryError
    Unavailable            NewConnectionError and MaxRetryError   (meshlib.ControlUnavailable)
    Refused                NewConnectionError and MaxRetryError   (meshlib.RefusedResource)

All are MaxRetryError: the mesh has tried as often as its rule says, and urllib3's Retry does not begin again.
The application's own limits stay plain urllib3, and its Retry counts them: ReadTimeoutError.
"""

from typing import Any

from urllib3 import exceptions
from urllib3.connectionpool import HTTPConnectionPool

from meshlib import errors
from meshlib.dataplane.drive import FlightFailed
from meshlib.dataplane.flights import flight_of, kind_of, words_of
from meshlib.dataplane.http.limits import TooSlow
from meshlib.dataplane.http.syntax import Unsendable


class _Both(errors.RequestError):
    """What both sides want to know."""

    reason: Any
    """The mesh's words: there is no other error behind it."""
    pool: Any = None
    url: str | None = None

    def __init__(
        self, message: str, flight: errors.Flight, pool: HTTPConnectionPool | None, url: str | None
    ) -> None:
        self.pool, self.url = pool, url
        errors.RequestError.__init__(self, message, flight)


class ConnectFailed(_Both, errors.ConnectFailed, exceptions.MaxRetryError, exceptions.NewConnectionError):
    """No connection to the endpoint."""


class ConnectTimedOut(
    _Both, errors.ConnectTimedOut, exceptions.MaxRetryError, exceptions.ConnectTimeoutError
):
    """No connection to the endpoint in time."""


class UpstreamReset(_Both, errors.UpstreamReset, exceptions.MaxRetryError, exceptions.ProtocolError):
    """The connection broke before the response was whole."""


class UpstreamTimedOut(_Both, errors.UpstreamTimedOut, exceptions.MaxRetryError, exceptions.ReadTimeoutError):
    """The time of the route, or of the last try, ran out."""


class UpstreamProtocolError(
    _Both, errors.UpstreamProtocolError, exceptions.MaxRetryError, exceptions.ProtocolError
):
    """The peer does not speak HTTP."""


class _Unknown(errors.ControlError):
    """Why nothing is known of a host."""

    pool: Any = None
    url: str | None = None

    def __init__(self, message: str, pool: HTTPConnectionPool | None, url: str | None) -> None:
        self.pool, self.url = pool, url
        Exception.__init__(self, message)


class Unavailable(
    _Unknown, errors.ControlUnavailable, exceptions.MaxRetryError, exceptions.NewConnectionError
):
    """The control service is not reached, and nothing is known of the host."""


class Refused(_Unknown, errors.RefusedResource, exceptions.MaxRetryError, exceptions.NewConnectionError):
    """What the control service says of the host can't be used, and there is nothing older."""


class NotHTTP(exceptions.HTTPError, ValueError):
    """A request of the application's that is not HTTP."""


_CLASSES: dict[type[errors.RequestError], type[_Both]] = {
    errors.ConnectFailed: ConnectFailed,
    errors.ConnectTimedOut: ConnectTimedOut,
    errors.UpstreamReset: UpstreamReset,
    errors.UpstreamTimedOut: UpstreamTimedOut,
    errors.UpstreamProtocolError: UpstreamProtocolError,
}


def of_failure(error: FlightFailed, pool: HTTPConnectionPool | None, url: str | None) -> Exception:
    """The error of a request that ended without a (whole) response."""
    return _CLASSES[kind_of(error)](words_of(error), flight_of(error), pool, url)


def of_connection(error: errors.ConnectFailed, pool: HTTPConnectionPool, url: str) -> _Both:
    """The error of an https:// URL to which the mesh made no connection."""
    made = ConnectTimedOut if isinstance(error, errors.ConnectTimedOut) else ConnectFailed
    return made(error.reason, error.flight, pool, url)


def of_own(
    error: TooSlow | Unsendable, pool: HTTPConnectionPool | None, url: str | None
) -> exceptions.HTTPError:
    """urllib3's error of a limit that the application set, or of a request that is not HTTP."""
    if isinstance(error, Unsendable):
        return NotHTTP(str(error))
    if error.operation == "read":
        return exceptions.ReadTimeoutError(pool, url, str(error))  # type: ignore[arg-type]
    return exceptions.ProtocolError("Connection aborted.", TimeoutError(str(error)))


def of_control(
    error: errors.ControlError, pool: HTTPConnectionPool | None, url: str | None
) -> errors.ControlError:
    """The error of a request to a host of which nothing is known."""
    made = Refused if isinstance(error, errors.RefusedResource) else Unavailable
    return made(str(error), pool, url)
