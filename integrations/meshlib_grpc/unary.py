"""A response of one message, and what an application may wish of a call besides."""

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, NamedTuple

import grpc

from meshlib.core.actions import Attempt
from meshlib.core.request import Failed, ResponseHead
from meshlib.dataplane.http.limits import Broken
from meshlib.dataplane.http.read import Need
from meshlib_grpc.outcome import OK, Begun, Doubt, Ended, of_status

WELL = Ended(OK)


class Wishes(NamedTuple):
    """What an application says of a call that only gRPC's library does."""

    credentials: grpc.CallCredentials | None = None
    compression: grpc.Compression | None = None


NO_WISHES = Wishes()


def wishes_of(credentials: grpc.CallCredentials | None, compression: grpc.Compression | None) -> Wishes:
    """Most calls have none."""
    return NO_WISHES if credentials is compression is None else Wishes(credentials, compression)


class Unary:
    """A response of one message, which is here with its status."""

    __slots__ = ("call", "ended", "head", "missing", "reason", "version", "whole")

    def __init__(
        self, head: ResponseHead, message: bytes | None, ended: Ended, call: grpc.Call | None = None
    ) -> None:
        """`message` None: none came."""
        self.head = head
        self.version, self.reason = b"HTTP/2", b""
        self.missing = message is None
        self.whole: bytes | None = b"" if message is None else message
        self.ended = ended
        self.call = call
        """gRPC's own, if it went well."""

    def end(self) -> Ended:
        """How it ended."""
        return self.ended if self.call is None else Ended(OK, "", self.call.trailing_metadata() or ())

    def __iter__(self) -> Iterator[bytes]:
        yield self.whole or b""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self.whole or b""

    async def more(self) -> None:
        """Nothing more comes."""

    def ready(self) -> bytes | Need:
        """Nothing more comes."""
        return Need.NOTHING

    def close(self) -> None:
        """It has ended."""


class Headed(Unary):
    """A response whose head came before its end, which is known and is not good. It is not whole: who reads
    it hears what broke it off.
    """

    __slots__ = ("_failed",)

    def __init__(self, begun: Begun, ended: Ended) -> None:
        super().__init__(begun.head, None, ended)
        self.whole = None
        self._failed = begun.failed

    def __iter__(self) -> Iterator[bytes]:
        if self._failed is not None:
            raise Broken(self._failed)
        return iter(())

    async def __aiter__(self) -> AsyncIterator[bytes]:
        if self._failed is not None:
            raise Broken(self._failed)
        if self.whole is not None:
            yield self.whole


def unary_of(
    ended: Ended,
    initial: Any,
    attempt: Attempt,
    clock: Callable[[], float],
    connection: Doubt | None,
    *,
    message: bool = False,
) -> Unary | Failed:
    """Of such a call with a bad status; as of `of_status`."""
    outcome = of_status(ended, initial, attempt, clock, connection, message=message)
    if isinstance(outcome, Failed):
        return outcome
    return Headed(outcome, ended) if isinstance(outcome, Begun) else Unary(outcome, b"", ended)
