"""One method of a service, as a stub knows it: what it is called by, for threads and for tasks."""

from typing import Generic, TypeVar

from meshlib_grpc.asked import Deserialize, Serialize, Target

S = TypeVar("S")


class Method(Generic[S]):
    """Whose calls that sender sends."""

    def __init__(
        self, sender: S, target: Target, path: str, serialize: Serialize, deserialize: Deserialize
    ) -> None:
        self._sender = sender
        self._target = target
        self._path = path
        self._serialize = serialize
        self._deserialize = deserialize
