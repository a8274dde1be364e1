"""The filter chains of a Listener that have a TCP proxy, as core's Connections.

Rules:

- A chain with another last filter, and one for an application protocol (that of HTTP), is passed over.
- A condition that this library does not look at (ports, the caller's address, …) refuses the listener: it
  would take more connections than it should. `tls` as the transport holds for a chain with names.
- What a TCP proxy says of access logs and statistics changes no decision; what else it says that is not done
  here (keys of a connection's metadata, another way to name a cluster) refuses the listener.
"""

import ipaddress
from collections.abc import Iterable
from typing import Any

from google.protobuf.message import DecodeError

from meshlib.core.route.chain import Connections, FilterChain, Share, Subnet
from meshlib.dataplane.decode.errors import Refused, decode_each
from meshlib.dataplane.decode.origin import decode_origin
from meshlib.dataplane.decode.text import decode_seconds
from meshlib.dataplane.decode.tunnel import decode_tunnel
from meshlib.xds import pb
from meshlib.xds.names import BLACK_HOLE_CLUSTER

MAX_CHAINS = 1000
MAX_MATCHES = 10_000
"""Names and subnets of one chain, and the one times the other."""
MAX_CLUSTERS = 1000
_MATCHED = frozenset(("server_names", "prefix_ranges", "application_protocols", "transport_protocol"))
_READ = frozenset(
    (
        *("stat_prefix", "cluster", "weighted_clusters", "idle_timeout", "max_connect_attempts"),
        *("max_downstream_connection_duration", "access_log", "access_log_options", "hash_policy"),
        "tunneling_config",
    )
)
_LONGEST = 2**32


def decode_connections(message: Any) -> Connections | None:
    """The chains of an envoy.config.listener.v3.Listener; None: it takes no connections as they are.

    Refused: one can't be used; the error names the field.
    """
    if len(message.filter_chains) > MAX_CHAINS:
        raise Refused("filter_chains", f"more than {MAX_CHAINS}")
    made = decode_each(message.filter_chains, "filter_chains", _chain)
    chains = [chain for chain in made if chain is not None]
    default = None
    if message.HasField("default_filter_chain"):
        try:
            default = _chain(message.default_filter_chain)
        except Refused as refused:
            raise refused.within("default_filter_chain") from None
    if not chains and default is None:
        return None
    try:
        return Connections(chains, default, tuple(_addresses(message)))
    except ValueError as error:
        raise Refused("filter_chains", str(error)) from None


def _addresses(message: Any) -> Iterable[str]:
    for one in (message.address, *(more.address for more in message.additional_addresses)):
        try:
            address = ipaddress.ip_address(one.socket_address.address)
        except ValueError:
            continue
        if not address.is_unspecified:
            yield str(address)


def _chain(message: Any) -> FilterChain | None:
    proxy_type = pb.type_url(pb.TcpProxy)
    kinds = [each.typed_config.type_url for each in message.filters]
    place = kinds.index(proxy_type) if proxy_type in kinds else None
    if place is None or message.filter_chain_match.application_protocols:
        return None
    names, subnets = _match(message.filter_chain_match)
    path = f"filters[{place}].typed_config"
    if place or len(message.filters) != 1:
        raise Refused("filters", "a TCP proxy with other filters beside it is not supported")
    try:
        proxy = pb.unpack(message.filters[place].typed_config)
    except (DecodeError, KeyError) as error:
        raise Refused(path, f"can't be decoded: {error}") from None
    try:
        return _proxied(message, proxy, names, subnets)
    except Refused as refused:
        raise refused.within(path) from None


def _match(message: Any) -> tuple[tuple[str, ...], tuple[Subnet, ...]]:
    for field, _ in message.ListFields():
        if field.name not in _MATCHED:
            raise Refused(f"filter_chain_match.{field.name}", "is not supported")
    transport = message.transport_protocol
    if transport and not (transport == "tls" and message.server_names):
        raise Refused("filter_chain_match.transport_protocol", f"{transport} without names is not supported")
    names, ranges = len(message.server_names), len(message.prefix_ranges)
    if max(names, ranges, names * ranges) > MAX_MATCHES:
        raise Refused("filter_chain_match", f"{names} names and {ranges} subnets are too many")
    return (
        tuple(map(_name, range(names), message.server_names)),
        tuple(map(_subnet, range(ranges), message.prefix_ranges)),
    )


def _name(number: int, name: str) -> str:
    path = f"filter_chain_match.server_names[{number}]"
    if not name:
        raise Refused(path, "is empty")
    if "*" in name and (not name.startswith("*.") or "*" in name[1:] or len(name) < 3):
        raise Refused(path, "may have a * as its first label only")
    return name.lower()


def _subnet(number: int, message: Any) -> Subnet:
    length = message.prefix_len.value
    try:
        return ipaddress.ip_network(f"{message.address_prefix}/{length}", strict=False)
    except ValueError as error:
        raise Refused(f"filter_chain_match.prefix_ranges[{number}]", str(error)) from None


def _proxied(chain: Any, proxy: Any, names: tuple[str, ...], subnets: tuple[Subnet, ...]) -> FilterChain:
    for field, _ in proxy.ListFields():
        if field.name not in _READ:
            raise Refused(field.name, "is not supported")
    shares, blocks = _shares(proxy)
    longest = decode_seconds(proxy, "max_downstream_connection_duration", 0.0)
    attempts = proxy.max_connect_attempts.value if proxy.HasField("max_connect_attempts") else 1
    if not attempts:
        raise Refused("max_connect_attempts", "must be at least 1")
    return FilterChain(
        shares,
        chain.name,
        names,
        subnets,
        idle_timeout=decode_seconds(proxy, "idle_timeout", 3600.0),
        max_duration=longest,
        attempts=attempts,
        tunnel=decode_tunnel(proxy),
        by_source=_by_source(proxy),
        blocks=blocks,
        origin=decode_origin(chain),
    )


def _by_source(proxy: Any) -> bool:
    """Whether the caller's address is the key of a connection."""
    for number, policy in enumerate(proxy.hash_policy):
        if policy.WhichOneof("policy_specifier") != "source_ip":
            raise Refused(f"hash_policy[{number}]", "only source_ip is supported")
    return bool(proxy.hash_policy)


def _shares(proxy: Any) -> tuple[tuple[Share, ...], bool]:
    """The destinations, and whether there is none on purpose."""
    which = proxy.WhichOneof("cluster_specifier")
    if which == "cluster":
        if not proxy.cluster:
            raise Refused("cluster", "is empty")
        if proxy.cluster == BLACK_HOLE_CLUSTER:
            return (), True
        return (Share(proxy.cluster, 1, 1),), False
    if which != "weighted_clusters":
        raise Refused(which or "cluster_specifier", "is not supported or not set")
    listed = proxy.weighted_clusters.clusters
    if not 0 < len(listed) <= MAX_CLUSTERS:
        raise Refused("weighted_clusters.clusters", f"{len(listed)} clusters")
    shares, upto = [], 0
    for number, one in enumerate(listed):
        path = f"weighted_clusters.clusters[{number}]"
        if not one.name or not one.weight:
            raise Refused(path, "has no name or no weight")
        if one.HasField("metadata_match"):
            raise Refused(f"{path}.metadata_match", "is not supported")
        upto += one.weight
        if upto >= _LONGEST:
            raise Refused(path, "the weights are more than 4294967295 together")
        shares.append(Share(one.name, one.weight, upto))
    return tuple(shares), False
