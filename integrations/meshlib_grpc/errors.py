"""Errors that are meshlib's and grpc's at once, so that code written for gRPC catches them.

    Status                 any status but OK: a server's, or a reply of the mesh (an injected fault, no route)
    ConnectFailed          UNAVAILABLE
    ConnectTimedOut        UNAVAILABLE
    UpstreamReset          UNAVAILABLE
    UpstreamTimedOut       DEADLINE_EXCEEDED
    UpstreamProtocolError  UNAVAILABLE
    Unavailable            UNAVAILABLE          (meshlib.ControlUnavailable)
    Refused                UNAVAILABLE          (meshlib.RefusedResource)

All are `grpc.RpcError` and `grpc.Call`, those of threads and those of tasks: `grpc.aio.AioRpcError`, too.
`meshlib` of a Status are the `Facts`: by which rule, where to, how often, with which of Envoy's flags.
"""

from typing import Any

import grpc

from meshlib import errors
from meshlib.core.actions import Facts
from meshlib.dataplane.drive import FlightFailed
from meshlib.dataplane.flights import flight_of, kind_of, words_of
from meshlib_grpc.metadata import Metadatum
from meshlib_grpc.over import Over

FLAGS = "x-envoy-response-flags"
"""In the trailing metadata of a status that the mesh made: Envoy's flags, as an access log has them."""
_NO_FACTS = Facts()


class Status(Over, grpc.aio.AioRpcError, grpc.Call, grpc.Future):  # type: ignore[misc]
    """A call ended with another status than OK."""

    def __init__(
        self,
        code: grpc.StatusCode,
        initial: Any = (),
        trailing: Any = (),
        details: str | None = None,
        facts: Facts = _NO_FACTS,
    ) -> None:
        # gRPC's own __init__ would go on to those of meshlib's errors, which want other arguments.
        Exception.__init__(self, details)
        self._code, self._details, self._debug_error_string = code, details, f"{code.name}:{details}"
        self._initial_metadata, self._trailing_metadata = initial, trailing
        self.meshlib = facts

    def __reduce__(self) -> Any:
        return _again, (
            type(self),
            self._code,
            tuple(self._initial_metadata),
            tuple(self._trailing_metadata),
            self._details,
            self.meshlib,
        )

    # What gRPC's errors of threads can do as well: they are calls that have ended.

    def result(self, timeout: float | None = None) -> Any:
        """Raises it."""
        raise self

    def exception(self, timeout: float | None = None) -> Any:
        """It."""
        return self

    def traceback(self, timeout: float | None = None) -> Any:
        """Of where it was raised."""
        return self.__traceback__


class _Lost(Status, errors.RequestError):
    """What both sides want to know of a call that came to no response."""

    def _init(self, message: str, flight: errors.Flight, facts: Facts) -> None:
        errors.RequestError.__init__(self, message, flight)
        words = Exception.__str__(self)
        code = getattr(grpc.StatusCode, self.grpc_code)
        Status.__init__(self, code, (), (Metadatum(FLAGS, facts.flag),), words, facts)


class ConnectFailed(_Lost, errors.ConnectFailed):
    """No connection to the endpoint."""


class ConnectTimedOut(_Lost, errors.ConnectTimedOut):
    """No connection to the endpoint in time."""


class UpstreamReset(_Lost, errors.UpstreamReset):
    """The connection broke before the response was whole."""


class UpstreamTimedOut(_Lost, errors.UpstreamTimedOut):
    """The time of the call, of the route, or of the last try, ran out."""


class UpstreamProtocolError(_Lost, errors.UpstreamProtocolError):
    """The peer does not speak HTTP/2."""


class Unavailable(Status, errors.ControlUnavailable):
    """The control service is not reached, and nothing is known of the host."""


class Refused(Status, errors.RefusedResource):
    """What the control service says of the host can't be used, and there is nothing older."""


_CLASSES: dict[type[errors.RequestError], type[_Lost]] = {
    errors.ConnectFailed: ConnectFailed,
    errors.ConnectTimedOut: ConnectTimedOut,
    errors.UpstreamReset: UpstreamReset,
    errors.UpstreamTimedOut: UpstreamTimedOut,
    errors.UpstreamProtocolError: UpstreamProtocolError,
}


def of_failure(error: FlightFailed) -> Status:
    """The error of a call that ended without a (whole) response."""
    kind = _CLASSES[kind_of(error)]
    made = kind.__new__(kind)
    message, facts = words_of(error), error.facts
    if facts.flag == "-":  # it broke off after its head
        facts = facts._replace(flag=kind.flag)
    made.flag = facts.flag
    made._init(message, flight_of(error), facts)  # noqa: SLF001 - its second half
    return made


def of_control(error: errors.ControlError) -> Status:
    """The error of a call to a host of which nothing is known."""
    kind = Refused if isinstance(error, errors.RefusedResource) else Unavailable
    return kind(grpc.StatusCode.UNAVAILABLE, (), (), str(error))


def _again(
    kind: type[Status], code: grpc.StatusCode, initial: Any, trailing: Any, details: str, facts: Facts
) -> Status:
    made = kind.__new__(kind)
    Status.__init__(made, code, initial, trailing, details, facts)
    return made
