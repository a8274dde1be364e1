"""One unary call against servers that are not there, silent, not trusted or no gRPC servers."""

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.ports import free_port
from support.small_ca import SmallCa

from meshlib.dataplane.grpc_call import CallEnded
from meshlib.dataplane.grpc_unary import Untrusted, call_once
from meshlib.dataplane.tls import control_context


@contextlib.contextmanager
def server(act: Callable[[socket.socket], None]) -> Iterator[str]:
    """A server that does one thing with its first connection."""
    listening = socket.create_server(("127.0.0.1", 0))

    def run() -> None:
        with contextlib.suppress(OSError):
            made, _ = listening.accept()
            with made, contextlib.suppress(OSError):
                act(made)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield f"127.0.0.1:{listening.getsockname()[1]}"
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        thread.join(5)


def ended(address: str, context: ssl.SSLContext | None = None, timeout: float = 5.0) -> tuple[str, str]:
    """Code and words of the end."""
    with pytest.raises(CallEnded) as error:
        call_once(address, "/a.B/C", b"", context=context, server_name="control", timeout=timeout)
    return error.value.code, error.value.details


def test_nobody_is_there() -> None:
    assert ended(f"127.0.0.1:{free_port()}") == ("UNAVAILABLE", "Connection refused")


def test_a_name_that_leads_nowhere() -> None:
    assert ended("nowhere.invalid:1")[0] == "UNAVAILABLE"


def test_silence_ends_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        assert ended(address, timeout=0.05) == ("DEADLINE_EXCEEDED", "no answer within 0.05 s")
        context = control_context(None, SmallCa().pem)
        assert ended(address, context, timeout=0.05) == ("DEADLINE_EXCEEDED", "no answer within 0.05 s")


def test_a_lost_connection() -> None:
    with server(lambda made: None) as address:
        assert ended(address)[0] == "UNAVAILABLE"


def test_a_server_of_something_else() -> None:
    def answer(made: socket.socket) -> None:
        made.recv(1000)
        made.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        made.recv(1000)

    with server(answer) as address:
        assert ended(address)[0] in ("INTERNAL", "UNAVAILABLE")


def test_plain_text_where_tls_is_needed() -> None:
    with server(lambda made: made.sendall(b"no TLS at all")) as address:
        assert ended(address, control_context(None, SmallCa().pem))[0] == "UNAVAILABLE"


@pytest.mark.parametrize("fault", ["other root", "other name"])
def test_a_server_that_is_not_trusted_is_told_nothing(tmp_path: Path, fault: str) -> None:
    ca = SmallCa()
    issued = ca.issue(dns=["other" if fault == "other name" else "control"])
    (tmp_path / "pem").write_bytes(issued.key_pem + issued.pem.encode())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "pem")
    heard: list[bytes] = []

    def answer(made: socket.socket) -> None:
        with context.wrap_socket(made, server_side=True) as secured:
            heard.append(secured.recv(1000))

    trusting = control_context(None, SmallCa().pem if fault == "other root" else ca.pem)
    with server(answer) as address, pytest.raises(Untrusted, match="its certificate is not trusted"):
        call_once(address, "/a.B/C", b"", context=trusting, server_name="control")
    assert b"".join(heard) == b""
