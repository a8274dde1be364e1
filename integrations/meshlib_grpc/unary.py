"""A response of one message, and what an application may wish of a call besides."""

from collections.abc import AsyncIterator, Iterator
from typing import NamedTuple

import grpc

from meshlib.core.request import ResponseHead
from meshlib.dataplane.http.read import Need
from meshlib_grpc.outcome import OK, Ended

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

    __slots__ = ("call", "ended", "head", "reason", "version", "whole")

    def __init__(
        self, head: ResponseHead, message: bytes, ended: Ended, call: grpc.Call | None = None
    ) -> None:
        self.head = head
        self.version, self.reason = b"HTTP/2", b""
        self.whole: bytes | None = message
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
