"""HTTPRewrite on Envoy's RouteAction: path and authority.

Rules (Istio): `uri` replaces what matched, the whole path for an exact match; the authority of the
rewrite beats one that a header sets.
"""

from typing import Any

from meshlib.control.istio.virtualservice import HTTPRewrite


def rewrite(action: Any, said: HTTPRewrite | None) -> None:
    """Puts the rewrite on an envoy.config.route.v3.RouteAction."""
    if said is None:
        return
    if said.uri_regex_rewrite is not None and said.uri_regex_rewrite.match:
        action.regex_rewrite.pattern.regex = said.uri_regex_rewrite.match
        action.regex_rewrite.substitution = said.uri_regex_rewrite.rewrite
    elif said.uri:
        action.prefix_rewrite = said.uri
    if said.authority:
        action.host_rewrite_literal = said.authority
