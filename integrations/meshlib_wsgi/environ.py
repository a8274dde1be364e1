"""Between a WSGI environ and the head of a request.

Rules:

- The path that is judged is the one that was sent, as far as the server keeps it; else the decoded one is
  encoded again.
- The application is given the path that was judged: one that was made normal replaces the one that was sent,
  an escaped slash stays escaped, and what the mesh took from the query is gone from each of its places.
- A path that leads out of the application's own part of the server (`/app/../admin`) is none of its paths.
- Where the application begins is the server's word, never the caller's: gunicorn believes a header
  SCRIPT_NAME of callers on the same host, by which `/public/admin` becomes the application's `/admin`.
- Headers are joined by the server, a name once, cookies with semicolons; the mesh's changes are written back
  the same way. A name with an underscore, which can't be told there from one with a dash, is never written.
"""

import functools
import os
from urllib.parse import quote

from meshlib.core.authz.path import beneath, given
from meshlib.core.request import Header, RequestHead
from meshlib_wsgi.peers import Environ

_RAW = ("RAW_URI", "REQUEST_URI")
"""What was sent after the method, by gunicorn and by uWSGI, mod_wsgi and werkzeug."""
_BARE = {"CONTENT_TYPE": b"content-type", "CONTENT_LENGTH": b"content-length"}
_KEYS = {name: key for key, name in _BARE.items()}
_MOST_NAMES = 256
"""Headers whose names are kept in both spellings."""
SAFE = "/%:@!$&'()*+,;=~-._"


def head_of(environ: Environ) -> RequestHead:
    """The request as it came."""
    headers: list[Header] = []
    for key, value in environ.items():
        if key.startswith("HTTP_"):
            if key != "HTTP_HOST":
                headers.append((_name(key), value.encode("latin-1")))
        elif key in _BARE and value:
            headers.append((_BARE[key], str(value).encode("latin-1")))
    authority = str(environ.get("HTTP_HOST", ""))
    scheme = str(environ.get("wsgi.url_scheme", "http"))
    return RequestHead(str(environ["REQUEST_METHOD"]), scheme, authority, _target(environ), headers)


def mistrust(environ: Environ) -> bool:
    """Takes back what a caller's header SCRIPT_NAME has made of the path; whether there was one."""
    said = environ.pop("HTTP_SCRIPT_NAME", None)
    if said is None:
        return False
    own = os.environ.get("SCRIPT_NAME", "")
    whole = f"{environ.get('SCRIPT_NAME', '')}{environ.get('PATH_INFO', '')}"
    environ["SCRIPT_NAME"], environ["PATH_INFO"] = own, whole.removeprefix(own)
    return True


def write(environ: Environ, admitted: RequestHead, came: RequestHead) -> bool:
    """Puts into the environ what the mesh has changed of a request; False: the path left the application."""
    if admitted is not came:
        write_headers(environ, admitted, came)
    if admitted.path == came.path and "%" not in came.path:
        return True
    return _write_path(environ, admitted.path, came.path)


@functools.lru_cache(maxsize=_MOST_NAMES)
def key_of(name: bytes) -> str:
    """Under which name a header is in an environ."""
    return _KEYS.get(name.lower()) or f"HTTP_{_upper(name)}"


def write_headers(environ: Environ, head: RequestHead, came: RequestHead) -> None:
    """Puts into the environ what the headers are, where that is not what `came` and is there."""
    new, old = head.index, came.index
    if b"_" in b" ".join(old):  # made of an ASGI scope: what is there may be either's
        old = {}
        for key in [key for key in environ if key.startswith("HTTP_")]:
            del environ[key]
    for name in old.keys() - new.keys():
        environ.pop(f"HTTP_{_upper(name)}", None)
    for name, value in new.items():
        if old.get(name) != value and b"_" not in name:
            environ[key_of(name)] = value.decode("latin-1")
    if not head.authority:
        environ.pop("HTTP_HOST", None)
    elif environ.get("HTTP_HOST") != head.authority:
        environ["HTTP_HOST"] = head.authority
    if len(head.headers) > len(new):
        cookies = [value for name, value in head.headers if name.lower() == b"cookie"]
        if len(cookies) > 1:
            environ["HTTP_COOKIE"] = b"; ".join(cookies).decode("latin-1")


def _upper(name: bytes) -> str:
    return name.decode("latin-1").upper().replace("-", "_")


def _write_path(environ: Environ, target: str, came: str) -> bool:
    for key in _RAW:
        if key in environ:
            environ[key] = target
    path, _, query = target.partition("?")
    if query != came.partition("?")[2]:
        environ["QUERY_STRING"] = query
    decoded = given(path).decode("latin-1")
    script = str(environ.get("SCRIPT_NAME", "")).rstrip("/")
    if beneath(decoded, script):
        environ["PATH_INFO"] = decoded[len(script) :]
        return True
    environ["PATH_INFO"] = decoded
    return not beneath(given(came.partition("?")[0]).decode("latin-1"), script)


def _target(environ: Environ) -> str:
    for key in _RAW:
        if environ.get(key):
            return str(environ[key])
    path = f"{environ.get('SCRIPT_NAME', '')}{environ.get('PATH_INFO', '')}" or "/"
    query = environ.get("QUERY_STRING")
    quoted = quote(path.encode("latin-1"), safe=SAFE.replace("%", ""))
    return f"{quoted}?{query}" if query else quoted


@functools.lru_cache(maxsize=_MOST_NAMES)
def _name(key: str) -> bytes:
    return key[5:].replace("_", "-").lower().encode("latin-1")
