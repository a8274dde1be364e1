"""Which claims a token must have for a rule at a gateway, as conditions on what jwt_authn knows of it.

Rules (Istio):

- The claim is a text, or a list with such a text in it. `scope`, `permission` and the rule's
  `spaceDelimitedClaims` are lists.
- `withoutHeaders` is the contrary, and holds without a token, too.
- `{}` and the regex `*`: the claim is there, whatever it is.
"""

from collections.abc import Iterator
from typing import Any

from meshlib.control.compile import matchers
from meshlib.control.compile.match import is_present, string_match
from meshlib.control.compile.principals import JWT, PAYLOAD
from meshlib.control.istio.claims import claim_path
from meshlib.control.istio.fields import StringMatch
from meshlib.control.istio.virtualservice import HTTPMatchRequest
from meshlib.xds import pb


def claims(match: HTTPMatchRequest | None) -> Iterator[Any]:
    """An envoy.type.matcher.v3.MetadataMatcher for each claim that a match names."""
    if match is None:
        return
    for given, without in ((match.headers, False), (match.without_headers, True)):
        for name, wanted in sorted(given.items()):
            path = claim_path(name)
            if path is not None:
                made = matchers.metadata(JWT, (PAYLOAD, *path), _value(wanted))
                made.invert = without
                yield made


def _value(wanted: StringMatch) -> Any:
    if is_present(wanted):
        return pb.message("envoy.type.matcher.v3.ValueMatcher")(present_match=True)
    return matchers.alone_or_in(matchers.value_of(string_match(wanted)))
