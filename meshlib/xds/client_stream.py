"""The client's end of an ADS stream, sans-IO: what to ask, what came, what was acknowledged.

The rules are those of Envoy's "xDS REST and gRPC protocol":

- Every response is answered, with its nonce: ACK when it was applied, NACK with the reason when
  not. A state-of-the-world NACK repeats the last accepted version_info; an ACK gives the new one.
- State-of-the-world: each request repeats all names. Absence from a response of listeners or
  clusters removes; absence from a response of routes or endpoints says nothing.
- Delta: requests carry changes of the subscription; a new stream begins with all names and with
  the version of each resource held, so that only what differs is sent again.
- What is not subscribed (any more) is dropped without a word: it was under way when it was cancelled.
- Each resource is accepted or refused for itself, as gRPC does it: a NACK that names one resource
  keeps the last good one of that name and the new ones of all others.
"""

from collections.abc import Iterable, Mapping
from dataclasses import field
from typing import Any

from google.protobuf.message import DecodeError

from meshlib.errors import ControlError
from meshlib.values import dataclass
from meshlib.xds import pb
from meshlib.xds.kinds import BY_TYPE_URL, SENDING_ORDER, Kind
from meshlib.xds.snapshot import Resource

WILDCARD = "*"
_INVALID_ARGUMENT = 3
_MAX_ERROR_TEXT = 4096


class ProtocolError(ControlError):
    """The control service sent what is no answer to this client; the stream must be closed."""


@dataclass(frozen=True, slots=True)
class Update:
    """One response, for the caller to decode, apply, and then `ack` or `nack`."""

    kind: Kind
    version: str
    nonce: str
    resources: Mapping[str, Resource]
    """By name, subscribed ones only. In a state-of-the-world stream each has the response's version."""
    removed: frozenset[str]
    """Names that are gone, or (delta) that never existed."""
    broken: Mapping[str, str] = field(default_factory=dict)
    """What could not even be named or unpacked; part of the answer whatever the caller says."""
    stream: int = 0


@dataclass(slots=True)
class _Subscription:
    """What is known of one kind. `asked`, `nonce` and the pending changes are of the current stream."""

    names: set[str] = field(default_factory=set)
    version: str = ""
    held: dict[str, str] = field(default_factory=dict)
    asked: bool = False
    nonce: str = ""
    more: dict[str, None] = field(default_factory=dict)
    less: dict[str, None] = field(default_factory=dict)
    answers: list[tuple[str, str, str]] = field(default_factory=list)
    """Nonce, version and error text of responses to answer."""

    def wants(self, name: str) -> bool:
        return name in self.names or WILDCARD in self.names


class ClientStream:
    """One client's subscriptions, over as many streams as it takes. Not thread-safe."""

    def __init__(self, node_message: Any, delta: bool) -> None:
        """`node_message` is the envoy.config.core.v3.Node that opens each stream."""
        self._node = node_message
        self._delta = delta
        self._subscriptions: dict[Kind, _Subscription] = {}
        self._node_sent = False
        self._stream = 0

    def __repr__(self) -> str:
        counts = ", ".join(f"{len(s.names)} {k.short}" for k, s in self._subscriptions.items())
        return f"ClientStream({'delta' if self._delta else 'sotw'}, {counts or 'nothing subscribed'})"

    def names(self, kind: Kind) -> frozenset[str]:
        """What is subscribed of a kind."""
        found = self._subscriptions.get(kind)
        return frozenset(found.names) if found else frozenset()

    def held(self, kind: Kind) -> Mapping[str, str]:
        """The version of each resource that was accepted and is still subscribed."""
        found = self._subscriptions.get(kind)
        return dict(found.held) if found else {}

    def hold(self, kind: Kind, versions: Mapping[str, str]) -> None:
        """Tells what the caller holds from elsewhere (a file of last good state); before the first send."""
        self._subscriptions.setdefault(kind, _Subscription()).held.update(versions)

    def subscribe(self, kind: Kind, names: Iterable[str]) -> None:
        """Asks for these names from now on; `*` asks for all that there are."""
        of = self._subscriptions.setdefault(kind, _Subscription())
        for name in names:
            if name not in of.names:
                of.names.add(name)
                of.less.pop(name, None)
                of.more[name] = None

    def unsubscribe(self, kind: Kind, names: Iterable[str]) -> None:
        """Forgets these names and what was held of them."""
        of = self._subscriptions.setdefault(kind, _Subscription())
        for name in names:
            if name in of.names:
                of.names.discard(name)
                of.more.pop(name, None)
                of.less[name] = None
            if not of.wants(name):
                of.held.pop(name, None)

    def received(self, response: Any) -> Update:
        """Reads a DiscoveryResponse or DeltaDiscoveryResponse.

        ProtocolError: it is of a type that was never asked for, or has no nonce.
        """
        kind = BY_TYPE_URL.get(response.type_url)
        of = self._subscriptions.get(kind) if kind else None
        if kind is None or of is None or not of.asked:
            raise ProtocolError(f"a response of type {response.type_url[:200]!r}, which was not asked for")
        if not response.nonce:
            raise ProtocolError(f"a response of {kind.short} without a nonce")
        return (
            self._delta_update(kind, of, response) if self._delta else self._full_update(kind, of, response)
        )

    def _delta_update(self, kind: Kind, of: _Subscription, response: Any) -> Update:
        resources: dict[str, Resource] = {}
        broken: dict[str, str] = {}
        for wrapped in response.resources:
            if not of.wants(wrapped.name) or not wrapped.HasField("resource"):
                continue
            if wrapped.resource.type_url != kind.type_url:
                broken[wrapped.name] = f"is of type {wrapped.resource.type_url[:200]!r}"
                continue
            resources[wrapped.name] = Resource(kind, wrapped.name, wrapped.version, wrapped.resource.value)
        return Update(
            kind,
            response.system_version_info,
            response.nonce,
            resources,
            frozenset(name for name in response.removed_resources if of.wants(name) or name in of.held),
            broken,
            self._stream,
        )

    def _full_update(self, kind: Kind, of: _Subscription, response: Any) -> Update:
        resources: dict[str, Resource] = {}
        broken: dict[str, str] = {}
        for position, packed in enumerate(response.resources):
            try:
                name, body = _named(kind, packed)
            except (DecodeError, ValueError) as error:
                broken[f"resources[{position}]"] = str(error)
                continue
            if of.wants(name):
                resources[name] = Resource(kind, name, response.version_info, body)
        # What can't be read may be any of those held: then nothing is taken for removed.
        gone = of.held.keys() - resources.keys() if kind.wildcard and not broken else ()
        return Update(
            kind, response.version_info, response.nonce, resources, frozenset(gone), broken, self._stream
        )

    def ack(self, update: Update) -> None:
        """The update was applied, but for its `broken` resources, which are refused."""
        self.nack(update, {})

    def nack(self, update: Update, errors: Mapping[str, str]) -> None:
        """The resources named in `errors` were refused, with the reason; all others were applied.

        An update from before `reset` is of a stream that ended: it must not be applied, and its
        answer is not sent.
        """
        if update.stream != self._stream:
            return
        of = self._subscriptions[update.kind]
        refused = {**update.broken, **errors}
        for name, resource in update.resources.items():
            if name not in refused and of.wants(name):
                of.held[name] = resource.version
        for name in update.removed:
            of.held.pop(name, None)
        if not refused:
            of.version = update.version
        text = "; ".join(f"{name}: {error}" for name, error in refused.items())
        of.answers.append((update.nonce, of.version, text[:_MAX_ERROR_TEXT]))

    def reset(self) -> None:
        """The stream ended; the next messages open a new one with the same subscriptions."""
        self._stream += 1
        self._node_sent = False
        for of in self._subscriptions.values():
            of.asked = False
            of.nonce = ""
            of.answers.clear()
            of.more = dict.fromkeys(sorted(of.names))
            of.less.clear()

    def to_send(self) -> list[Any]:
        """The requests to send now, in this order; empty when there is nothing to say."""
        messages: list[Any] = []
        # Clusters before the listeners that lead to them: the server then sends them in that order.
        for kind in SENDING_ORDER:
            of = self._subscriptions.get(kind)
            if of is not None:
                messages += self._delta_requests(kind, of) if self._delta else self._full_requests(kind, of)
        return messages

    def _delta_requests(self, kind: Kind, of: _Subscription) -> list[Any]:
        messages = []
        for nonce, _, text in of.answers:
            message = self._with_node(pb.DeltaDiscoveryRequest(type_url=kind.type_url, response_nonce=nonce))
            messages.append(_with_error(message, text))
        of.answers.clear()
        # A first request without names would ask for everything.
        if of.more or (of.less and of.asked):
            message = self._with_node(
                pb.DeltaDiscoveryRequest(
                    type_url=kind.type_url,
                    resource_names_subscribe=list(of.more),
                    resource_names_unsubscribe=list(of.less) if of.asked else (),
                )
            )
            if not of.asked:
                message.initial_resource_versions.update(of.held)
            of.asked = True
            messages.append(message)
        of.more.clear()
        of.less.clear()
        return messages

    def _full_requests(self, kind: Kind, of: _Subscription) -> list[Any]:
        changed = bool(of.more or (of.less and of.asked))
        messages = []
        for nonce, version, text in of.answers:
            of.nonce = nonce
            messages.append(_with_error(self._full_request(kind, of, version), text))
        if changed and not messages:
            messages.append(self._full_request(kind, of, of.version))
        of.answers.clear()
        of.more.clear()
        of.less.clear()
        of.asked = of.asked or bool(messages)
        return messages

    def _full_request(self, kind: Kind, of: _Subscription, version: str) -> Any:
        return self._with_node(
            pb.DiscoveryRequest(
                type_url=kind.type_url,
                version_info=version,
                resource_names=sorted(of.names),
                response_nonce=of.nonce,
            )
        )

    def _with_node(self, message: Any) -> Any:
        if not self._node_sent:
            message.node.CopyFrom(self._node)
            self._node_sent = True
        return message


def _with_error(message: Any, text: str) -> Any:
    if text:
        message.error_detail.code = _INVALID_ARGUMENT
        message.error_detail.message = text
    return message


def _named(kind: Kind, packed: Any) -> tuple[str, bytes]:
    """Name and body of a resource in a state-of-the-world response. ValueError: of another type."""
    name = ""
    if packed.type_url == pb.type_url(pb.Resource):
        wrapped = pb.Resource.FromString(packed.value)
        name, packed = wrapped.name, wrapped.resource
    if packed.type_url != kind.type_url:
        raise ValueError(f"is of type {packed.type_url[:200]!r}")
    message = pb.unpack(packed)
    own = message.cluster_name if kind is Kind.ENDPOINTS else message.name
    return name or own, packed.value
