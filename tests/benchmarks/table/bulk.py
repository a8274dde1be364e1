"""A server of large bodies, in a process of its own: `GET /<bytes>` gives so many, `POST` takes what comes.

Prints its port. A thread a connection; what it does is in the kernel, so it is nobody's bottleneck.
"""

import socket
import threading

PIECE = bytes(2**20)


def main() -> None:
    """Serves until its process is killed."""
    listening = socket.create_server(("127.0.0.1", 0))
    print(listening.getsockname()[1], flush=True)
    while True:
        made, _ = listening.accept()
        threading.Thread(target=_serve, args=(made,), daemon=True).start()


def _serve(made: socket.socket) -> None:
    into = bytearray(2**20)
    with made, made.makefile("rb", buffering=2**16) as reader:
        while line := reader.readline():
            method, target, _ = line.split()
            length, chunked = 0, False
            while (header := reader.readline().strip().lower()) != b"":
                name, _, value = header.partition(b":")
                length = int(value) if name == b"content-length" else length
                chunked = chunked or (name == b"transfer-encoding" and value.strip() == b"chunked")
            if method == b"GET":
                _give(made, int(target.removeprefix(b"/") or b"0"))
                continue
            while length > 0:
                length -= reader.readinto(memoryview(into)[:length])
            while chunked and (size := int(reader.readline(), 16) + 2) > 2:
                while size > 0:
                    size -= reader.readinto(memoryview(into)[:size])
            if chunked:
                reader.readline()
            made.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")


def _give(made: socket.socket, size: int) -> None:
    made.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
    while size > 0:
        size -= made.send(memoryview(PIECE)[:size])


if __name__ == "__main__":
    main()
