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

import os
from urllib.parse import quote

from meshlib.core.authz.path import beneath, given
from meshlib.core.request import Header, RequestHead
from meshlib_wsgi.peers import Environ

_RAW = ("RAW_URI", "REQUEST_URI")
"""What was sent after the method, by gunicorn and by uWSGI, mod_wsgi and werkzeug."""
_BARE = {"CONTENT_TYPE": b"content-type", "CONTENT_LENGTH": b"content-length"}
_KEYS = {name: key for key, name in _BARE.items()}
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
    if admitted.headers != came.headers or admitted.authority != came.authority:
        write_headers(environ, admitted)
    if admitted.path == came.path and "%" not in came.path:
        return True
    return _write_path(environ, admitted.path, came.path)


def key_of(name: bytes) -> str:
    """Under which name a header is in an environ."""
    lower = name.lower()
    return _KEYS.get(lower) or "HTTP_" + lower.decode("latin-1").upper().replace("-", "_")


def write_headers(environ: Environ, head: RequestHead) -> None:
    """Puts the headers into the environ in place of those that are there."""
    for key in [key for key in environ if key.startswith("HTTP_")]:
        del environ[key]
    if head.authority:
        environ["HTTP_HOST"] = head.authority
    for name, value in head.index.items():
        if b"_" in name:
            continue
        environ[key_of(name)] = value.decode("latin-1")
    cookies = [value for name, value in head.headers if name.lower() == b"cookie"]
    if len(cookies) > 1:
        environ["HTTP_COOKIE"] = b"; ".join(cookies).decode("latin-1")


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


def _name(key: str) -> bytes:
    return key[5:].replace("_", "-").lower().encode("latin-1")
