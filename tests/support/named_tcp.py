"""A TCP server that says its name, then echoes: the upstream of tests of connections."""

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def named_tcp(name: str, context: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> Iterator[int]:
    """Serves on a free port, which it gives. A connection begins with a line, the name; then it echoes.

    With a context it speaks TLS.
    """
    listening = socket.create_server((host, 0), backlog=256)
    taken: set[socket.socket] = set()

    def serve(made: socket.socket) -> None:
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            stack.callback(taken.discard, made)
            stack.callback(made.close)
            talk = made
            if context is not None:
                talk = context.wrap_socket(made, server_side=True)
                stack.callback(talk.close)
                taken.add(talk)
                stack.callback(taken.discard, talk)
            talk.sendall(f"{name}\n".encode())
            while data := talk.recv(65536):
                talk.sendall(data)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                made, _ = listening.accept()
                taken.add(made)
                threading.Thread(target=serve, args=(made,), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield int(listening.getsockname()[1])
    finally:
        with contextlib.suppress(OSError):
            listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        for made in list(taken):
            with contextlib.suppress(OSError):
                made.shutdown(socket.SHUT_RDWR)
        thread.join(5)
