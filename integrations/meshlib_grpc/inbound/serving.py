"""One call that was let in, until its status: what threads and tasks have in common.

Rules:

- What is told of a call is what a sidecar sees: an HTTP response 200, and the status of gRPC at its end.
- A message counts with the five bytes that frame it.
"""

from typing import Any

import grpc

from meshlib.core.authz.body import Beginning, BodyWanted, Found, Unread
from meshlib.core.authz.opinion import answered
from meshlib.core.inbound import Admitted
from meshlib.core.request import Header, Peer
from meshlib.dataplane.context import Handed
from meshlib.dataplane.gate import Gate
from meshlib.dataplane.telemetry.inbound import Inbound
from meshlib_grpc.inbound.arrival import given
from meshlib_grpc.metadata import TYPE, Metadata, Metadatum, status_headers, to_headers, to_metadata

FRAME = 5
"""Bytes around a message: a flag and its length (gRPC over HTTP/2)."""
_UNKNOWN = 2


class Serving:
    """One call. What its handler's context is told is noted here."""

    __slots__ = ("_admitted", "_code", "_head_sent", "_metadata", "handed", "peer", "watched")

    def __init__(self, gate: Gate, admitted: Admitted, peer: Peer, watched: Inbound | None) -> None:
        self._admitted = admitted
        self._metadata: tuple[Metadatum, ...] | None = None
        self._code = 0
        self._head_sent: list[Header] | None = None
        self.peer = peer
        self.watched = watched
        self.handed: Handed = gate.handed(admitted, watched)

    @property
    def metadata(self) -> tuple[Metadatum, ...]:
        """What the caller sent, as the mesh leaves it."""
        if self._metadata is None:
            self._metadata = given(self._admitted.head.headers)
        return self._metadata

    # What the handler says

    def coded(self, code: Any) -> None:
        """The status was set."""
        value = code.value[0] if isinstance(code, grpc.StatusCode) else code
        self._code = value if isinstance(value, int) else _UNKNOWN

    @property
    def failed(self) -> bool:
        """Whether a bad status was set."""
        return self._code != 0

    def begun(self, metadata: Any) -> Metadata:
        """The handler's initial metadata are sent; what to send."""
        told = self._admitted.response_headers
        if self.watched is None and not told:
            self._head_sent = []
            return metadata  # type: ignore[no-any-return]
        self._head_sent = answered(to_headers(metadata), told)
        return to_metadata(self._head_sent)

    @property
    def owes(self) -> bool:
        """Whether something is to be sent before the response that the handler knows nothing of."""
        return self._head_sent is None and bool(self._admitted.response_headers)

    # What passes

    def received(self, message: bytes) -> None:
        """A message came."""
        if self.watched is not None:
            self.watched.received += len(message) + FRAME

    def sent(self, message: bytes | None) -> None:
        """A message goes."""
        if self.watched is not None and message is not None:
            self.watched.sent += len(message) + FRAME

    # How it ends

    def end(self, *, failed: bool = False, left: bool = False) -> None:
        """The handler is done. `failed`: by an exception; `left`: its caller is gone."""
        watched = self.watched
        if watched is None:
            return
        code = self._code or (_UNKNOWN if failed else 0)
        watched.answered(200, (*(self._head_sent or ()), TYPE, *status_headers(code)))
        if left:
            watched.left()
        else:
            watched.end()


class Body:
    """The one message of a call, shown to an external authority as it is on the wire."""

    def __init__(self, message: bytes | None) -> None:
        """None: it is a stream, which nobody can show beforehand."""
        self._message = message

    def read(self, wanted: BodyWanted) -> Found:
        """As much as is wanted."""
        if self._message is None:
            return Unread.NOBODY_READS
        found = Beginning(None)
        found.add(b"\0" + len(self._message).to_bytes(4, "big") + self._message, last=True)
        return found.shown(wanted)

    async def aread(self, wanted: BodyWanted) -> Found:
        """The same, for tasks."""
        return self.read(wanted)


def authority_of(context: Any) -> str:
    """Which authority was asked for; empty: gRPC does not tell. Only threads' servers know it."""
    details = getattr(getattr(context, "_rpc_event", None), "call_details", None)
    host: bytes = getattr(details, "host", None) or b""
    return host.decode("latin-1")


def peer_text(peer: Peer, name: str) -> str:
    """gRPC's word for a connection's other end; `name`: what it says itself."""
    host, port = peer.address
    if not host:
        return name
    return f"ipv6:%5B{host}%5D:{port}" if ":" in host else f"ipv4:{host}:{port}"
