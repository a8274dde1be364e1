"""Errors that are meshlib's and the standard library's at once: what drivers of databases catch is OSError.

    ConnectFailed      ConnectionError                    no connection to the endpoint
    ConnectTimedOut    ConnectionError and TimeoutError   nor in time
    NoUpstream         ConnectionError                    the mesh has nowhere to send it
    Unavailable        ConnectionError                    (meshlib.ControlUnavailable)
    Refused            ConnectionError                    (meshlib.RefusedResource)
    MeshClosed         ConnectionError                    (meshlib.Closed)

What happens on a connection that stands is the standard library's alone.
"""

import errno

from meshlib import errors
from meshlib.core.actions import Facts
from meshlib.core.request import Failed, Failure

_TIMED_OUT = (Failure.CONNECT_TIMED_OUT, Failure.TIMED_OUT, Failure.TRY_TIMED_OUT)


class ConnectFailed(errors.ConnectFailed, ConnectionError):
    """No connection to the endpoint."""

    def __init__(self, message: str, flight: errors.Flight) -> None:
        super().__init__(message, flight)
        self.errno = errno.ECONNREFUSED


class ConnectTimedOut(errors.ConnectTimedOut, ConnectionError, TimeoutError):
    """No connection to the endpoint in time."""

    def __init__(self, message: str, flight: errors.Flight) -> None:
        super().__init__(message, flight)
        self.errno = errno.ETIMEDOUT


class NoUpstream(errors.NoUpstream, ConnectionError):
    """The mesh has nowhere to send the connection."""

    def __init__(self, message: str, flight: errors.Flight, flag: str) -> None:
        super().__init__(message, flight, flag)
        self.errno = errno.EHOSTUNREACH


class Unavailable(errors.ControlUnavailable, ConnectionError):
    """The control service is not reached, and nothing is known of the host."""


class Refused(errors.RefusedResource, ConnectionError):
    """What the control service says of the host can't be used, and there is nothing older."""


class MeshClosed(errors.Closed, ConnectionError):
    """The mesh was closed before."""


def of_refusal(failed: Failed | None, facts: Facts) -> errors.RequestError:
    """The error of a connection that was not made."""
    flight = errors.Flight(
        facts.route, facts.cluster, facts.endpoint, facts.attempts, facts.config_version, facts.source
    )
    if failed is None:
        return NoUpstream(facts.detail, flight, facts.flag)
    message = failed.how.value
    if failed.detail and failed.detail != message:
        message = f"{message}: {failed.detail}"
    return (ConnectTimedOut if failed.how in _TIMED_OUT else ConnectFailed)(message, flight)


def of_mesh(error: errors.MeshError) -> errors.MeshError:
    """The error of a connection to a host of which nothing is known."""
    if isinstance(error, errors.Closed):
        return MeshClosed(error.reason, error.flight)
    made = Refused if isinstance(error, errors.RefusedResource) else Unavailable
    return made(str(error))
