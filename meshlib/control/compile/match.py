"""HTTPMatchRequest as Envoy's RouteMatch.

Rules (Istio):

- Blocks are alternatives, the fields of a block all hold. No block matches every request.
- `{}` and the regex `*` mean: present. `withoutHeaders` is the contrary, and a header that is missing
  counts as empty, except for presence.
- A claim of a token is no header (`claims.py`); a block that names one never holds but at a gateway.
- Ports, source labels, source namespace and gateways are settled here, for the client compiled for; with
  gateways given, source labels and namespace are not looked at. The port is, and first.
"""

from typing import Any

from meshlib.control.compile.context import Context
from meshlib.control.istio.claims import claims_of, names_claims
from meshlib.control.istio.fields import StringMatch
from meshlib.control.istio.virtualservice import HTTPMatchRequest, L4MatchAttributes, TLSMatchAttributes
from meshlib.xds import pb

_PSEUDO = ("scheme", "method", "authority")
_IGNORED = frozenset(("uri", "scheme", "method", "authority"))


def refusal(
    context: Context, match: HTTPMatchRequest | None, gateways: tuple[str, ...], namespace: str
) -> str:
    """Why a match block never holds for this client; empty: it may. `gateways` are the document's, of that
    namespace.
    """
    if match is not None and context.gateway is None and any(claims_of(match)):
        return "claims of tokens are known at gateways only"
    if match is not None and match.gateways:
        if not context.bound(match.gateways, namespace):
            return f"it is for the gateways {', '.join(match.gateways)}"
        return _other_port(context, match)
    if not context.bound(gateways, namespace):
        return f"it is for the gateways {', '.join(gateways)}"
    return mismatch(context, match)


def mismatch(
    context: Context, match: HTTPMatchRequest | TLSMatchAttributes | L4MatchAttributes | None
) -> str:
    """Why a match never holds at this port, or of this client; empty: it may."""
    if match is None:
        return ""
    if wrong_port := _other_port(context, match):
        return wrong_port
    labels = context.scope.labels
    wrong = [f"{k}={v}" for k, v in sorted(match.source_labels.items()) if labels.get(k) != v]
    if wrong:
        return f"the client's labels are not {', '.join(wrong)}"
    if match.source_namespace and match.source_namespace != context.scope.namespace:
        return f"it is for clients of namespace {match.source_namespace}"
    return ""


def _other_port(context: Context, match: HTTPMatchRequest | TLSMatchAttributes | L4MatchAttributes) -> str:
    return f"it is for port {match.port}" if match.port and match.port != context.port else ""


def route_match(match: HTTPMatchRequest | None, context: Context) -> Any:
    """An envoy.config.route.v3.RouteMatch."""
    made = pb.RouteMatch()
    if match is None:
        made.prefix = "/"
        return made
    _path(made, match.uri)
    if match.ignore_uri_case and made.WhichOneof("path_specifier") != "safe_regex":
        made.case_sensitive.value = False
    for name, wanted in sorted(match.headers.items()):
        if not _ignored(name):
            made.headers.append(header_match(name, wanted))
    for name, wanted in sorted(match.without_headers.items()):
        if not _ignored(name):
            made.headers.append(header_match(name, wanted, without=True))
    for name in _PSEUDO:
        text = getattr(match, name)
        if text is not None:
            made.headers.append(header_match(f":{name}", text))
    for name, wanted in sorted(match.query_params.items()):
        parameter = made.query_parameters.add(name=name)
        if is_present(wanted):
            parameter.present_match = True
        else:
            parameter.string_match.CopyFrom(string_match(wanted))
    return made


def _ignored(name: str) -> bool:
    return name.lower() in _IGNORED or names_claims(name)


def _path(made: Any, uri: StringMatch | None) -> None:
    if uri is not None and uri.exact is not None:
        made.path = uri.exact
    elif uri is not None and uri.regex is not None:
        made.safe_regex.regex = uri.regex
    elif uri is not None and uri.prefix:
        made.prefix = uri.prefix
    else:
        made.prefix = "/"


def is_present(wanted: StringMatch) -> bool:
    """Whether it is enough to be there."""
    return wanted.exact is None and not wanted.prefix and wanted.regex in (None, "", "*")


def string_match(wanted: StringMatch) -> Any:
    """An envoy.type.matcher.v3.StringMatcher."""
    if wanted.exact is not None:
        return pb.StringMatcher(exact=wanted.exact)
    if wanted.prefix is not None:
        return pb.StringMatcher(prefix=wanted.prefix)
    return pb.StringMatcher(safe_regex={"regex": wanted.regex or ""})


def header_match(name: str, wanted: StringMatch, *, without: bool = False) -> Any:
    """An envoy.config.route.v3.HeaderMatcher; `without`: the condition must not hold."""
    made = pb.HeaderMatcher(name=name)
    if is_present(wanted):
        made.present_match = True
    else:
        made.string_match.CopyFrom(string_match(wanted))
        made.treat_missing_header_as_empty = without
    made.invert_match = without
    return made


def is_catch_all(made: Any) -> bool:
    """Whether a RouteMatch holds for every request, so that what follows is never reached."""
    if made.headers or made.query_parameters or made.dynamic_metadata:
        return False
    which = made.WhichOneof("path_specifier")
    if which == "prefix":
        return str(made.prefix) == "/"
    return which == "safe_regex" and str(made.safe_regex.regex) == ".*"
