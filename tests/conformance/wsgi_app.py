"""The application of the conformance table as WSGI, as far as WSGI can: for gunicorn."""

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

Start = Callable[[str, list[tuple[str, str]]], object]


def piece(size: int) -> bytes:
    """So many bytes."""
    return (b"0123456789abcdef" * (size // 16 + 1))[:size]


def application(environ: dict[str, Any], start: Start) -> Iterable[bytes]:
    """What `app.js` does."""
    word, *more = environ["PATH_INFO"].split("/")[1:]
    answer: Callable[..., Iterable[bytes]] = globals()[f"_{word}"]
    return answer(environ, start, *more)


def _whole(start: Start, body: bytes, status: str = "200 OK", *headers: tuple[str, str]) -> list[bytes]:
    start(status, [("Content-Length", str(len(body))), *headers])
    return [body]


def _drained(environ: dict[str, Any]) -> tuple[int, str]:
    length, digest = 0, hashlib.sha256()
    while data := environ["wsgi.input"].read(65536):
        length += len(data)
        digest.update(data)
    return length, digest.hexdigest()


def _echo(environ: dict[str, Any], start: Start) -> Iterable[bytes]:
    length, digest = _drained(environ)
    sent = environ.get("HTTP_X_SENT")
    told = {"method": environ["REQUEST_METHOD"], "length": length, "sha256": digest, "sent": sent}
    return _whole(start, json.dumps(told).encode(), "200 OK", ("Content-Type", "application/json"))


def _bytes(_: dict[str, Any], start: Start, size: str) -> Iterable[bytes]:
    return _whole(start, piece(int(size)))


def _stream(_: dict[str, Any], start: Start, count: str) -> Iterator[bytes]:
    start("200 OK", [])
    for _number in range(int(count)):
        yield piece(1000)


def _trailers(_: dict[str, Any], start: Start) -> Iterator[bytes]:
    start("200 OK", [])
    yield piece(100)
    yield piece(100)


def _status(_: dict[str, Any], start: Start, status: str) -> Iterable[bytes]:
    if status in ("204", "304"):
        start(f"{status} As Asked", [("ETag", '"a"')])
        return []
    return _whole(start, b"as asked", f"{status} As Asked")


def _hints(_: dict[str, Any], start: Start) -> Iterable[bytes]:
    return _whole(start, b"hinted")


def _close(_: dict[str, Any], start: Start) -> Iterable[bytes]:
    return _whole(start, b"bye", "200 OK", ("Connection", "close"))


def _cookies(_: dict[str, Any], start: Start) -> Iterable[bytes]:
    many = [(f"X-Many-{at}", "v" * 20) for at in range(50)]
    return _whole(start, b"ok", "200 OK", ("Set-Cookie", "a=1"), ("Set-Cookie", "b=2"), *many)


def _abort(_: dict[str, Any], start: Start) -> Iterator[bytes]:
    start("200 OK", [("Content-Length", "1000")])
    yield piece(100)
    raise RuntimeError("as asked")


def _tear(_: dict[str, Any], start: Start) -> Iterator[bytes]:
    start("200 OK", [])
    yield piece(100)
    raise RuntimeError("as asked")


def _refuse(_: dict[str, Any], start: Start) -> Iterable[bytes]:
    return _whole(start, b"too large", "413 Too Large", ("Connection", "close"))


def _linger(environ: dict[str, Any], start: Start) -> Iterable[bytes]:
    time.sleep(0.02)
    return _whole(start, str(_drained(environ)[0]).encode())
