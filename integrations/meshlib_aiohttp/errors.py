"""Errors that are meshlib's and aiohttp's at once, so that code written for aiohttp catches them.

    ConnectFailed          aiohttp.ClientConnectorError
    ConnectTimedOut        aiohttp.ConnectionTimeoutError
    UpstreamReset          aiohttp.ServerDisconnectedError, ClientOSError and ClientPayloadError
    UpstreamTimedOut       aiohttp.SocketTimeoutError
    UpstreamProtocolError  aiohttp.ClientResponseError and ClientPayloadError
    Unavailable            aiohttp.ClientConnectorError   (meshlib.ControlUnavailable)
    Refused                aiohttp.ClientConnectorError   (meshlib.RefusedResource)

aiohttp tells a connection that was closed from one that was reset, and before a response from in the middle
of it; for the mesh that is one failure, so one class is all of them. The application's own time-outs stay
plain aiohttp: ConnectionTimeoutError, SocketTimeoutError, TimeoutError for the total.
"""

import errno
from typing import Any

import aiohttp
from aiohttp.client_reqrep import ClientRequest

from meshlib import errors
from meshlib.dataplane.drive import FlightFailed
from meshlib.dataplane.flights import flight_of, kind_of, words_of
from meshlib.dataplane.http.limits import TooSlow
from meshlib.dataplane.http.syntax import Unsendable


class _Both(errors.RequestError):
    """What both sides want to know."""

    def __init__(self, message: str, flight: errors.Flight, request: ClientRequest) -> None:
        self._know(message, request)
        errors.RequestError.__init__(self, message, flight)

    def _know(self, message: str, request: ClientRequest) -> None:
        """Sets what aiohttp's class has beside its message."""

    def __str__(self) -> str:
        return errors.RequestError.__str__(self)


class _NoConnection:
    errno: int | None
    strerror: str | None

    def _know(self, message: str, request: ClientRequest) -> None:
        self._conn_key = request.connection_key
        self._os_error = OSError(errno.ECONNREFUSED, message)
        self.errno, self.strerror = errno.ECONNREFUSED, message


class ConnectFailed(_NoConnection, _Both, errors.ConnectFailed, aiohttp.ClientConnectorError):
    """No connection to the endpoint."""


class ConnectTimedOut(_Both, errors.ConnectTimedOut, aiohttp.ConnectionTimeoutError):
    """No connection to the endpoint in time."""


class UpstreamReset(
    _Both,
    errors.UpstreamReset,
    aiohttp.ServerDisconnectedError,
    aiohttp.ClientOSError,
    aiohttp.ClientPayloadError,
):
    """The connection broke before the response was whole."""

    def _know(self, message: str, request: ClientRequest) -> None:
        self.message = message
        self.errno, self.strerror = errno.ECONNRESET, message


class UpstreamTimedOut(_Both, errors.UpstreamTimedOut, aiohttp.SocketTimeoutError):
    """The time of the route, or of the last try, ran out."""


class UpstreamProtocolError(
    _Both, errors.UpstreamProtocolError, aiohttp.ClientResponseError, aiohttp.ClientPayloadError
):
    """The peer does not speak HTTP. Its `status` is 400, as aiohttp says of what it can't read."""

    def _know(self, message: str, request: ClientRequest) -> None:
        aiohttp.ClientResponseError.__init__(self, request.request_info, (), status=400, message=message)


class _Unknown(_NoConnection, errors.ControlError):
    """Why nothing is known of a host."""

    def __init__(self, message: str, request: ClientRequest) -> None:
        self._know(message, request)
        Exception.__init__(self, message)

    def __str__(self) -> str:
        return str(self.args[0])


class Unavailable(_Unknown, errors.ControlUnavailable, aiohttp.ClientConnectorError):
    """The control service is not reached, and nothing is known of the host."""


class Refused(_Unknown, errors.RefusedResource, aiohttp.ClientConnectorError):
    """What the control service says of the host can't be used, and there is nothing older."""


class NotHTTP(aiohttp.ClientError, ValueError):
    """A request of the application's that is not HTTP."""


_CLASSES: dict[type[errors.RequestError], Any] = {
    errors.ConnectFailed: ConnectFailed,
    errors.ConnectTimedOut: ConnectTimedOut,
    errors.UpstreamReset: UpstreamReset,
    errors.UpstreamTimedOut: UpstreamTimedOut,
    errors.UpstreamProtocolError: UpstreamProtocolError,
}


def of_failure(error: FlightFailed, request: ClientRequest) -> Exception:
    """The error of a request that ended without a (whole) response."""
    made: Exception = _CLASSES[kind_of(error)](words_of(error), flight_of(error), request)
    return made


def of_connection(error: errors.ConnectFailed, request: ClientRequest) -> Exception:
    """The error of an https:// URL to which the mesh made no connection."""
    made = ConnectTimedOut if isinstance(error, errors.ConnectTimedOut) else ConnectFailed
    found: Exception = made(error.reason, error.flight, request)
    return found


def of_own(error: TooSlow | Unsendable) -> Exception:
    """aiohttp's error of a limit that the application set, or of a request that is not HTTP."""
    if isinstance(error, Unsendable):
        return NotHTTP(str(error))
    if error.operation == "pool":
        return aiohttp.ConnectionTimeoutError(str(error))
    return aiohttp.SocketTimeoutError(str(error))


def of_control(error: errors.ControlError, request: ClientRequest) -> Exception:
    """The error of a request to a host of which nothing is known."""
    made = Refused if isinstance(error, errors.RefusedResource) else Unavailable
    return made(str(error), request)
