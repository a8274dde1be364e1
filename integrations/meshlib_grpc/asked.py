"""What an application asks of gRPC's API, in core's words; and what it is answered, in gRPC's."""

import math
from typing import Any, NamedTuple

import grpc

from meshlib.core.actions import Facts
from meshlib.core.local_reply import grpc_status_of
from meshlib.core.request import Header, RequestHead, ResponseHead
from meshlib.dataplane.body import RequestBody
from meshlib.dataplane.drive import Answer
from meshlib.dataplane.exchange import Request
from meshlib.dataplane.http.limits import NO_TIMEOUTS
from meshlib_grpc.errors import FLAGS, Status
from meshlib_grpc.metadata import (
    BadName,
    Metadata,
    Metadatum,
    index_of,
    status_of,
    to_metadata,
    to_request,
)
from meshlib_grpc.outcome import CODES, OK, Ended

Serialize = Any
Deserialize = Any
_UNKNOWN = 2


class Target(NamedTuple):
    """Whom a channel calls."""

    host: str
    port: int
    authority: str
    name: str
    """As a key of the view's tables."""

    @classmethod
    def parse(cls, text: str) -> "Target":
        """Of `host:port`. ValueError: it is anything else."""
        host, colon, port = text.rpartition(":")
        if not host or not colon or not port.isdecimal() or "/" in text or not 0 < int(port) < 65536:
            raise ValueError(f"{text!r} is no target of the mesh; one is host:port, such as reviews:9080")
        return cls(host.removeprefix("[").removesuffix("]"), int(port), text, text.lower())

    def request(self, path: str, body: RequestBody, metadata: Any, timeout: float | None) -> "Asked":
        """A call of the method with that path. Status: its metadata can't be sent, as gRPC tells it."""
        if timeout is not None and not -math.inf < timeout < math.inf:
            timeout = None if timeout == math.inf else 0.0  # what is no number is over, as for gRPC
        try:
            headers = to_request(metadata, timeout)
        except BadName:
            raise Status(grpc.StatusCode.INTERNAL, details="Invalid metadata") from None
        return self._asked(path, headers, body, timeout)

    def _asked(self, path: str, headers: list[Header], body: RequestBody, timeout: float | None) -> "Asked":
        return Asked(self, path, headers, body, timeout)


class Asked(Request):
    """A call. Its metadata has no Host, so there is nothing to look for in it."""

    __slots__ = ()

    def __init__(
        self, target: Target, path: str, headers: list[Header], body: RequestBody, timeout: float | None
    ) -> None:
        self.head = RequestHead("POST", "http", target.authority, path, headers, index_of(headers))
        self.name = target.name
        self.original = (target.host, target.port)
        self.body = body
        self.own = NO_TIMEOUTS
        self.patience = timeout
        self.watched = None


def serialized(message: Any, serialize: Serialize) -> bytes:
    """A message's bytes. Status: it can't be made bytes, which gRPC tells in this way."""
    if serialize is not None:
        try:
            message = serialize(message)
        except Exception as error:
            raise _unserialized() from error
    if message is None:
        raise _unserialized()
    return message  # type: ignore[no-any-return]


def _unserialized() -> Status:
    return Status(grpc.StatusCode.INTERNAL, details="Exception serializing request!")


def deserialized(data: bytes, deserialize: Deserialize) -> Any:
    """A message of bytes. Status: it is none."""
    if deserialize is None:
        return data
    try:
        return deserialize(data)
    except Exception as error:
        raise Status(grpc.StatusCode.INTERNAL, details="Exception deserializing response!") from error


def missing(answer: Answer, ended: Ended) -> Status:
    """A call that went well without the one message of its response."""
    how = said(answer, ended)._replace(code=grpc.StatusCode.INTERNAL, details="The response has no message.")
    return how.status()


class Said(NamedTuple):
    """How a call ended, as the application is told."""

    code: grpc.StatusCode
    details: str
    initial: Metadata
    trailing: Metadata
    facts: Facts

    def status(self) -> Status:
        """As an error."""
        return Status(self.code, self.initial, self.trailing, self.details, self.facts)


def said(answer: Answer, ended: Ended | None, came: ResponseHead | None = None) -> Said:
    """`ended`: of the call that was answered; None: the answer is the mesh's own. `came` is its head,
    before the rules edited it.
    """
    facts, headers = answer.facts, answer.headers
    if ended is None:
        number, words = status_of(headers)
        if number is None:
            number = grpc_status_of(answer.status)
        trailing = (*to_metadata(headers), Metadatum(FLAGS, facts.flag))
        code = CODES.get(number, grpc.StatusCode.UNKNOWN)
        return Said(code, words or facts.detail, (), trailing, facts)
    if ended.code is OK:
        return Said(OK, "", to_metadata(headers), tuple(ended.trailing), facts)
    if answer.status != 200:  # not gRPC's
        return Said(ended.code, ended.details, to_metadata(headers), tuple(ended.trailing), facts)
    if came is None or status_of(came.headers)[0] is None:  # the status came after a head of its own
        return Said(ended.code, ended.details, to_metadata(headers), tuple(ended.trailing), facts)
    # Its headers are head and end at once, and edits hold for both.
    number, _ = status_of(headers)
    if number is None:  # the rules have removed it
        number = _UNKNOWN
    code = CODES.get(number, grpc.StatusCode.UNKNOWN)
    return Said(code, ended.details, (), to_metadata(headers), facts)
