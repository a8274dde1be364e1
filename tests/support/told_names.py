"""A system's resolver that knows what a test says of names under `.example`, and all else as before."""

import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any


class ToldNames:
    """Addresses by name; a name that is not there does not exist. `down`: nobody answers."""

    def __init__(self) -> None:
        self.addresses: dict[str, Sequence[str]] = {}
        self.down = False
        self.asked: list[str] = []
        self._system = socket.getaddrinfo

    def getaddrinfo(self, host: Any, port: Any, family: int = 0, *more: Any, **also: Any) -> list[Any]:
        """In place of socket.getaddrinfo."""
        name = host.decode() if isinstance(host, bytes) else host
        if not isinstance(name, str) or not name.endswith(".example"):
            return self._system(host, port, family, *more, **also)
        self.asked.append(name)
        if self.down:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        found = [
            entry
            for address in self.addresses.get(name, ())
            if family in (0, socket.AF_INET6 if ":" in address else socket.AF_INET)
            for entry in self._system(address, port, 0, socket.SOCK_STREAM)
        ]
        if not found:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return found


@contextmanager
def told_names() -> Iterator[ToldNames]:
    """For as long as the block lasts."""
    made = ToldNames()
    before, socket.getaddrinfo = socket.getaddrinfo, made.getaddrinfo  # type: ignore[assignment]
    try:
        yield made
    finally:
        socket.getaddrinfo = before
