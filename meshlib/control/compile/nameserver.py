"""The names of the mesh for a captured workload: Envoy's DNS filter, on UDP in its namespace.

Rules:

- Every spelling of a service that the workload's namespace may use leads to its IPv4 addresses, its own or
  the one that it was given. Asked for IPv6 they are those addresses, mapped (::ffff:a.b.c.d), which are
  called by IPv4: where a known name has nothing of a kind the filter says that there is no such name, and
  musl's resolver then gives up the other kind, too.
- All other names are asked of the node's own resolver.
"""

from collections.abc import Iterable
from typing import Any

from meshlib.xds import pb
from meshlib.xds.names import DNS_PORT

NAMESERVER = "dns"
_FILTER = "envoy.extensions.filters.udp.dns_filter.v3.DnsFilterConfig"
TTL_SECONDS, TIMEOUT_SECONDS, MAX_PENDING, RETRIES = 30.0, 5.0, 256, 1


def nameserver(names: Iterable[tuple[str, Iterable[str]]], netns: str) -> Any:
    """The Listener with these names and their addresses."""
    made = pb.Listener(name=NAMESERVER)
    socket = made.address.socket_address
    socket.protocol, socket.address, socket.port_value = "UDP", "127.0.0.1", DNS_PORT
    socket.network_namespace_filepath = netns
    made.enable_reuse_port.value = True
    config = pb.message(_FILTER)(stat_prefix=NAMESERVER)
    table = config.server_config.inline_dns_table
    table.external_retry_count = RETRIES
    for name, addresses in names:
        domain = table.virtual_domains.add(name=name)
        found = domain.endpoint.address_list.address
        for address in addresses:
            found.extend((address, f"::ffff:{address}"))
        domain.answer_ttl.CopyFrom(pb.duration(TTL_SECONDS))
    config.client_config.resolver_timeout.CopyFrom(pb.duration(TIMEOUT_SECONDS))
    config.client_config.max_pending_lookups = MAX_PENDING
    made.listener_filters.add(name="envoy.filters.udp.dns_filter", typed_config=pb.pack(config))
    return made
