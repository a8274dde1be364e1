"""Errors that are meshlib's and httpx's at once, so that code written for httpx catches them.

    ConnectFailed          httpx.ConnectError
    ConnectTimedOut        httpx.ConnectTimeout
    UpstreamReset          httpx.RemoteProtocolError and httpx.ReadError
    UpstreamTimedOut       httpx.ReadTimeout
    UpstreamProtocolError  httpx.RemoteProtocolError
    Unavailable            httpx.ConnectError          (meshlib.ControlUnavailable)
    Refused                httpx.ConnectError          (meshlib.RefusedResource)

httpx tells a connection that was closed (RemoteProtocolError) from one that was reset (ReadError);
for the mesh both are one failure, so one class is both. The application's own time-outs stay plain
httpx: ReadTimeout, WriteTimeout, PoolTimeout; so does LocalProtocolError, for a request of its own
that is not HTTP.
"""

import httpx

from meshlib import errors
from meshlib.dataplane.drive import FlightFailed
from meshlib.dataplane.flights import flight_of, kind_of, words_of
from meshlib.dataplane.http.limits import TooSlow
from meshlib.dataplane.http.syntax import Unsendable


class _Both(errors.RequestError):
    """What both sides want to know."""

    _request: httpx.Request | None

    def __init__(self, message: str, flight: errors.Flight, request: httpx.Request) -> None:
        errors.RequestError.__init__(self, message, flight)
        self._request = request


class ConnectFailed(_Both, errors.ConnectFailed, httpx.ConnectError):
    """No connection to the endpoint."""


class ConnectTimedOut(_Both, errors.ConnectTimedOut, httpx.ConnectTimeout):
    """No connection to the endpoint in time."""


class UpstreamReset(_Both, errors.UpstreamReset, httpx.RemoteProtocolError, httpx.ReadError):
    """The connection broke before the response was whole."""


class UpstreamTimedOut(_Both, errors.UpstreamTimedOut, httpx.ReadTimeout):
    """The time of the route, or of the last try, ran out."""


class UpstreamProtocolError(_Both, errors.UpstreamProtocolError, httpx.RemoteProtocolError):
    """The peer does not speak HTTP."""


class _Unknown(errors.ControlError):
    """Why nothing is known of a host."""

    _request: httpx.Request | None

    def __init__(self, message: str, request: httpx.Request) -> None:
        Exception.__init__(self, message)
        self._request = request


class Unavailable(_Unknown, errors.ControlUnavailable, httpx.ConnectError):
    """The control service is not reached, and nothing is known of the host."""


class Refused(_Unknown, errors.RefusedResource, httpx.ConnectError):
    """What the control service says of the host can't be used, and there is nothing older."""


_CLASSES: dict[type[errors.RequestError], type[_Both]] = {
    errors.ConnectFailed: ConnectFailed,
    errors.ConnectTimedOut: ConnectTimedOut,
    errors.UpstreamReset: UpstreamReset,
    errors.UpstreamTimedOut: UpstreamTimedOut,
    errors.UpstreamProtocolError: UpstreamProtocolError,
}
_TOO_SLOW = {"read": httpx.ReadTimeout, "write": httpx.WriteTimeout, "pool": httpx.PoolTimeout}


def of_failure(error: FlightFailed, request: httpx.Request) -> _Both:
    """The error of a request that ended without a (whole) response."""
    return _CLASSES[kind_of(error)](words_of(error), flight_of(error), request)


def of_connection(error: errors.ConnectFailed, request: httpx.Request) -> _Both:
    """The error of an https:// URL to which the mesh made no connection."""
    made = ConnectTimedOut if isinstance(error, errors.ConnectTimedOut) else ConnectFailed
    return made(error.reason, error.flight, request)


def of_own(error: TooSlow | Unsendable, request: httpx.Request) -> httpx.TransportError:
    """The httpx error of a limit that the application set, or of a request that is not HTTP."""
    if isinstance(error, Unsendable):
        return httpx.LocalProtocolError(str(error), request=request)
    return _TOO_SLOW[error.operation](str(error), request=request)


def of_control(error: errors.ControlError, request: httpx.Request) -> _Unknown:
    """The error of a request to a host of which nothing is known."""
    made = Refused if isinstance(error, errors.RefusedResource) else Unavailable
    return made(str(error), request)
