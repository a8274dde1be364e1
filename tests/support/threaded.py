"""A server on loopback that has one thread a connection: what scripted ones of every protocol share."""

import contextlib
import socket
import threading
from abc import ABC, abstractmethod


class Threaded(ABC):
    """Accepts, counts, hangs up and ends; a protocol says in `serve` what it does with a connection."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self.listening = socket.create_server((host, 0), backlog=256)
        self.port: int = self.listening.getsockname()[1]
        self.connections = 0
        self.open: set[socket.socket] = set()
        """What `hang_up` closes: what was accepted, and what a protocol makes of it."""
        self.closing = threading.Event()
        self._threads: list[threading.Thread] = []

    def run(self) -> None:
        """Accepts until the listening socket is shut down."""
        while True:
            try:
                accepted, _ = self.listening.accept()
            except OSError:
                return
            self.connections += 1
            self.open.add(accepted)
            thread = threading.Thread(target=self._serve, args=(accepted, self.connections), daemon=True)
            thread.start()
            self._threads.append(thread)

    def _serve(self, accepted: socket.socket, number: int) -> None:
        self.serve(accepted, number)
        self.open.discard(accepted)

    @abstractmethod
    def serve(self, accepted: socket.socket, number: int) -> None:
        """One connection, to its end."""

    def hang_up(self) -> None:
        """Closes all connections, as a server does with idle ones."""
        for made in list(self.open):
            with contextlib.suppress(OSError):
                made.shutdown(socket.SHUT_RDWR)

    def stop(self) -> None:
        """Ends everything."""
        self.closing.set()
        with contextlib.suppress(OSError):
            self.listening.shutdown(socket.SHUT_RDWR)
        self.listening.close()
        self.hang_up()
        for thread in list(self._threads):
            thread.join(5)
