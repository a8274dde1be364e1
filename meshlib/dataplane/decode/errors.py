"""How a resource is refused: with the path of the field and the reason, which become the NACK's text.

Law: a resource is taken whole or refused whole; nothing of a refused resource takes effect.
"""

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from meshlib.errors import RefusedResource

T = TypeVar("T")


class Refused(RefusedResource):
    """A field of a resource can't be used. `path` is relative to the resource, as in protobuf's text form.

    `within` puts a prefix before it while the error travels up through the decoders.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}" if path else reason)
        self.path = path
        self.reason = reason

    def within(self, prefix: str) -> "Refused":
        """The same refusal seen from an enclosing message, whose field `prefix` this was."""
        if not self.path or self.path.startswith("["):
            return Refused(prefix + self.path, self.reason)
        return Refused(f"{prefix}.{self.path}", self.reason)


def decode_each(messages: Iterable[Any], field: str, decode: Callable[[Any], T]) -> list[T]:
    """All messages of the repeated `field`, decoded. Refused: one of them is; the path says which."""
    made = []
    for number, message in enumerate(messages):
        try:
            made.append(decode(message))
        except Refused as refused:
            raise refused.within(f"{field}[{number}]") from None
    return made
