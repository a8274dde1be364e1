"""What a response over HTTP/1.1 is to threads and tasks alike: its head, and what of its body has come."""

from typing import Generic, Protocol, TypeVar

from meshlib.core.request import ResponseHead
from meshlib.dataplane.http.codec import Codec
from meshlib.dataplane.http.failures import broken_off
from meshlib.dataplane.http.lease import Lease
from meshlib.dataplane.http.limits import Broken
from meshlib.dataplane.http.pool import Reusable
from meshlib.dataplane.http.read import Need
from meshlib.dataplane.http.syntax import Malformed


class Speaking(Reusable, Protocol):
    """What a response asks of its connection."""

    codec: Codec


C = TypeVar("C", bound=Speaking)


class LeasedResponse(Generic[C]):
    """A response whose head is here. If all of it is, its connection is free already."""

    __slots__ = ("_lease", "head", "reason", "version", "whole")

    def __init__(self, head: ResponseHead, lease: Lease[C]) -> None:
        codec = lease.kept.connection.codec
        self.head = head
        self.version = codec.version
        self.reason = codec.reason
        self._lease = lease
        self.whole = codec.rest()
        if self.whole is not None:
            lease.end(codec.reuse())

    def ready(self) -> bytes | Need:
        """The next part of the body, if it has come. Broken."""
        lease, codec = self._lease, self._lease.kept.connection.codec
        if not lease.open:
            return Need.NOTHING
        try:
            part = codec.next()
        except Malformed as error:
            lease.end(False)
            raise Broken(broken_off(error, codec.ended)) from error
        if part is Need.NOTHING:
            lease.end(codec.reuse())
        assert not isinstance(part, ResponseHead)  # noqa: S101 - it has come before
        return part

    def close(self) -> None:
        """Ends the exchange; a body that was not read to its end costs the connection."""
        self._lease.end(False)
