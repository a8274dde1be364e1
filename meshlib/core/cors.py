"""Which pages of other origins a browser may let read a response, and what it is told when it asks before.

Rules (Envoy, CorsFilter; browsers ask by CORS, which is a part of https://fetch.spec.whatwg.org):

- The policy is that of the rule that takes the request. Without an `Origin` nothing is done.
- A preflight (OPTIONS with Access-Control-Request-Method) is answered here if its origin is allowed. If not,
  the application gets it, or it is answered without a permission, as the policy says.
- Any other request goes on; if its origin is allowed, its response says so, in place of what it says itself.
- The origin `*` allows all. The origin that asked is what is allowed, never `*`.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from meshlib.core.actions import Facts, Reply
from meshlib.core.authz.opinion import Told, answered
from meshlib.core.headers import Append
from meshlib.core.request import Header, RequestHead
from meshlib.core.route.text import TextMatch
from meshlib.values import dataclass

if TYPE_CHECKING:
    from meshlib.core.route.table import RouteTable

DETAIL = "cors_response"
ALLOW_ORIGIN = b"access-control-allow-origin"
ALLOW_CREDENTIALS = b"access-control-allow-credentials"
EXPOSE = b"access-control-expose-headers"
_ORIGIN = b"origin"
_METHOD = b"access-control-request-method"
_PRIVATE = b"access-control-request-private-network"
_TRUE = b"true"
_ANY = b"*"


class _NoChance:
    """For rules that take a share of the requests: who serves here has none."""

    def random(self) -> float:
        return 0.0


NO_CHANCE = _NoChance()


class Cors:
    """The filter: policies are found in the routes."""

    def __repr__(self) -> str:
        return "Cors()"


@dataclass(frozen=True, slots=True)
class CorsPolicy:
    """What a rule allows, from Envoy's CorsPolicy. Empty texts are not told."""

    origins: tuple[TextMatch, ...] = ()
    methods: bytes = b""
    headers: bytes = b""
    expose: bytes = b""
    max_age: bytes = b""
    credentials: bool = False
    private_network: bool = False
    forwards: bool = True
    """Whether the application gets preflights of an origin that is not allowed."""

    def allows(self, origin: bytes) -> bool:
        """Whether pages of that origin are allowed."""
        return any(each.meets(_ANY) or each.meets(origin) for each in self.origins)


def cross(routes: "RouteTable | None", head: RequestHead, version: str = "") -> Reply | tuple[Told, ...]:
    """The answer to a preflight, or what is to be said in the response to `head`: often nothing."""
    origin = head.index.get(_ORIGIN)
    if not origin or routes is None:
        return ()
    route = routes.match(head, NO_CHANCE)
    policy = None if route is None else route.cors
    if route is None or policy is None:
        return ()
    allowed = policy.allows(origin)
    if head.method != "OPTIONS" or not head.index.get(_METHOD):
        return tuple(_answered(policy, origin)) if allowed else ()
    if not allowed and policy.forwards:
        return ()
    said = [(ALLOW_ORIGIN, origin)] if allowed else []
    said += _preflight(policy, head)
    if allowed and policy.expose:
        said.append((EXPOSE, policy.expose))
    facts = Facts(route.name, route.origin.document, route.origin.source, detail=DETAIL)
    return Reply(200, facts._replace(config_version=version), tuple(said))


def opened(reply: Reply, told: tuple[Told, ...]) -> Reply:
    """A reply of the mesh's own to a request whose response is to say that."""
    return replace(reply, headers=tuple(answered(reply.headers, told))) if told else reply


def _answered(policy: CorsPolicy, origin: bytes) -> Iterator[Told]:
    yield Told(ALLOW_ORIGIN, origin, Append.OVERWRITE_OR_ADD)
    if policy.credentials:
        yield Told(ALLOW_CREDENTIALS, _TRUE, Append.OVERWRITE_OR_ADD)
    if policy.expose:
        yield Told(EXPOSE, policy.expose, Append.OVERWRITE_OR_ADD)


def _preflight(policy: CorsPolicy, head: RequestHead) -> Iterator[Header]:
    if policy.credentials:
        yield ALLOW_CREDENTIALS, _TRUE
    for name, value in (
        (b"access-control-allow-methods", policy.methods),
        (b"access-control-allow-headers", policy.headers),
        (b"access-control-max-age", policy.max_age),
    ):
        if value:
            yield name, value
    if policy.private_network and head.index.get(_PRIVATE) == _TRUE:
        yield b"access-control-allow-private-network", _TRUE
