"""Errors that are meshlib's and requests' at once, so that code written for requests catches them.

    ConnectFailed          requests.ConnectionError
    ConnectTimedOut        requests.ConnectTimeout
    UpstreamReset          requests.ConnectionError and ChunkedEncodingError
    UpstreamTimedOut       requests.ReadTimeout
    UpstreamProtocolError  requests.ConnectionError and ChunkedEncodingError
    Unavailable            requests.ConnectionError   (meshlib.ControlUnavailable)
    Refused                requests.ConnectionError   (meshlib.RefusedResource)

requests tells a connection that broke before the response (ConnectionError) from one that broke in its body
(ChunkedEncodingError), and so a time-out (ReadTimeout, ConnectionError); here one class is both. The
application's own time-outs are `ReadTimedOut`, and `requests.ConnectionError` for one of a write.
"""

import requests
from requests import PreparedRequest
from requests.exceptions import ChunkedEncodingError, InvalidHeader

from meshlib import errors
from meshlib.dataplane.drive import FlightFailed
from meshlib.dataplane.flights import flight_of, kind_of, words_of
from meshlib.dataplane.http.limits import TooSlow
from meshlib.dataplane.http.syntax import Unsendable


class _Both(errors.RequestError):
    """What both sides want to know."""

    request: PreparedRequest | requests.Request | None
    response: requests.Response | None

    def __init__(self, message: str, flight: errors.Flight, request: PreparedRequest) -> None:
        self.request, self.response = request, None
        errors.RequestError.__init__(self, message, flight)


class ConnectFailed(_Both, errors.ConnectFailed, requests.ConnectionError):
    """No connection to the endpoint."""


class ConnectTimedOut(_Both, errors.ConnectTimedOut, requests.ConnectTimeout):
    """No connection to the endpoint in time."""


class UpstreamReset(_Both, errors.UpstreamReset, requests.ConnectionError, ChunkedEncodingError):
    """The connection broke before the response was whole."""


class UpstreamTimedOut(_Both, errors.UpstreamTimedOut, requests.ReadTimeout, requests.ConnectionError):
    """The time of the route, or of the last try, ran out."""


class UpstreamProtocolError(
    _Both, errors.UpstreamProtocolError, requests.ConnectionError, ChunkedEncodingError
):
    """The peer does not speak HTTP."""


class _Unknown(errors.ControlError):
    """Why nothing is known of a host."""

    request: PreparedRequest | requests.Request | None
    response: requests.Response | None

    def __init__(self, message: str, request: PreparedRequest) -> None:
        self.request, self.response = request, None
        Exception.__init__(self, message)


class Unavailable(_Unknown, errors.ControlUnavailable, requests.ConnectionError):
    """The control service is not reached, and nothing is known of the host."""


class Refused(_Unknown, errors.RefusedResource, requests.ConnectionError):
    """What the control service says of the host can't be used, and there is nothing older."""


class ReadTimedOut(requests.ReadTimeout, requests.ConnectionError):
    """The application's own limit of a read passed."""


_CLASSES: dict[type[errors.RequestError], type[_Both]] = {
    errors.ConnectFailed: ConnectFailed,
    errors.ConnectTimedOut: ConnectTimedOut,
    errors.UpstreamReset: UpstreamReset,
    errors.UpstreamTimedOut: UpstreamTimedOut,
    errors.UpstreamProtocolError: UpstreamProtocolError,
}


def of_failure(error: FlightFailed, request: PreparedRequest) -> Exception:
    """The error of a request that ended without a (whole) response."""
    return _CLASSES[kind_of(error)](words_of(error), flight_of(error), request)


def of_connection(error: requests.ConnectionError, request: PreparedRequest) -> requests.ConnectionError:
    """The error of an https:// URL: the mesh's own, if it is the mesh that made no connection."""
    found = error.args[0] if error.args else None
    if not isinstance(found, errors.ConnectFailed):
        return error
    made = ConnectTimedOut if isinstance(found, errors.ConnectTimedOut) else ConnectFailed
    return made(found.reason, found.flight, request)


def of_own(error: TooSlow | Unsendable, request: PreparedRequest) -> requests.RequestException:
    """requests' error of a limit that the application set, or of a request that is not HTTP."""
    if isinstance(error, Unsendable):
        return InvalidHeader(str(error), request=request)
    if error.operation == "read":
        return ReadTimedOut(str(error), request=request)
    return requests.ConnectionError(str(error), request=request)


def of_control(error: errors.ControlError, request: PreparedRequest) -> errors.ControlError:
    """The error of a request to a host of which nothing is known."""
    made = Refused if isinstance(error, errors.RefusedResource) else Unavailable
    return made(str(error), request)
