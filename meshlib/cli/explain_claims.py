"""What the rules of a gateway ask of a token's claims, decided for one request."""

from dataclasses import dataclass, replace
from typing import Any

from meshlib.core.authz.question import Question
from meshlib.core.request import RequestHead
from meshlib.core.route.match import HeaderMatch
from meshlib.core.route.rule import Route
from meshlib.core.route.table import RouteTable
from meshlib.core.route.text import Presence
from meshlib.dataplane.decode.authz import decode_metadata
from meshlib.dataplane.decode.errors import Refused
from meshlib.dataplane.decode.routes import decode_routes
from meshlib.dataplane.decode.text import decode_string
from meshlib.errors import RefusedResource


@dataclass(frozen=True, slots=True)
class ClaimMatch(HeaderMatch):
    """A condition on a claim; whether it is met is known."""

    wanted: str = ""
    met: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "holds", lambda _: self.met)

    def __str__(self) -> str:
        return f"claim {self.name.decode()} {'not ' * self.invert}{self.wanted}"

    def why_not(self, head: RequestHead) -> str:
        """Why it does not hold, in words."""
        has = "is" if self.invert else "is not"
        return f"claim {self.name.decode()} of the token {has} {self.wanted}"


def decode_with_claims(message: Any, question: Question) -> RouteTable:
    """An envoy.config.route.v3.RouteConfiguration, for the request that the filters saw as `question`.

    Refused: as of `decode_routes`. RefusedResource: a condition on claims can't be decided.
    """
    plain = type(message)()
    plain.CopyFrom(message)
    conditions = []
    for host in plain.virtual_hosts:
        conditions.append([_claims(route.match, question) for route in host.routes])
        for route in host.routes:
            route.match.ClearField("dynamic_metadata")
    table = decode_routes(plain)
    hosts = (
        replace(host, routes=tuple(map(_with, host.routes, asked)))
        for host, asked in zip(table.hosts, conditions, strict=True)
    )
    return RouteTable(table.name, hosts, ignore_port=table.ignore_port).of(table.version)


def _with(route: Route, conditions: tuple[ClaimMatch, ...]) -> Route:
    if not conditions:
        return route
    return replace(route, match=replace(route.match, headers=(*route.match.headers, *conditions)))


def _claims(match: Any, question: Question) -> tuple[ClaimMatch, ...]:
    return tuple(_claim(one, question) for one in match.dynamic_metadata)


def _claim(message: Any, question: Question) -> ClaimMatch:
    name = ".".join(segment.key for segment in message.path[1:])
    try:
        met = decode_metadata(message)(question)
        texts = [one for one in message.value.or_match.value_matchers if one.HasField("string_match")]
        wanted = str(decode_string(texts[0].string_match)) if texts else "present"
    except Refused as refused:
        raise RefusedResource(f"a condition on the claim {name}: {refused}") from None
    return ClaimMatch(name.encode(), Presence(), invert=message.invert, wanted=wanted, met=met)
