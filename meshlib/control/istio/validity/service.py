"""Service, as the Kubernetes API server checks it.

Rules:
- A port is one server's: its number and protocol stand once, and its name does where there are several.
- Ports are missing only where nothing needs them: without a cluster IP, and as an alias of a DNS name.
- External IPs may be loopback ones, which Kubernetes refuses: a mesh of processes on one machine has them.
"""

import re2

from meshlib.control.istio.kubernetes import Service, ServicePort
from meshlib.control.istio.validity import hosts
from meshlib.control.istio.validity.endpoints import PROTOCOLS, ip
from meshlib.control.istio.validity.report import Report

_TYPES = ("ClusterIP", "NodePort", "LoadBalancer", "ExternalName")
_NEAR = ("PreferClose", "PreferSameZone", "PreferSameNode")
_SERVICE_NAME = re2.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
"""The name of a port of a container, as IANA has it; length and letter are looked at separately."""


def service(spec: Service, to: Report) -> None:
    """The whole spec."""
    if spec.type not in _TYPES:
        to.at("type").error("not a type of service", repr(spec.type), ", ".join(_TYPES))
    hosts.labels(spec.selector, to.at("selector"))
    alias = spec.type == "ExternalName"
    if not spec.ports and not alias and spec.cluster_ip != "None":
        to.at("ports").error("no ports", "", "at least one; none with clusterIP None or type ExternalName")
    _ports(spec, to.at("ports"))
    if alias:
        _alias(spec, to)
    else:
        _addresses(spec, to)
    for index, address in enumerate(spec.external_ips):
        ip(address, to.at("externalIPs", index))
    if spec.traffic_distribution and spec.traffic_distribution not in _NEAR:
        to.at("traffic_distribution").error(
            "unknown distribution", repr(spec.traffic_distribution), ", ".join(_NEAR)
        )


def _ports(spec: Service, to: Report) -> None:
    names: set[str] = set()
    numbers: set[tuple[int, str]] = set()
    for index, port in enumerate(spec.ports):
        at = to.at(index)
        if not port.name and len(spec.ports) > 1:
            at.at("name").error("no name", "", "a name, since there are several ports")
        elif port.name and port.name in names:
            at.at("name").error("a port name that stands twice", repr(port.name), "each name once")
        if (port.port, port.protocol) in numbers:
            found = f"{port.port} of {port.protocol}"
            at.at("port").error("a port that stands twice", found, "each number once in a protocol")
        names.add(port.name)
        numbers.add((port.port, port.protocol))
        _port(port, spec.type, at)


def _port(port: ServicePort, kind: str, to: Report) -> None:
    if port.name and not hosts.dns_label(port.name):
        to.at("name").error("not the name of a port", repr(port.name), hosts.DNS_LABEL)
    hosts.port(port.port, to.at("port"))
    if port.protocol not in PROTOCOLS:
        to.at("protocol").error("unknown protocol", repr(port.protocol), ", ".join(PROTOCOLS))
    # Kubernetes takes both as unset: the server listens at the port itself.
    if port.target_port not in (None, 0, ""):
        _target(port.target_port, to.at("target_port"))
    if port.app_protocol and not hosts.label_key(port.app_protocol):
        to.at("app_protocol").error("not a protocol's name", repr(port.app_protocol), hosts.LABEL_KEY)
    if port.node_port:
        hosts.port(port.node_port, to.at("node_port"))
        if kind not in ("NodePort", "LoadBalancer"):
            to.at("node_port").error(f"not with type {kind}", port.node_port, "type NodePort or LoadBalancer")


def _target(given: int | str | None, to: Report) -> None:
    if isinstance(given, int):
        hosts.port(given, to)
        return
    text = given or ""
    letters = any("a" <= char <= "z" for char in text)
    if not letters or len(text) > 15 or _SERVICE_NAME.fullmatch(text) is None:
        allowed = "1 to 65535 without quotes, or a name: up to 15 lower case letters, digits and single -"
        to.error("not a target port", repr(given), allowed)


def _alias(spec: Service, to: Report) -> None:
    if not hosts.dns_name(spec.external_name.removesuffix(".")):
        to.at("external_name").error(
            "not a DNS name", repr(spec.external_name), "a lower case name, such as db.example.com"
        )
    for name, given in (("clusterIP", spec.cluster_ip), ("clusterIPs", spec.cluster_ips)):
        if given:
            to.at(name).error("not with type ExternalName", "", "leave it out")


def _addresses(spec: Service, to: Report) -> None:
    headless = spec.cluster_ip == "None"
    if headless and spec.type in ("NodePort", "LoadBalancer"):
        to.at("clusterIP").error(f"no cluster IP with type {spec.type}", "'None'", "an IP address")
    elif spec.cluster_ip and not headless:
        ip(spec.cluster_ip, to.at("clusterIP"))
    if spec.cluster_ips and spec.cluster_ips[0] != spec.cluster_ip:
        to.at("clusterIPs", 0).error("not clusterIP", repr(spec.cluster_ips[0]), repr(spec.cluster_ip))
    if len(spec.cluster_ips) > (1 if headless else 2):
        to.at("clusterIPs").error("too many", len(spec.cluster_ips), "one of each IP version")
    for index, address in enumerate(spec.cluster_ips):
        if index and not headless:
            ip(address, to.at("clusterIPs", index))
