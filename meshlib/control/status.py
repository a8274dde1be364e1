"""What `meshlib status` shows: who is connected, what each asked for, accepted and refused.

Plain values (texts, numbers, lists, objects) that survive JSON; times are in seconds.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc

from meshlib.control.registration import Registration
from meshlib.control.serve.callers import Caller
from meshlib.control.serve.push import Connection, Hub
from meshlib.control.serve.server import STATUS
from meshlib.errors import ControlUnavailable
from meshlib.identity.renewal import Health, health
from meshlib.xds import pb
from meshlib.xds.kinds import SENDING_ORDER
from meshlib.xds.names import CONTROL_SERVER
from meshlib.xds.node import Client, Flavour
from meshlib.xds.server_stream import Subscription

MAX_NAMES_SHOWN = 1000
MAX_REPLY = 256 * 1024 * 1024
Notes = Callable[[Client, frozenset[str]], Sequence[str]]
"""What a client that asks for these listeners does not get that documents say it has, and why."""


def no_notes(_client: Client, _listeners: frozenset[str]) -> Sequence[str]:
    """All get all."""
    return ()


def status(
    hub: Hub,
    registrations: Iterable[Registration] = (),
    errors: Iterable[str] = (),
    warnings: Iterable[str] = (),
    clock: Callable[[], float] = time.monotonic,
    *,
    now: float = 0.0,
    authority: Mapping[str, Any] | None = None,
    renewed: Callable[[Caller], bool] = lambda _: False,
    notes: Notes = no_notes,
) -> dict[str, Any]:
    """Keys: `version`, `clients`, `registrations`, `authority`, `alarms`, `errors`, `warnings`.

    `clock` is the hub's, `now` in Unix seconds; `authority` as `control.ca.report` says it, None: there is
    none; `renewed`: whether a caller got a newer certificate than the one that its connection showed;
    `notes`: what a client does not get.

    A client has `id`, `peer`, `flavour`, `user_agent_version`, `namespace`, `service_account`,
    `labels`, `locality`, `protocol` (delta or sotw), `connected_seconds`, `behind_seconds`,
    `behind_versions`, `certificate`, `token_left`, `notes` and `kinds`; see `_certificate` and `_kind`.
    `alarms` are sentences: what ends soon and should have been renewed.
    """
    known = [c for c in hub.connections if c.stream.client is not None]
    clients = [
        _client(c, hub, clock())
        | {
            "certificate": _certificate(c, now, renewed),
            "token_left": None if c.caller.ends is None else max(c.caller.ends - now, 0.0),
            "notes": list(notes(c.stream.client, c.listeners)) if c.stream.client is not None else [],
        }
        for c in known
    ]
    return {
        "version": hub.version,
        "clients": clients,
        "registrations": [_registration(r) for r in registrations],
        "authority": None if authority is None else dict(authority),
        "alarms": [
            *(authority["warnings"] if authority is not None else ()),
            *(_alarm(one) for one in clients if one["certificate"] and one["certificate"]["alarm"]),
        ],
        "errors": list(errors),
        "warnings": list(warnings),
    }


def _client(connection: Connection, hub: Hub, now: float) -> dict[str, Any]:
    client = connection.stream.client
    if client is None:
        raise ValueError("the client has not said who it is")
    behind = connection.behind_since
    found = connection.stream.subscriptions
    return {
        "id": client.id,
        "peer": connection.peer,
        "flavour": client.flavour.value,
        "user_agent_version": client.version,
        "namespace": client.namespace,
        "service_account": client.service_account,
        "labels": dict(client.labels),
        "locality": str(client.locality),
        "protocol": "delta" if connection.stream.delta else "sotw",
        "connected_seconds": round(now - connection.since, 3),
        "behind_seconds": round(now - behind, 3) if behind is not None else 0,
        "behind_versions": hub.published - connection.seen if behind is not None else 0,
        "kinds": [_kind(found[kind]) for kind in SENDING_ORDER if kind in found],
    }


def _certificate(
    connection: Connection, now: float, renewed: Callable[[Caller], bool]
) -> dict[str, Any] | None:
    """The one that the connection showed: `root` (its fingerprint), `end`, and `left`, `life` in seconds.

    `health`: ok, late, expiring (a quarter of the term is left) or expired, see `identity.renewal`; `alarm`:
    it should have been renewed and was not. Clients of this library come anew with each new certificate;
    others keep their connection, so of them it counts whether a newer one was given out (`renewed`).
    """
    shown, client = connection.caller.shown, connection.stream.client
    if shown is None or client is None:
        return None
    how = health(shown.term, now)
    again = client.flavour is not Flavour.MESHLIB and renewed(connection.caller)
    return {
        "root": shown.root,
        "end": shown.term.end,
        "left": max(shown.term.end - now, 0.0),
        "life": shown.term.length,
        "health": how.name.lower(),
        "renewed": again,
        "alarm": how in (Health.EXPIRING, Health.EXPIRED) and not again,
    }


def _alarm(client: Mapping[str, Any]) -> str:
    who, left = f"{client['namespace']}/{client['service_account']}", client["certificate"]["left"]
    return (
        f"the certificate of {who} at {client['peer']} ends in {left:.0f} s and was not renewed; "
        "that workload's log says why"
    )


def _kind(of: Subscription) -> dict[str, Any]:
    """One resource type: `kind` (LDS, …), `names` it asks for and their number `subscribed`; how many
    resources were `sent`, and how many are `held`: the client acknowledged them, or came with them, and was
    not told that they are gone. `acked` and `nacked` are the versions of the last acceptance and refusal,
    `nack` the text of the last refusal, empty once it accepts again; `refused` names what is refused;
    `pending`: an answer is awaited.
    """
    names = sorted(of.names)
    return {
        "kind": of.kind.short,
        "names": (["*"] if of.wildcard else []) + names[:MAX_NAMES_SHOWN],
        "subscribed": len(names),
        "sent": sum(resource is not None for resource in of.sent.values()),
        "held": sum(of.sent.get(name) is not None for name in of.held),
        "acked": of.acked,
        "nack": of.error,
        "nacked": of.nacked,
        "refused": sorted(of.refused)[:MAX_NAMES_SHOWN],
        "pending": of.pending is not None,
    }


def _registration(of: Registration) -> dict[str, Any]:
    return {
        "id": of.id,
        "namespace": of.namespace,
        "service_account": of.service_account,
        "labels": dict(of.labels),
        "address": of.address,
        "ports": dict(of.ports),
        "locality": str(of.locality),
        "weight": of.weight,
        "draining": of.draining,
    }


@dataclass(frozen=True, slots=True)
class Operator:
    """By what a control service is trusted, and by what it trusts who asks."""

    roots_pem: str
    token: str = field(repr=False)


def fetch_status(address: str, timeout: float, operator: Operator | None = None) -> dict[str, Any]:
    """Asks the control service at `host:port`; `timeout` in seconds; without `operator` in plaintext.

    ControlUnavailable: no answer.
    """
    options: list[tuple[str, Any]] = [
        ("grpc.max_receive_message_length", MAX_REPLY),
        ("grpc.enable_http_proxy", 0),
    ]
    metadata: tuple[tuple[str, str], ...] = ()
    if operator is None:
        opened = grpc.insecure_channel(address, options=options)
    else:
        metadata = (("authorization", f"Bearer {operator.token}"),)
        options.append(("grpc.ssl_target_name_override", CONTROL_SERVER))
        trusting = grpc.ssl_channel_credentials(operator.roots_pem.encode())
        opened = grpc.secure_channel(address, trusting, options=options)
    with opened as channel:
        get = channel.unary_unary(
            STATUS,
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=pb.Struct.FromString,
        )
        try:
            reply = get(pb.Struct(), timeout=timeout, metadata=metadata)
        except grpc.RpcError as error:
            raise ControlUnavailable(
                f"no status from {address}: {error.code().name} {error.details()}"
            ) from None
    return dict(_whole(pb.to_dict(reply)))


def _whole(value: Any) -> Any:
    """A Struct has only floating numbers; whole ones become int again."""
    if isinstance(value, Mapping):
        return {key: _whole(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_whole(inner) for inner in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
