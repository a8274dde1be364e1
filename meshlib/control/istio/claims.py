"""Claims of tokens that a match of headers names, for gateways.

`@request.auth.claims.a.b` and `@request.auth.claims[a][b]` are the claim `b` inside of `a`. What stands
before the claims is read in any case, the claims themselves as they are written (Istio).
"""

from collections.abc import Iterator

from meshlib.control.istio.virtualservice import HTTPMatchRequest

CLAIMS = "@request.auth.claims"
FORM = "@request.auth.claims.name or @request.auth.claims[name]"


def names_claims(header: str) -> bool:
    """Whether it is meant as one, well-formed or not."""
    return header.lower().startswith(CLAIMS)


def claim_path(header: str) -> tuple[str, ...] | None:
    """The names that lead to the claim, from outside in; None: it names none."""
    if not names_claims(header):
        return None
    rest = header[len(CLAIMS) :]
    if rest.startswith("."):
        path = tuple(rest[1:].split("."))
    elif rest.startswith("[") and rest.endswith("]"):
        path = tuple(rest[1:-1].split("]["))
    else:
        return None
    return path if all(path) else None


def claims_of(match: HTTPMatchRequest) -> Iterator[tuple[str, str]]:
    """The field and the name of each claim that a match looks at."""
    for field, given in (("headers", match.headers), ("without_headers", match.without_headers)):
        yield from ((field, name) for name in given if names_claims(name))
