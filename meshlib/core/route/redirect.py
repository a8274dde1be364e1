"""Where a redirect leads: its Location.

Rules (Envoy, Http::Utility::newUri): scheme, host, port and path are taken from the redirect where
it names them and from the request elsewhere. The port in the request's Host goes if the redirect
names a port, or if the scheme changes and the port was the old scheme's default.
"""

from meshlib.core.request import RequestHead
from meshlib.core.route.rule import Redirect

_DEFAULT_PORTS = {"http": ":80", "https": ":443"}


def location(redirect: Redirect, head: RequestHead) -> str:
    """The absolute URL that the Location header names."""
    scheme = redirect.scheme or ("https" if redirect.https else head.scheme)
    port = f":{redirect.port}" if redirect.port else ""
    host = redirect.host or _own_host(head, scheme, bool(port))
    return f"{scheme}://{host}{port}{_path(redirect, head)}"


def _path(redirect: Redirect, head: RequestHead) -> str:
    if redirect.path:
        path = redirect.path
        if "?" not in path and not redirect.strip_query:
            path += "".join(head.path.partition("?")[1:])
    else:
        path = (redirect.rewrite(head) if redirect.rewrite is not None else "") or head.path
        if redirect.strip_query:
            path = path.partition("?")[0]
    return path if path.startswith("/") else "/" + path


def _own_host(head: RequestHead, scheme: str, port_is_named: bool) -> str:
    host = head.authority
    cut = host.rfind("]:") + 1 or -1 if host.startswith("[") else host.rfind(":")
    if cut == -1:
        return host
    default_of_old_scheme = scheme != head.scheme and host[cut:] == _DEFAULT_PORTS.get(head.scheme)
    return host[:cut] if port_is_named or default_of_old_scheme else host
