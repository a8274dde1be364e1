"""A bare ADS client: it follows what a target leads to and accepts all of it."""

import queue
from collections.abc import Iterator
from typing import Any

import grpc

from meshlib.xds import pb
from meshlib.xds.client_stream import ClientStream, Update
from meshlib.xds.kinds import Kind
from meshlib.xds.node import Client, Flavour, to_node


class Following:
    """The client's side of one stream, without a transport."""

    def __init__(self, name: str, target: str, delta: bool = True) -> None:
        self._state = ClientStream(to_node(Client(Flavour.MESHLIB, id=name)), delta)
        self._state.subscribe(Kind.LISTENER, [target])

    def to_send(self) -> list[Any]:
        """Requests to send now."""
        return self._state.to_send()

    def take(self, response: Any) -> Update:
        """Accepts a response and subscribes to what it leads to."""
        update = self._state.received(response)
        for resource in update.resources.values():
            for kind, names in _leads_to(resource):
                self._state.subscribe(kind, sorted(names - self._state.names(kind)))
        self._state.ack(update)
        return update


def method(delta: bool) -> tuple[str, Any]:
    """The path of the stream, and the message that comes."""
    return (pb.DELTA_ADS, pb.DeltaDiscoveryResponse) if delta else (pb.ADS, pb.DiscoveryResponse)


def encoded(message: Any) -> bytes:
    """As bytes."""
    return bytes(message.SerializeToString())


def follow(channel: grpc.Channel, name: str, target: str, delta: bool = True) -> Iterator[Update]:
    """Each update of a stream on a blocking channel."""
    said: queue.SimpleQueue[Any] = queue.SimpleQueue()
    following = Following(name, target, delta)
    path, reply = method(delta)
    stream = channel.stream_stream(path, request_serializer=encoded, response_deserializer=reply.FromString)
    for message in following.to_send():
        said.put(message)
    for response in stream(iter(said.get, None)):
        update = following.take(response)
        for message in following.to_send():
            said.put(message)
        yield update


def _leads_to(resource: Any) -> Iterator[tuple[Kind, set[str]]]:
    message = resource.message()
    if resource.kind is Kind.LISTENER:
        yield Kind.ROUTES, {pb.unpack(message.api_listener.api_listener).rds.route_config_name}
    elif resource.kind is Kind.ROUTES:
        routes = [route.route for host in message.virtual_hosts for route in host.routes]
        weighted = {cluster.name for route in routes for cluster in route.weighted_clusters.clusters}
        yield Kind.CLUSTER, weighted | {route.cluster for route in routes if route.cluster}
    elif resource.kind is Kind.CLUSTER:
        yield Kind.ENDPOINTS, {resource.name}
