"""Servers that join: from health discovery streams to registrations.

A server opens a stream of Envoy's health discovery service. Its first message says who it is: node
metadata NAMESPACE, SERVICE_ACCOUNT, LABELS, PORTS {name: number}, LOCALITY, WEIGHT. Then it reports its
endpoints, all at one address, HEALTHY or DRAINING. Rules:

- A registration is a node id at an address with ports; two processes with one node id are two. Another
  workload's, or one by another node, is another, whatever id it says: nobody takes anybody's place.
- It lives as long as a stream reports it, and a grace longer: who comes back in time never left.
  Who said DRAINING before its stream ended, left.
- UNHEALTHY or TIMEOUT takes it out at once; its stream may bring it back.
- Of the registrations of one workload of a node (UID) the one whose stream began last counts: the others are
  of an agent that is gone, or goes.
- Those of one caller are bounded in number.
- A workload behind a node's Envoy is registered by the node, with more metadata: NODE_NAME, UID (its name
  on the node; else the node id), NETNS (the file of its network namespace), APP_PORTS {port: the
  application's own}, PROXY_PORT (where it finds an HTTP proxy, if it has no namespace).
- What is wrong is refused with the reason; the stream ends and nothing of it is kept. Labels, names,
  localities and addresses are held to the rules of documents: they end in the same resources.
"""

import ipaddress
import itertools
import posixpath
import string
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from meshlib.control.istio.validity import endpoints, hosts
from meshlib.control.istio.validity import locality as localities
from meshlib.control.istio.validity.report import Report
from meshlib.control.registration import APPLICATION_HOST, Place, Registration
from meshlib.control.serve.limits import MAX_REGISTRATIONS
from meshlib.errors import ControlError
from meshlib.xds import pb
from meshlib.xds.node import NODE_NAME, Locality

MAX_LABELS = 256
MAX_PORTS = 64
MAX_TEXT = 253
MAX_WEIGHT = 128 * 1024
REPORT_SECONDS = 10.0

_UNKNOWN, _HEALTHY, _UNHEALTHY, _DRAINING, _TIMEOUT, _DEGRADED = range(6)


class RegistrationError(ControlError):
    """What a server says of itself can't be used; the message says which part and why."""


class TooMany(RegistrationError):
    """One caller has too many registrations."""


@dataclass(slots=True)
class _Entry:
    registration: Registration
    caller: str
    began: int = 0
    """When its newest stream came, counted."""
    streams: set[int] = field(default_factory=set)
    gone_at: float = 0.0


_Key = tuple[str, str, str, str]


def _key(of: Registration) -> _Key:
    return of.id, of.namespace, of.service_account, of.node


def _workload(of: Registration) -> object:
    """Equal for registrations of one workload of a node; without a node each is another's."""
    return (of.node, of.place.uid) if of.place is not None else _key(of)


class Registrar:
    """Who is registered. Time is an argument; not thread-safe."""

    def __init__(self, on_change: Callable[[tuple[Registration, ...]], None], grace: float = 2.0) -> None:
        """`on_change` is called with all registrations, sorted by id, whenever they differ."""
        self._on_change = on_change
        self._grace = grace
        self._entries: dict[_Key, _Entry] = {}
        self._callers: Counter[str] = Counter()
        """How many entries each has."""
        self._count = itertools.count(1)
        self._told: tuple[Registration, ...] = ()

    @property
    def registrations(self) -> tuple[Registration, ...]:
        """All, sorted by id."""
        return self._told

    @property
    def next_expiry(self) -> float | None:
        """When `expire` has something to do, or None."""
        ends = [entry.gone_at for entry in self._entries.values() if not entry.streams]
        return min(ends, default=None)

    def reported(self, stream: int, registration: Registration | None, now: float, caller: str = "") -> None:
        """A stream of a caller said this of its server; None: it is not to be used now.

        TooMany: nothing of it is kept.
        """
        for key, entry in list(self._entries.items()):
            if stream in entry.streams and (registration is None or _key(registration) != key):
                self._leave(key, entry, stream, now, at_once=True)
        if registration is not None:
            entry = self._entry(registration, caller)
            entry.registration = registration
            if stream not in entry.streams:
                entry.began = next(self._count)
                entry.streams.add(stream)
        self._tell()

    def _entry(self, of: Registration, caller: str) -> _Entry:
        key = _key(of)
        if key in self._entries:
            return self._entries[key]
        for other, entry in list(self._entries.items() if of.place is not None else ()):
            if not entry.streams and _workload(entry.registration) == _workload(of):
                self._drop(other)
        if self._callers[caller] >= MAX_REGISTRATIONS:
            raise TooMany(
                f"there are {MAX_REGISTRATIONS} registrations of {caller or 'this caller'}; no more are taken"
            )
        self._callers[caller] += 1
        made = self._entries[key] = _Entry(of, caller)
        return made

    def _drop(self, key: _Key) -> None:
        caller = self._entries.pop(key).caller
        self._callers[caller] -= 1
        if not self._callers[caller]:
            del self._callers[caller]

    def ended(self, stream: int, now: float, grace: float | None = None) -> None:
        """A stream ended; `grace` None: the usual one."""
        for key, entry in list(self._entries.items()):
            if stream in entry.streams:
                until = now + (self._grace if grace is None else grace)
                self._leave(key, entry, stream, until, at_once=entry.registration.draining)
        self._tell()

    def expire(self, now: float) -> None:
        """Removes those whose grace is over."""
        for key, entry in list(self._entries.items()):
            if not entry.streams and entry.gone_at <= now:
                self._drop(key)
        self._tell()

    def _leave(self, key: _Key, entry: _Entry, stream: int, until: float, at_once: bool) -> None:
        entry.streams.discard(stream)
        if entry.streams:
            return
        entry.gone_at = until
        if at_once:
            self._drop(key)

    def _tell(self) -> None:
        newest: dict[object, int] = {}
        for entry in self._entries.values():
            of = _workload(entry.registration)
            newest[of] = max(newest.get(of, 0), entry.began)
        there = (self._entries[key] for key in sorted(self._entries))
        found = tuple(
            entry.registration for entry in there if newest[_workload(entry.registration)] == entry.began
        )
        if found != self._told:
            self._told = found
            self._on_change(found)


class Joining:
    """One stream's conversation: its identity from the first message, then its reports."""

    def __init__(self) -> None:
        self._identity: Registration | None = None

    def received(self, message: Any) -> Registration | None:
        """The registration that a HealthCheckRequestOrEndpointHealthResponse amounts to, if any.

        RegistrationError: what was said can't be used.
        """
        if message.HasField("health_check_request"):
            if not message.health_check_request.HasField("node"):
                raise RegistrationError("the health check request carries no node")
            self._identity = identity(message.health_check_request.node)
            return None
        if self._identity is None:
            raise RegistrationError("endpoints before the health check request that says whose they are")
        return _located(self._identity, message.endpoint_health_response)


def specifier() -> Any:
    """The server's reply: how often to report."""
    return pb.HealthCheckSpecifier(interval=pb.duration(REPORT_SECONDS))


def identity(node: Any) -> Registration:
    """A registration without address from node metadata. RegistrationError: it can't be used."""
    if not node.id or len(node.id) > MAX_TEXT:
        raise RegistrationError(f"node.id has {len(node.id)} characters; 1 to {MAX_TEXT} are allowed")
    if len(node.metadata.fields) > MAX_LABELS:
        raise RegistrationError(f"metadata has more than {MAX_LABELS} fields")
    metadata = {name: value for name, value in node.metadata.fields.items() if name in _FIELDS}
    ports = _numbers(metadata.get("PORTS"))
    return Registration(
        id=node.id,
        namespace=_name("NAMESPACE", metadata.get("NAMESPACE"), hosts.namespace),
        service_account=_name("SERVICE_ACCOUNT", metadata.get("SERVICE_ACCOUNT"), hosts.dns_name),
        labels=_labels(metadata.get("LABELS")),
        address="",
        ports=ports,
        locality=_locality(node.locality, metadata.get("LOCALITY")),
        weight=_number("WEIGHT", metadata["WEIGHT"], MAX_WEIGHT) if "WEIGHT" in metadata else 1,
        node=_name(NODE_NAME, metadata[NODE_NAME], hosts.dns_name) if NODE_NAME in metadata else "",
        place=_place(node.id, metadata, {number for _, number in ports}),
    )


_OF_PLACES = ("UID", "NETNS", "APP_PORTS", "PROXY_PORT")
_FIELDS = frozenset(
    {"NAMESPACE", "SERVICE_ACCOUNT", "LABELS", "PORTS", "LOCALITY", "WEIGHT", NODE_NAME, *_OF_PLACES}
)
_UID = frozenset(f"{string.ascii_letters}{string.digits}._~-")


def _place(node_id: str, metadata: Mapping[str, Any], ports: Collection[int]) -> Place | None:
    """Where on its node a workload is; None: it is on none."""
    if NODE_NAME not in metadata:
        for name in _OF_PLACES:
            if name in metadata:
                raise RegistrationError(f"metadata {name} without {NODE_NAME}: it is of a node's workload")
        return None
    uid = _text("UID", metadata["UID"]) if "UID" in metadata else node_id
    if not uid or not _UID.issuperset(uid):
        raise RegistrationError(f"metadata UID is {uid[:80]!r}; letters, digits, ., _, ~ and - are allowed")
    netns = _text("NETNS", metadata["NETNS"]) if "NETNS" in metadata else ""
    if netns and (not netns.startswith("/") or posixpath.normpath(netns) != netns):
        raise RegistrationError(f"metadata NETNS is {netns[:80]!r}; the absolute path of a file is allowed")
    said = metadata.get("PROXY_PORT")
    proxy = _number("PROXY_PORT", said, 65535, least=0) if said is not None else 0
    if proxy and netns:
        raise RegistrationError("metadata PROXY_PORT with NETNS: what is captured needs no proxy")
    return Place(uid, netns, _app_ports(metadata.get("APP_PORTS"), ports), proxy)


def _app_ports(value: Any, ports: Collection[int]) -> tuple[tuple[int, int], ...]:
    found = _struct("APP_PORTS", value, MAX_PORTS) if value is not None else {}
    known = {str(number): number for number in ports}
    for port in found:
        if port not in known:
            raise RegistrationError(f"metadata APP_PORTS has {port[:80]!r}, which is not one of PORTS")
    return tuple(
        sorted((known[port], _number(f"APP_PORTS.{port}", own, 65535)) for port, own in found.items())
    )


def _located(who: Registration, response: Any) -> Registration | None:
    reports = list(response.endpoints_health)
    for cluster in response.cluster_endpoints_health:
        for locality in cluster.locality_endpoints_health:
            reports += locality.endpoints_health
    if len(reports) > MAX_PORTS:
        raise RegistrationError(f"{len(reports)} endpoints; at most {MAX_PORTS} are allowed")
    states = {report.health_status for report in reports}
    if not reports or states & {_UNHEALTHY, _TIMEOUT}:
        return None
    addresses = {_address(report.endpoint.address.socket_address) for report in reports}
    if len(addresses) > 1:
        raise RegistrationError(f"endpoints at several addresses: {', '.join(sorted(addresses))}")
    (address,) = addresses
    if who.place is not None and not who.place.netns and address == APPLICATION_HOST:
        for _, number in who.ports:
            if who.place.app_port(number) == number:
                raise RegistrationError(
                    f"port {number} at {address} is the application's own; APP_PORTS must name another"
                )
    ports = ",".join(f"{name}:{number}" for name, number in who.ports)
    return replace(who, id=f"{who.id}@{address}/{ports}", address=address, draining=_DRAINING in states)


def _address(socket: Any) -> str:
    report = Report()
    endpoints.ip(socket.address, report)
    for finding in report:
        text = socket.address[:80]
        raise RegistrationError(f"address {text!r} is {finding.message}; {finding.allowed} is allowed")
    found = ipaddress.ip_address(socket.address)
    if found.is_multicast:
        raise RegistrationError(f"address {found} is not the address of a server")
    return str(found)


def _locality(given: Any, metadata: Any) -> Locality:
    """From metadata, else from the node; a part is left out only at the end."""
    parts = [given.region, given.zone, given.sub_zone]
    if metadata is not None:
        text = _text("LOCALITY", metadata)
    else:
        text = "/".join(parts).rstrip("/") if any(parts) else ""
        if any("/" in part for part in parts):
            raise RegistrationError(f"locality {text[:80]!r} has a / in one of its parts")
    if not text:
        return Locality()
    if len(text) > MAX_TEXT or not text.isprintable() or not localities.plain(text):
        raise RegistrationError(f"locality {text[:80]!r} is not region, region/zone or region/zone/subzone")
    return Locality.parse(text)


def _text(name: str, value: Any) -> str:
    if value.WhichOneof("kind") != "string_value":
        raise RegistrationError(f"metadata {name} is not a text")
    text = str(value.string_value)
    if len(text) > MAX_TEXT or not text.isprintable():
        raise RegistrationError(f"metadata {name} is {text[:80]!r}; at most {MAX_TEXT} printable characters")
    return text


def _name(name: str, value: Any, allowed: Callable[[str], bool]) -> str:
    text = (_text(name, value) if value is not None else "") or "default"
    if not allowed(text):
        raise RegistrationError(f"metadata {name} is {text[:80]!r}; {_SAID[allowed]} are allowed")
    return text


_SAID: Mapping[Callable[[str], bool], str] = {
    hosts.namespace: hosts.DNS_LABEL,
    hosts.dns_name: "lower case letters, digits, - and .",
}


def _struct(name: str, value: Any, limit: int) -> Mapping[str, Any]:
    if value.WhichOneof("kind") != "struct_value":
        raise RegistrationError(f"metadata {name} is not an object")
    fields: Mapping[str, Any] = value.struct_value.fields
    if len(fields) > limit:
        raise RegistrationError(f"metadata {name} has {len(fields)} fields; at most {limit} are allowed")
    return fields


def _labels(value: Any) -> tuple[tuple[str, str], ...]:
    if value is None:
        return ()
    found = _struct("LABELS", value, MAX_LABELS)
    for name in found:
        if not name or len(name) > 2 * MAX_TEXT:
            raise RegistrationError(f"metadata LABELS has a name of {len(name)} characters")
    labels = {name: _text(f"LABELS.{name}", text) for name, text in found.items()}
    report = Report()
    hosts.labels(labels, report)
    for finding in report:
        raise RegistrationError(
            f"metadata LABELS: {finding.message}, found {finding.found}; allowed: {finding.allowed}"
        )
    return tuple(sorted(labels.items()))


def _numbers(value: Any) -> tuple[tuple[str, int], ...]:
    if value is None:
        raise RegistrationError("metadata PORTS is missing; {name: number} is needed")
    found = _struct("PORTS", value, MAX_PORTS)
    if not found:
        raise RegistrationError("metadata PORTS is empty; {name: number} is needed")
    ports: list[tuple[str, int]] = []
    for name, number in found.items():
        if not hosts.is_label(name):
            raise RegistrationError(f"metadata PORTS has {name[:80]!r}; {hosts.LABEL} are allowed")
        ports.append((name, _number(f"PORTS.{name}", number, 65535)))
    return tuple(sorted(ports))


def _number(name: str, value: Any, most: int, least: int = 1) -> int:
    if value.WhichOneof("kind") != "number_value":
        raise RegistrationError(f"metadata {name} is not a number")
    number = value.number_value
    if not (least <= number <= most) or number != int(number):
        raise RegistrationError(
            f"metadata {name} is {number:g}; a whole number from {least} to {most} is allowed"
        )
    return int(number)
