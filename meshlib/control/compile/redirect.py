"""HTTPRedirect as Envoy's RedirectAction.

Rules (Istio): the status is 301 unless given. Of the scheme's own port nothing is said; the port may
be derived from the scheme, or be that of the listener.
"""

from typing import Any

from meshlib.control.compile.context import Context
from meshlib.control.istio.virtualservice import HTTPRedirect, RedirectPortSelection

_CODES = {
    301: "MOVED_PERMANENTLY",
    302: "FOUND",
    303: "SEE_OTHER",
    307: "TEMPORARY_REDIRECT",
    308: "PERMANENT_REDIRECT",
}
_OWN_PORTS = {"http": 80, "https": 443}


def redirect(action: Any, said: HTTPRedirect, context: Context) -> None:
    """Fills an envoy.config.route.v3.RedirectAction."""
    action.response_code = _CODES.get(said.redirect_code or 301, _CODES[301])
    action.host_redirect = said.authority
    if said.prefix_rewrite:
        action.prefix_rewrite = said.prefix_rewrite
    elif said.uri:
        action.path_redirect = said.uri
    if said.scheme:
        action.scheme_redirect = said.scheme
    port = _port(said, context)
    if port and _OWN_PORTS.get(said.scheme) != port:
        action.port_redirect = port


def _port(said: HTTPRedirect, context: Context) -> int:
    if said.derive_port is RedirectPortSelection.FROM_REQUEST_PORT:
        return context.port
    if said.derive_port is RedirectPortSelection.FROM_PROTOCOL_DEFAULT:
        return _OWN_PORTS["https" if said.scheme == "https" else "http"]
    return said.port or 0
