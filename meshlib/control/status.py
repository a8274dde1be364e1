"""What `meshlib status` shows: who is connected, what each asked for, accepted and refused.

Plain values (texts, numbers, lists, objects) that survive JSON; times are in seconds.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import grpc

from meshlib.control.registration import Registration
from meshlib.control.serve.push import Connection, Hub
from meshlib.control.serve.server import STATUS
from meshlib.errors import ControlUnavailable
from meshlib.xds import pb
from meshlib.xds.kinds import SENDING_ORDER
from meshlib.xds.names import CONTROL_SERVER
from meshlib.xds.server_stream import Subscription

MAX_NAMES_SHOWN = 1000
MAX_REPLY = 256 * 1024 * 1024


def status(
    hub: Hub,
    registrations: Iterable[Registration] = (),
    errors: Iterable[str] = (),
    warnings: Iterable[str] = (),
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, Any]:
    """Keys: `version`, `clients`, `registrations`, `errors`, `warnings`; `clock` is the hub's.

    A client has `id`, `peer`, `flavour`, `user_agent_version`, `namespace`, `service_account`,
    `labels`, `locality`, `protocol` (delta or sotw), `connected_seconds`, `behind_seconds`,
    `behind_versions` and `kinds`; see `_kind` for these.
    """
    now = clock()
    clients = [_client(c, hub, now) for c in hub.connections if c.stream.client is not None]
    return {
        "version": hub.version,
        "clients": clients,
        "registrations": [_registration(r) for r in registrations],
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


def _kind(of: Subscription) -> dict[str, Any]:
    """One resource type. `nack` is the text of the last refusal, empty once it accepts again."""
    names = sorted(of.names)
    return {
        "kind": of.kind.short,
        "names": (["*"] if of.wildcard else []) + names[:MAX_NAMES_SHOWN],
        "subscribed": len(names),
        "sent": sum(resource is not None for resource in of.sent.values()),
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
