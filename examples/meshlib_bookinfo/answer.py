"""What another service said, or why it said nothing: a request through the mesh, for a page to show."""

from dataclasses import dataclass, field
from typing import Any

import httpx

import meshlib


@dataclass(frozen=True)
class Answer:
    """A service's JSON, or the reason why there is none; and which rule sent the request where."""

    status: int
    body: dict[str, Any] = field(default_factory=dict)
    reason: str = ""
    rule: str = ""
    """The document and its `file:line`."""
    endpoint: str = ""
    """`address:port` that was asked."""

    @property
    def version(self) -> str:
        """Which version of the service answered; empty if none did."""
        return str(self.body.get("version", ""))


async def ask(client: meshlib.AsyncClient, url: str, headers: dict[str, str]) -> Answer:
    """A GET through the mesh. Never raises for what the network or the other side does."""
    try:
        response = await client.get(url, headers=headers)
        facts = response.extensions.get("meshlib")
        rule = f"{facts.document}, {facts.source}" if facts and facts.document else ""
        endpoint = facts.endpoint if facts else ""
        if response.is_success:
            return Answer(200, dict(response.json()), rule=rule, endpoint=endpoint)
        reason = (facts.detail if facts else "") or f"{response.status_code} {response.reason_phrase}"
        return Answer(response.status_code, reason=reason, rule=rule, endpoint=endpoint)
    except httpx.TimeoutException as error:
        return Answer(504, reason=str(error) or "no answer in time")
    except (httpx.HTTPError, ValueError) as error:
        return Answer(502, reason=str(error) or type(error).__name__)
