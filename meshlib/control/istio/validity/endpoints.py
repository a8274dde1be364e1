"""Endpoints and EndpointSlice, as the Kubernetes API server checks them.

Rules:
- An address is one server's: not unspecified and not link-local multicast. Loopback and link-local
  addresses are taken, which Kubernetes refuses: a mesh of processes on one machine consists of them.
- IP addresses have no zone (`%eth0`) and no leading zeros, in which readers differ.
- A name is needed where there are several ports; in a slice each name stands once.
"""

import ipaddress

from meshlib.control.istio.kubernetes import Endpoint, EndpointPort, Endpoints, EndpointSlice, EndpointSubset
from meshlib.control.istio.validity import hosts
from meshlib.control.istio.validity.report import Report

MAX_ENDPOINTS = 1000
"""In one EndpointSlice."""
MAX_ADDRESSES = 100
"""Of one endpoint of an EndpointSlice."""
_VERSIONS = {"IPv4": 4, "IPv6": 6}
_TYPES = (*_VERSIONS, "FQDN")
PROTOCOLS = ("TCP", "UDP", "SCTP")


def endpoints(spec: Endpoints, to: Report) -> None:
    """The whole document."""
    for index, subset in enumerate(spec.subsets):
        _subset(subset, to.at("subsets", index))


def _subset(subset: EndpointSubset, to: Report) -> None:
    if not (subset.addresses or subset.not_ready_addresses):
        to.error("no addresses", "", "addresses or notReadyAddresses with at least one")
    for name in ("addresses", "not_ready_addresses"):
        for index, address in enumerate(getattr(subset, name)):
            at = to.at(name, index)
            ip(address.ip, at.at("ip"))
            _label(address.hostname, "a host name", at.at("hostname"))
    for index, port in enumerate(subset.ports):
        at = to.at("ports", index)
        hosts.port(port.port, at.at("port"))
        if not port.name and len(subset.ports) > 1:
            at.at("name").error("no name", "", "a name, since there are several ports")
        _port(port, at)


def endpoint_slice(spec: EndpointSlice, to: Report) -> None:
    """The whole document."""
    if spec.address_type not in _TYPES:
        to.at("address_type").error("not a type of address", repr(spec.address_type), ", ".join(_TYPES))
    if len(spec.endpoints) > MAX_ENDPOINTS:
        to.at("endpoints").error("too many endpoints", len(spec.endpoints), f"at most {MAX_ENDPOINTS}")
    for index, endpoint in enumerate(spec.endpoints[:MAX_ENDPOINTS]):
        _endpoint(endpoint, spec.address_type, to.at("endpoints", index))
    names: set[str] = set()
    for index, port in enumerate(spec.ports):
        at = to.at("ports", index)
        if "port" in port.model_fields_set:
            hosts.port(port.port, at.at("port"))
        else:
            at.warn("no number, so that it stands for every port; nothing is sent to it", "", "1 to 65535")
        if port.name in names:
            at.at("name").error("a port name that stands twice", repr(port.name), "each name once")
        names.add(port.name)
        _port(port, at)


def _endpoint(endpoint: Endpoint, kind: str, to: Report) -> None:
    count = len(endpoint.addresses)
    if not 1 <= count <= MAX_ADDRESSES:
        to.at("addresses").error("not that many addresses", count, f"1 to {MAX_ADDRESSES}")
    for index, address in enumerate(endpoint.addresses[:MAX_ADDRESSES]):
        at = to.at("addresses", index)
        if kind == "FQDN":
            _full_name(address, at)
        elif kind in _VERSIONS:
            ip(address, at, _VERSIONS[kind])
    _label(endpoint.hostname, "a host name", to.at("hostname"))


def ip(text: str, to: Report, version: int | None = None) -> None:
    """The address of one server."""
    allowed = f"an IPv{version} address" if version else "an IP address"
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        to.error("not an IP address", repr(text), allowed)
        return
    if "%" in text:
        to.error("an IP address with a zone", repr(text), allowed)
    elif version and address.version != version:
        to.error(f"not an IPv{version} address", repr(text), f"{allowed}, as addressType says")
    elif address.is_unspecified or _link_local_multicast(address):
        to.error("not the address of a server", repr(text), allowed)


def _link_local_multicast(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """224.0.0.0/24, and ff02::/16 with whatever flags."""
    if isinstance(address, ipaddress.IPv4Address):
        return address.packed[:3] == b"\xe0\x00\x00"
    return address.packed[0] == 0xFF and address.packed[1] & 0x0F == 2


def _full_name(text: str, to: Report) -> None:
    labels = text.removesuffix(".").split(".")
    if len(text) > 253 or len(labels) < 2 or not all(map(hosts.dns_label, labels)):
        to.error("not a full DNS name", repr(text), "a lower case name with a dot in it, such as a.example")


def _label(text: str, what: str, to: Report) -> None:
    if text and not hosts.dns_label(text):
        to.error(f"not {what}", repr(text), hosts.DNS_LABEL)


def _port(port: EndpointPort, to: Report) -> None:
    _label(port.name, "the name of a port", to.at("name"))
    if port.protocol not in PROTOCOLS:
        to.at("protocol").error("unknown protocol", repr(port.protocol), ", ".join(PROTOCOLS))
