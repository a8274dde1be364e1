"""A scripted HTTP/1.1 server on loopback, one thread a connection: what tests of a client need.

The path says what it does; see `_Exchange`. It counts connections and keeps what it was sent.
"""

import contextlib
import json
import socket
import ssl
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from support.threaded import Threaded


class RawServer(Threaded):
    """Its port, what it saw, and how many connections came."""

    def __init__(self, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> None:
        super().__init__(host)
        self.tls = tls
        self.callers: list[str] = []
        """The URI name that each connection's certificate shows, with TLS."""
        self.heads: list[bytes] = []
        self.bodies: list[bytes] = []
        self.tries: Counter[str] = Counter()
        """How often each scripted request came, by its id."""

    def serve(self, accepted: socket.socket, number: int) -> None:
        """Requests, as long as both want more."""
        if self.tls is not None:
            secured = accepted
            try:
                secured = self.tls.wrap_socket(accepted, server_side=True)
                shown: Any = secured.getpeercert() or {}
            except OSError:  # the peer may be gone in the middle of it
                secured.close()
                accepted.close()
                return
            accepted = secured
            self.callers += [name for kind, name in shown.get("subjectAltName", ()) if kind == "URI"]
            self.open.add(secured)
        with contextlib.suppress(OSError), accepted, accepted.makefile("rwb") as stream:
            while _Exchange(self, accepted, stream).run():
                pass
        self.open.discard(accepted)


class _Exchange:
    """One request: its path's first word names a method."""

    def __init__(self, server: RawServer, accepted: socket.socket, stream: Any) -> None:
        self.server = server
        self.accepted = accepted
        self.stream = stream

    def run(self) -> bool:
        """Whether the connection goes on."""
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            line = self.stream.readline()
            if not line:
                return False
            head += line
        self.server.heads.append(head)
        first, *lines = head.decode("latin-1").split("\r\n")
        self.method, target, _ = first.split(" ")
        self.headers = [tuple(line.split(": ", 1)) for line in lines if line]
        self.words = target.partition("?")[0].strip("/").split("/")
        act: Callable[[], bool] = getattr(self, f"do_{self.words[0]}", self.do_echo)
        return act()

    def header(self, name: str) -> str:
        return next((value for key, value in self.headers if key.lower() == name), "")

    def line(self) -> bytes:
        line = self.stream.readline()
        if not line:
            raise ConnectionError
        return line

    def body(self) -> bytes:
        if self.header("transfer-encoding") != "chunked":
            whole = self.stream.read(int(self.header("content-length") or 0))
        else:
            whole = b""
            while size := int(self.line(), 16):
                whole += self.stream.read(size)
                self.stream.readline()
            self.stream.readline()
        self.server.bodies.append(whole)
        return whole

    def say(self, text: bytes) -> None:
        self.stream.write(text)
        self.stream.flush()

    def answer(self, body: bytes, status: str = "200 OK", *lines: str) -> bool:
        head = [f"HTTP/1.1 {status}", *lines, f"Content-Length: {len(body)}", "", ""]
        self.say("\r\n".join(head).encode("latin-1") + (b"" if self.method == "HEAD" else body))
        return self.header("connection").lower() != "close"

    def do_echo(self) -> bool:
        body = self.body()
        hidden = ("x-request-id", "x-forwarded-proto", "x-envoy-expected-rq-timeout-ms")
        headers = [h for h in self.headers if h[0].lower() not in hidden]
        headers.sort(key=lambda h: h[0].lower() != "host")
        told = {"method": self.method, "headers": headers, "size": len(body), "body": body[:200].hex()}
        return self.answer(json.dumps(told).encode(), "200 OK", "Content-Type: application/json", "X-A: 1")

    def do_status(self) -> bool:
        self.body()
        status = self.words[1]
        if status in ("204", "304"):
            self.say(f"HTTP/1.1 {status} Nothing\r\nX-B: 2\r\n\r\n".encode())
            return True
        return self.answer(b"as asked", f"{status} As Asked")

    def do_script(self) -> bool:
        """`/script/503,200/id`: the statuses of the first try, the second, …; the last for all further."""
        self.body()
        script, identity = self.words[1].split(","), self.words[2]
        self.server.tries[identity] += 1
        status = script[min(self.server.tries[identity], len(script)) - 1]
        if status == "reset":
            return self.do_reset()
        return self.answer(b"as scripted", f"{status} As Scripted")

    def do_redirect(self) -> bool:
        self.body()
        return self.answer(b"elsewhere", f"{self.words[1]} Elsewhere", "Location: /echo")

    def do_cookie(self) -> bool:
        return self.answer(b"", "200 OK", "Set-Cookie: a=1; Path=/", "Set-Cookie: b=2; Path=/")

    def do_basic(self) -> bool:
        if not self.header("authorization"):
            return self.answer(b"who?", "401 Unauthorized", 'WWW-Authenticate: Basic realm="x"')
        return self.do_echo()

    def do_digest(self) -> bool:
        if not self.header("authorization"):
            asked = 'WWW-Authenticate: Digest realm="x", nonce="n", qop="auth", algorithm=MD5'
            return self.answer(b"who?", "401 Unauthorized", asked)
        self.body()
        return self.answer(b"welcome")

    def do_big(self) -> bool:
        return self.answer(b"0123456789abcdef" * (int(self.words[1]) // 16))

    def do_chunks(self) -> bool:
        self.say(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for number in range(int(self.words[1])):
            chunk = b"chunk %d;" % number
            self.say(b"%x\r\n%s\r\n" % (len(chunk), chunk))
        self.say(b"0\r\nX-Trailer: t\r\n\r\n")
        return True

    def do_untilclose(self) -> bool:
        self.say(b"HTTP/1.1 200 OK\r\n\r\nto the end")
        return False

    def do_http10(self) -> bool:
        self.say(b"HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\nold")
        return False

    def do_informed(self) -> bool:
        self.say(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n")
        return self.do_echo()

    def do_upgrade(self) -> bool:
        """Says something at once, then gives back what it is sent, until `bye`."""
        if self.header("connection").lower() != "upgrade":
            return self.answer(b"and upgrade?", "426 Upgrade Required")
        told = f"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: {self.header('upgrade')}"
        self.say(told.encode() + b"\r\n\r\nhello")
        while (data := self.stream.read1(65536)) and data != b"bye":
            self.say(data)
        return False

    def do_close(self) -> bool:
        self.body()
        self.answer(b"bye", "200 OK", "Connection: close")
        return False

    def do_closequietly(self) -> bool:
        self.body()
        self.answer(b"bye")
        return False

    def do_surplus(self) -> bool:
        self.say(
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"
        )
        return True

    def do_hangup(self) -> bool:
        return False

    def do_reset(self) -> bool:
        self.accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return False

    def do_halfhead(self) -> bool:
        self.say(b"HTTP/1.1 200 OK\r\nContent-Le")
        return False

    def do_halfbody(self) -> bool:
        self.say(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
        return False

    def do_badchunk(self) -> bool:
        self.say(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\ngood\r\nxyz\r\n")
        self.server.closing.wait(5)
        return False

    def do_nonsense(self) -> bool:
        self.say(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")
        self.server.closing.wait(5)
        return False

    def do_largehead(self) -> bool:
        with contextlib.suppress(OSError):
            self.say(b"HTTP/1.1 200 OK\r\nX-Large: " + b"x" * 300_000 + b"\r\nContent-Length: 0\r\n\r\n")
        return False

    def do_slow(self) -> bool:
        self.server.closing.wait(float(self.words[1]))
        return self.do_echo()

    def do_slowbody(self) -> bool:
        self.say(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
        self.server.closing.wait(float(self.words[1]))
        self.say(b"whole!")
        return True

    def do_drip(self) -> bool:
        self.say(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        for _ in range(1000):
            time.sleep(0.01)
            self.say(b".")
        return True

    def do_refuse(self) -> bool:
        self.answer(b"too large", "413 Too Large", "Connection: close")
        self.accepted.shutdown(socket.SHUT_RDWR)
        return False

    def do_early(self) -> bool:
        """`/early/413`: answers before it reads the body, and then reads nothing."""
        self.answer(b"no more", f"{self.words[1]} Early")
        self.server.closing.wait(10)
        return False

    def do_duplex(self) -> bool:
        """Begins a good answer before it reads the body, and tells its size at the end."""
        self.say(
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n0-\r\n"
        )
        time.sleep(0.05)
        size = str(len(self.body())).encode()
        self.say(b"%x\r\n%s\r\n0\r\n\r\n" % (len(size), size))
        return True

    def do_deaf(self) -> bool:
        self.server.closing.wait(10)
        return False


@contextlib.contextmanager
def raw_server(tls: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> Iterator[RawServer]:
    """Serves while the block runs."""
    server = RawServer(tls, host)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.stop()
        thread.join(5)
