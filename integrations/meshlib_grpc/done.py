"""A call with one request and one response that went well: what `with_call` gives beside the response."""

from typing import Any

import grpc

from meshlib_grpc.asked import Said
from meshlib_grpc.outcome import OK
from meshlib_grpc.over import Over


class Done(Over, grpc.Call, grpc.Future):  # type: ignore[misc]
    """A call that went well."""

    def __init__(self, how: Said, response: Any) -> None:
        self._how = how
        self._response = response
        self.meshlib = how.facts
        """By which rule, where to, how often."""

    def code(self) -> grpc.StatusCode:
        """OK."""
        return OK

    def details(self) -> str:
        """None."""
        return self._how.details

    def initial_metadata(self) -> Any:
        """As the rules leave it."""
        return self._how.initial

    def trailing_metadata(self) -> Any:
        """The server's."""
        return self._how.trailing

    def result(self, timeout: float | None = None) -> Any:
        """The response."""
        return self._response

    def exception(self, timeout: float | None = None) -> Any:
        """None."""
        return None

    def traceback(self, timeout: float | None = None) -> Any:
        """None."""
        return None
