"""An answer of the mesh's own as a status of gRPC's.

Rules (Envoy, Utility::prepareLocalReply):

- 401 is UNAUTHENTICATED, 403 PERMISSION_DENIED, 503 UNAVAILABLE, …; the body is the message.
- The status is all of the response ("trailers only"), so other headers of the answer are its trailing
  metadata.
"""

from typing import NamedTuple

import grpc

from meshlib.core.actions import Facts, Reply
from meshlib.core.authz.opinion import FRAMING
from meshlib.core.local_reply import local_reply
from meshlib.core.request import Header, RequestHead
from meshlib_grpc.metadata import Metadata, status_of, to_metadata
from meshlib_grpc.outcome import CODES

NO_METHOD = "Method not found!"
"""gRPC's own words."""
DENIED = "RBAC: access denied"
"""Envoy's."""
_UNKNOWN = 2


class Status(NamedTuple):
    """How a call ends that is not served."""

    code: grpc.StatusCode
    details: str
    trailing: Metadata = ()


class Refusal(NamedTuple):
    """A status, and the same as HTTP has it."""

    status: Status
    reply: Reply


STRANGER = Status(grpc.StatusCode.PERMISSION_DENIED, DENIED)
"""To a connection that did not come through the mesh's port."""


def refusal(head: RequestHead, reply: Reply) -> Refusal:
    """What the caller is answered."""
    said = local_reply(head, reply.status, reply.facts, reply.body, reply.headers)
    number, words = status_of(said.headers)
    code = CODES.get(_UNKNOWN if number is None else number, grpc.StatusCode.UNKNOWN)
    trailing = to_metadata(header for header in said.headers if _is_metadata(header))
    return Refusal(Status(code, words, trailing), said)


def _is_metadata(header: Header) -> bool:
    name = header[0].lower()
    return name not in FRAMING and not name.startswith((b":", b"grpc-")) and header[1].isascii()


def host_unknown() -> Reply:
    """A policy asks for the authority, and it is not known."""
    return Reply(403, Facts(detail="authority_unknown"), (), DENIED.encode())


def no_method() -> Reply:
    """There is no such method, or its path was judged as another one."""
    return Reply(404, Facts(detail="method_not_found"), (), NO_METHOD.encode())


def no_policy(error: Exception) -> Status:
    """It is not known who may call."""
    return Status(grpc.StatusCode.UNAVAILABLE, f"no policy is known: {error}")
