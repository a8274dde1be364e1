"""The server's end of an ADS stream, sans-IO: what is asked for, what was sent, what was accepted.

`received` takes a request, `publish` gives the responses that bring the client from what it was
sent to a snapshot. Rules:

- Only what is subscribed and differs is sent. One response per type is under way at most; the
  next one waits for the answer and then carries the newest snapshot, whatever was in between.
- Make before break: additions and changes go out in the order of `kinds.SENDING_ORDER`, and a type
  that must wait holds back the types after it. What is gone is removed last, in reverse order, and
  no cluster or endpoint is removed while a listener or route is refused: the client then lives by
  an older one, which may name it.
- A client that takes all clusters asks for their endpoints afterwards; listeners and routes wait
  for that question, else they would name a cluster that is still warming. `publish(hurry=True)`
  ends the wait.
- Who asks for clusters and endpoints by name cancels what it needs no more, once it has all that its
  new routes name. So what is gone of these is not removed under its hands, but with `hurry`.
- A secret that is gone is kept by who still asks for it; who asks no more cancels.
- A changed cluster has its endpoints sent again: Envoy warms a changed cluster as a new one.
- Endpoints and secrets do not wait for an answer about clusters: Envoy gives none before they are warm, and
  for that it needs just these.
- A refused version is never repeated in company: Envoy drops a whole response for one invalid
  resource. So each resource of a refused response is sent once more alone, and what is then
  refused alone waits for its next version; a listener whose port is taken, for `try_unbound`.
- State-of-the-world requests with an old nonce change the names but are neither ACK nor NACK
  ("stale nonces are ignored"); in delta, subscriptions count whatever the nonce.
"""

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from google.protobuf import json_format

from meshlib.errors import ControlError
from meshlib.xds import pb
from meshlib.xds.kinds import BY_TYPE_URL, SENDING_ORDER, Kind
from meshlib.xds.node import Client, from_node
from meshlib.xds.snapshot import Resource, Snapshot

WILDCARD = "*"
MAX_NAMES = 20_000
MAX_NAME_LENGTH = 1024
_CANNOT_BIND = "cannot bind"
"""Envoy's words for a port that it can't have."""
_MAX_ERROR_TEXT = 2000
_UNKNOWN = "unknown"  # a version that no resource has: sent again if there, removed if not


class ProtocolError(ControlError):
    """The client broke the protocol or a limit; the stream ends with that gRPC status code."""

    def __init__(self, message: str, code: str = "INVALID_ARGUMENT") -> None:
        super().__init__(message)
        self.code = code


@dataclass(slots=True)
class Pending:
    """A response that was not answered yet."""

    nonce: str
    version: str
    names: tuple[str, ...]


class Hold(Enum):
    """What a client has to do before it is sent more."""

    QUESTION = "ask for its clusters' endpoints"
    CANCEL = "cancel what is gone"


@dataclass(slots=True)
class Subscription:
    """What one client asked for and was sent, of one kind."""

    kind: Kind
    names: set[str] = field(default_factory=set)
    wildcard: bool = False
    sent: dict[str, Resource | None] = field(default_factory=dict)
    """The last that was sent; None: the client was told that there is none."""
    held: set[str] = field(default_factory=set)
    """Names of what the client has, in whatever version: it accepted them, or came with them."""
    refused: dict[str, str] = field(default_factory=dict)
    """Version of each resource that was in a refused response since its last acceptance."""
    reasons: dict[str, str] = field(default_factory=dict)
    """The text of each of these refusals."""
    alone: deque[str] = field(default_factory=deque)
    """To be sent once more, one by one."""
    pending: Pending | None = None
    nonce: str = ""
    due: bool = False
    """A wildcard subscription wants an answer even if there is nothing to send."""
    acked: str = ""
    nacked: str = ""
    error: str = ""
    """Why what is refused is refused: the text of the last NACK; empty once nothing is."""

    def wants(self, name: str) -> bool:
        return self.wildcard or name in self.names

    def changed(self, there: Mapping[str, Resource], keep: bool) -> list[str]:
        """Names that are there in another version than was sent, sorted; `keep`: that were not sent."""
        names = there.keys() if self.wildcard else self.names & there.keys()
        if keep:
            names = {name for name in names if self.sent.get(name) is None}
        return sorted(
            n for n in names if (sent := self.sent.get(n)) is None or sent.version != there[n].version
        )

    def gone(self, there: Mapping[str, Resource]) -> list[str]:
        """Names that the client holds, or (first time) asked for, and that are not there; sorted."""
        held = {name for name, sent in self.sent.items() if sent is not None and name not in there}
        never = {name for name in self.names if name not in self.sent and name not in there}
        return sorted(held | never)


class ServerStream:
    """One stream of one client. Not thread-safe."""

    def __init__(self, delta: bool, max_names: int = MAX_NAMES) -> None:
        self.client: Client | None = None
        """Who it is; known from the first request on."""
        self.hold: Hold | None = None
        """After `publish`: what something waits for, or for `hurry`; None: nothing waits."""
        self._delta = delta
        self._max_names = max_names
        self._kinds: dict[Kind, Subscription] = {}
        self._count = 0
        self._given_up: set[str] = set()
        self.returning = False
        """Whether it came with resources of an earlier stream."""

    def __repr__(self) -> str:
        waits = ", ".join(k.short for k, s in self._kinds.items() if s.pending) or "nothing"
        return f"ServerStream({'delta' if self._delta else 'sotw'}, {self.client}, waits for {waits})"

    @property
    def holding(self) -> bool:
        """Whether something waits for the client to ask or to cancel."""
        return self.hold is not None

    @property
    def delta(self) -> bool:
        """Whether this is an incremental stream."""
        return self._delta

    @property
    def subscriptions(self) -> Mapping[Kind, Subscription]:
        """What is known by kind; to be read only."""
        return self._kinds

    def names(self, kind: Kind) -> frozenset[str]:
        """The names that are asked for, without the wildcard."""
        found = self._kinds.get(kind)
        return frozenset(found.names) if found else frozenset()

    # What the client says

    def received(self, request: Any) -> bool:
        """Takes a DiscoveryRequest or DeltaDiscoveryRequest; True: `publish` may have something to send.

        ProtocolError: the stream can't go on.
        """
        if self.client is None:
            self.client = _client(request)
        kind = BY_TYPE_URL.get(request.type_url)
        if kind is None:
            served = ", ".join(k.type_url for k in Kind)
            raise ProtocolError(f"type {request.type_url[:200]!r} is not served; served are {served}")
        of = self._kinds.get(kind)
        first = of is None
        if of is None:
            of = self._kinds[kind] = Subscription(kind)
        if first and (request.initial_resource_versions if self._delta else request.version_info):
            self.returning = True
        take = self._take_delta if self._delta else self._take_full
        asked = take(of, request, first)
        if sum(len(s.names) for s in self._kinds.values()) > self._max_names:
            raise ProtocolError(f"more than {self._max_names} names on one stream", "RESOURCE_EXHAUSTED")
        return self._answered(of, request) or asked

    def _take_full(self, of: Subscription, request: Any, first: bool) -> bool:
        names = _checked(request.resource_names)
        before, was_wildcard = of.names, of.wildcard
        if WILDCARD in names:
            of.wildcard = True
        elif names:
            of.wildcard = False
        elif first:
            of.wildcard = of.kind.wildcard
        of.names = names - {WILDCARD}
        of.due = of.due or (of.wildcard and not was_wildcard)
        for name in [name for name in of.sent if not of.wants(name)]:
            _forget(of, name)
        return of.names != before or of.wildcard != was_wildcard

    def _take_delta(self, of: Subscription, request: Any, first: bool) -> bool:
        more, less = _checked(request.resource_names_subscribe), _checked(request.resource_names_unsubscribe)
        if first:
            for name, version in request.initial_resource_versions.items():
                of.sent[name] = Resource(of.kind, name, version, b"")
                of.held.add(name)
        for name in less:
            self._unsubscribe(of, name)
        if WILDCARD in more or (first and not more and of.kind.wildcard):
            of.wildcard = of.due = True
        for name in more - {WILDCARD}:
            of.names.add(name)
            if not first:
                _again(of, name)
        for name in [name for name in of.sent if not of.wants(name)]:
            _forget(of, name)
        return bool(more or less or first)

    def _unsubscribe(self, of: Subscription, name: str) -> None:
        if name == WILDCARD:
            of.wildcard = of.due = False
        elif name in of.names:
            of.names.discard(name)
            if of.wildcard:  # "the server must send the resource again, or its removal"
                of.sent[name] = Resource(of.kind, name, _UNKNOWN, b"")

    def _answered(self, of: Subscription, request: Any) -> bool:
        """Whether this answers the response under way."""
        pending = of.pending
        if pending is None or request.response_nonce != pending.nonce:
            return False
        of.pending = None
        if not request.HasField("error_detail"):
            of.acked = pending.version
            accepted = pending.names if self._partial(of) else of.sent
            of.held.update(name for name in accepted if of.sent.get(name) is not None)
            for name in pending.names if self._partial(of) else tuple(of.refused):
                of.refused.pop(name, None)
            _told(of)
            return True
        of.nacked = pending.version
        of.error = request.error_detail.message[:_MAX_ERROR_TEXT] or f"code {request.error_detail.code}"
        for name in pending.names:
            sent = of.sent.get(name)
            if sent is not None:
                of.refused[name], of.reasons[name] = sent.version, of.error
        if len(pending.names) > 1 and self._partial(of):
            of.alone.extend(name for name in pending.names if name in of.refused)
        return True

    # What the client is sent

    @property
    def unbound(self) -> tuple[str, ...]:
        """The listeners that an Envoy refused because it can't have their ports."""
        of = self._kinds.get(Kind.LISTENER)
        return (
            tuple(name for name, why in of.reasons.items() if _CANNOT_BIND in why) if of is not None else ()
        )

    def try_unbound(self) -> None:
        """Has the next `publish` send them once more: ports become free without a new version."""
        of = self._kinds.get(Kind.LISTENER)
        if of is not None and of.pending is None:
            of.alone.extend(name for name in self.unbound if name not in of.alone)

    def publish(self, snapshot: Snapshot, hurry: bool = False, keep: bool = False) -> list[Any]:
        """The responses to send now, in this order, so that the client comes to hold the snapshot.

        What must wait for an answer comes with a later call, after `received` returned True.
        `keep`: the snapshot is not whole yet, so what the client holds stays as it is; it is sent
        only what it has not (and nothing in a state-of-the-world stream).
        """
        if keep and not self._delta:
            return []
        self.hold = None
        responses: list[Any] = []
        for kind in SENDING_ORDER:
            of = self._kinds.get(kind)
            if of is None:
                continue
            if kind in _NAMES_CLUSTERS and (warming := self._warming(snapshot)):
                if not hurry:
                    self.hold = Hold.QUESTION
                    return responses
                self._given_up |= warming
            if not self._make(of, snapshot, responses, keep):
                if kind is Kind.CLUSTER:
                    self._warm(snapshot, responses, keep)
                return responses
        if not keep:
            self._break(snapshot, responses, hurry)
        return responses

    def _warm(self, snapshot: Snapshot, responses: list[Any], keep: bool) -> None:
        """Sends what clusters that were sent need before they are answered for."""
        for kind in (Kind.ENDPOINTS, Kind.SECRET):
            of = self._kinds.get(kind)
            if of is not None:
                self._make(of, snapshot, responses, keep)

    def _make(self, of: Subscription, snapshot: Snapshot, responses: list[Any], keep: bool) -> bool:
        """Sends what is new or changed of one kind; False: it has to wait, and what follows too."""
        there = snapshot.resources.get(of.kind, {})
        changed = of.changed(there, keep)
        absent = [n for n in of.gone(there) if n not in of.sent]
        if of.pending is not None:
            return not (changed or of.alone)
        if not self._partial(of):
            if changed or of.due or absent:
                # All at once, and what is gone too until nothing names it any more.
                of.sent.update(dict.fromkeys(absent))
                of.sent.update((name, there[name]) for name in changed)
                self._changed(of, changed)
                responses.append(self._full(of, snapshot.version, changed))
            return True
        changed = self._without_refused_company(of, there, changed)
        if changed or of.due or (absent and self._delta):
            if self._delta:
                of.sent.update(dict.fromkeys(absent))
            of.sent.update((name, there[name]) for name in changed)
            self._changed(of, changed)
            responses.append(self._part(of, snapshot.version, changed, absent))
        return not of.alone

    def _without_refused_company(
        self, of: Subscription, there: Mapping[str, Resource], changed: list[str]
    ) -> list[str]:
        """`changed`; or the next resource that is to be sent alone."""
        if changed:
            return changed
        while of.alone:
            name = of.alone.popleft()
            if name in there and of.wants(name) and of.refused.get(name) == there[name].version:
                return [name]
        return []

    def _changed(self, of: Subscription, names: Iterable[str]) -> None:
        """A changed cluster's endpoints are due again."""
        endpoints = self._kinds.get(Kind.ENDPOINTS)
        if of.kind is Kind.CLUSTER and endpoints is not None:
            for name in names:
                _again(endpoints, name)

    def _warming(self, snapshot: Snapshot) -> set[str]:
        """Clusters that were sent and whose endpoints the client is still about to ask for."""
        clusters, endpoints = self._kinds.get(Kind.CLUSTER), self._kinds.get(Kind.ENDPOINTS)
        if clusters is None or not clusters.wildcard or (endpoints is not None and endpoints.wildcard):
            return set()
        there = clusters.sent.keys() & snapshot.resources.get(Kind.ENDPOINTS, {}).keys()
        asked = endpoints.names if endpoints is not None else set()
        return there - clusters.refused.keys() - asked - self._given_up

    def _break(self, snapshot: Snapshot, responses: list[Any], hurry: bool) -> None:
        """Removes what is gone: first what names, then what is named."""
        for kind in reversed(SENDING_ORDER):
            of = self._kinds.get(kind)
            if of is None:
                continue
            gone = self._gone(of, snapshot)
            if not gone:
                continue
            if of.pending is not None or (kind in _NAMED_BY_ROUTES and self._lives_by_older()):
                return
            if kind is Kind.SECRET and not of.wildcard:
                continue  # nobody gives up a secret that it shows or trusts for being told that it is gone
            if kind in _NAMED_BY_ROUTES and not of.wildcard and not hurry and (self._delta or kind.wildcard):
                self.hold = Hold.CANCEL
                return
            for name in gone:
                _forget(of, name)
                if name in of.names:
                    of.sent[name] = None
            if self._delta:
                responses.append(self._part(of, snapshot.version, [], gone))
            elif kind.wildcard:
                responses.append(self._full(of, snapshot.version, []))

    def _gone(self, of: Subscription, snapshot: Snapshot) -> list[str]:
        """What is to be removed. Endpoints go with their cluster: an Envoy that is sent all clusters gives up
        those of a removed one by itself, and no sooner.
        """
        gone, clusters = of.gone(snapshot.resources.get(of.kind, {})), self._kinds.get(Kind.CLUSTER)
        alone = of.kind is Kind.ENDPOINTS and not of.wildcard
        if gone and alone and clusters is not None and clusters.wildcard:
            leaving = clusters.gone(snapshot.resources.get(Kind.CLUSTER, {}))
            return sorted(set(gone).difference(leaving))
        return gone

    def _lives_by_older(self) -> bool:
        kinds = (self._kinds.get(kind) for kind in _NAMES_CLUSTERS)
        return any(of is not None and (of.refused or of.pending is not None) for of in kinds)

    def _partial(self, of: Subscription) -> bool:
        """Whether a response may leave out what did not change."""
        return self._delta or not of.kind.wildcard

    def _part(self, of: Subscription, version: str, names: list[str], removed: Iterable[str]) -> Any:
        resources = [resource for name in names if (resource := of.sent[name]) is not None]
        if not self._delta:
            return self._begun(of, pb.DiscoveryResponse(resources=map(_packed, resources)), version, names)
        message = pb.DeltaDiscoveryResponse(system_version_info=version, removed_resources=removed)
        for resource in resources:
            message.resources.add(name=resource.name, version=resource.version, resource=_packed(resource))
        return self._begun(of, message, version, names)

    def _full(self, of: Subscription, version: str, changed: list[str]) -> Any:
        held = (of.sent[name] for name in sorted(of.sent))
        packed = [_packed(resource) for resource in held if resource is not None]
        return self._begun(of, pb.DiscoveryResponse(resources=packed), version, changed)

    def _begun(self, of: Subscription, message: Any, version: str, names: list[str]) -> Any:
        self._count += 1
        of.nonce = message.nonce = str(self._count)
        of.due = False
        of.pending = Pending(of.nonce, version, tuple(names))
        message.type_url = of.kind.type_url
        if not self._delta:
            message.version_info = version
        return message


_NAMES_CLUSTERS = (Kind.LISTENER, Kind.ROUTES, Kind.SCOPED_ROUTES)
_NAMED_BY_ROUTES = (Kind.CLUSTER, Kind.ENDPOINTS, Kind.SECRET)


def _packed(resource: Resource) -> Any:
    return pb.message("google.protobuf.Any")(type_url=resource.kind.type_url, value=resource.body)


def _again(of: Subscription, name: str) -> None:
    """Whatever was sent of that name is due again."""
    if of.sent.get(name) is not None:
        of.sent[name] = Resource(of.kind, name, _UNKNOWN, b"")
    else:
        of.sent.pop(name, None)


def _forget(of: Subscription, name: str) -> None:
    of.sent.pop(name, None)
    of.held.discard(name)
    if of.refused.pop(name, None) is not None:
        _told(of)


def _told(of: Subscription) -> None:
    """A refusal is told until what is refused is accepted, replaced or gone."""
    of.reasons = {name: text for name, text in of.reasons.items() if name in of.refused}
    if of.error not in of.reasons.values():
        of.error = next(reversed(of.reasons.values()), "")


def _client(request: Any) -> Client:
    if not request.HasField("node"):
        raise ProtocolError("the first request of a stream must carry the node")
    try:
        return from_node(request.node)
    except (ValueError, json_format.Error) as error:
        raise ProtocolError(f"the node's metadata can't be read: {error}") from None


def _checked(names: Iterable[str]) -> set[str]:
    found = set(names)
    if any(len(name) > MAX_NAME_LENGTH for name in found):
        raise ProtocolError(f"a resource name of more than {MAX_NAME_LENGTH} characters")
    return found
