"""Envoy's `prefix_rewrite` and `regex_rewrite`, of a route or of a redirect, as a function of the request."""

from typing import Any

from meshlib.core.route.match import PathMatch
from meshlib.core.route.rewrite import Rewrite, prefix_rewrite, regex_rewrite
from meshlib.dataplane.decode.errors import Refused
from meshlib.dataplane.decode.text import decode_regex


def decode_rewrite(message: Any, matched: PathMatch) -> tuple[Rewrite | None, str]:
    """The rewrite of a RouteAction or RedirectAction under a rule that matched `matched`, and it in words."""
    has_regex = message.HasField("regex_rewrite")
    if message.prefix_rewrite:
        if has_regex:
            raise Refused("regex_rewrite", "can't stand beside prefix_rewrite")
        text = str(message.prefix_rewrite)
        return prefix_rewrite(matched, text), f'{matched.kind.value} becomes "{text}"'
    if not has_regex:
        return None, ""
    source = decode_regex(message.regex_rewrite.pattern, "regex_rewrite.pattern")
    substitution = str(message.regex_rewrite.substitution)
    try:
        return regex_rewrite(source, substitution), f'"{source}" becomes "{substitution}"'
    except ValueError as error:
        raise Refused("regex_rewrite.substitution", str(error)) from None
