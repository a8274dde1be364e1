"""Edits of headers, as Istio's webhook checks them.

Rules:
- Names that begin with `:` belong to HTTP itself and are not edited, nor is `host`.
- But a request's authority may be set, by either of its names, once in a rule.
"""

from meshlib.control.istio.validity import hosts
from meshlib.control.istio.validity.report import Report
from meshlib.control.istio.virtualservice import HeaderOperations, Headers, HTTPRoute

_AUTHORITY = (":authority", "host")


def edits(given: Headers | None, to: Report) -> None:
    """Edits of requests and of responses."""
    for side in ("request", "response"):
        operations: HeaderOperations | None = getattr(given, side, None)
        if operations is None:
            continue
        for verb in ("set", "add"):
            for name, value in getattr(operations, verb).items():
                _name(name, side == "request", to.at(side, verb, name))
                hosts.template(value, to.at(side, verb, name))
        for index, name in enumerate(operations.remove):
            _name(name, False, to.at(side, "remove", index))


def _name(name: str, authority: bool, to: Report) -> None:
    lower = name.lower()
    if lower == "host" or name.startswith(":"):
        if not authority or lower not in _AUTHORITY:
            allowed = "other headers" + (", host or :authority" if authority else "")
            to.error("not a header that can be edited", repr(name), allowed)
    else:
        hosts.header_name(name, to)


def authority(rule: HTTPRoute, to: Report) -> None:
    """A rule says once at most what the request's authority becomes."""
    said = rule.rewrite.authority if rule.rewrite else ""
    request = rule.headers.request if rule.headers else None
    for verb in ("set", "add"):
        for name, value in (getattr(request, verb) if request else {}).items():
            if name.lower() not in _AUTHORITY:
                continue
            if said:
                at = to.at("headers", "request", verb, name)
                at.error(
                    f"the authority is {said} already", repr(value), "one of rewrite.authority and edits"
                )
            said = said or value
