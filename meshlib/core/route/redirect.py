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
        named = redirect.path if redirect.path.startswith("/") else "/" + redirect.path
        if "?" in named or redirect.strip_query:
            return named
        _, question, query = head.path.partition("?")
        return named + question + query
    path = redirect.rewrite(head) if redirect.rewrite is not None else head.path
    return path.partition("?")[0] if redirect.strip_query else path


def _own_host(head: RequestHead, scheme: str, port_is_named: bool) -> str:
    host = head.authority
    cut = host.rfind("]:") + 1 or -1 if host.startswith("[") else host.rfind(":")
    if cut == -1:
        return host
    default_of_old_scheme = scheme != head.scheme and host[cut:] == _DEFAULT_PORTS.get(head.scheme)
    return host[:cut] if port_is_named or default_of_old_scheme else host
