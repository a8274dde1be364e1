"""The rules of a mesh in a test: documents and faults, compiled anew whenever they change.

It stands where a `local.LocalControl` stands. Rules:

- A document replaces the one of its kind, namespace and name. What is refused raises, and changes nothing.
- Hosts that the documents or the test name, and of which no document says that they exist, exist: a name
  without a dot is a Service of the workload's namespace, others are ServiceEntries, at all ports that are
  asked for or named.
- The endpoints of a service are those of `Upstreams`.
- A fault is what a VirtualService's `fault` would be, on each route that leads to its service.
"""

import ipaddress
import json
import logging
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meshlib.control.compile.compiler import GraphCompiler
from meshlib.control.compile.fault import FAULT
from meshlib.control.compile.percent import fraction
from meshlib.control.graph import Graph, build_graph
from meshlib.control.graph.hosts import covers, expand, is_wildcard
from meshlib.control.istio.document import AnyDocument
from meshlib.control.istio.problem import Problem, Severity
from meshlib.control.registry import Endpoint, Port, Registry, Service, services_of
from meshlib.control.sources.files import FileSource
from meshlib.control.sources.text import documents_in
from meshlib.errors import ConfigError
from meshlib.printable import printable
from meshlib.testing.upstreams import Upstreams
from meshlib.xds import pb
from meshlib.xds.grpc_status import STATUSES
from meshlib.xds.kinds import Kind
from meshlib.xds.names import ClusterName, inbound_port, split_authority
from meshlib.xds.node import Client
from meshlib.xds.snapshot import Resource

if TYPE_CHECKING:
    from meshlib.local import LocalSource

log = logging.getLogger(__name__)

_DOMAIN = "cluster.local"
_HTTP_PORT = 80


class Fault:
    """A fault that was switched on. It ends with `heal`, or with the `with` block."""

    def __init__(self, rules: "Rules", service: str, subset: str | None, message: Any, answers: Any) -> None:
        """`message`: an HTTPFault, None: none; `answers`: what the upstream does, None: as it is scripted."""
        self._rules = rules
        self.service = service
        self.subset = subset
        self.message = message
        self.answers = answers

    def concerns(self, host: str, subset: str) -> bool:
        """Whether it is one of that service, by its full host."""
        return host == self._rules.upstreams.full(self.service) and self.subset in (None, subset)

    def heal(self) -> None:
        """Ends it."""
        self._rules.heal([self])

    def __enter__(self) -> "Fault":
        return self

    def __exit__(self, *_: object) -> None:
        self.heal()

    def __repr__(self) -> str:
        where = self.service if self.subset is None else f"{self.service}, subset {self.subset}"
        return f"<Fault of {where}{'' if self in self._rules.faults else ', healed'}>"


def http_fault(abort: int | str | None, delay: float | None, percent: float) -> Any:
    """An HTTPFault; None: there is nothing to it. ValueError: no such status."""
    if abort is None and delay is None:
        return None
    made = pb.HTTPFault()
    if delay is not None:
        if delay < 0.001:
            raise ValueError(f"found the delay {delay:g} s; allowed is a millisecond or more")
        made.delay.fixed_delay.CopyFrom(pb.duration(delay))
        made.delay.percentage.CopyFrom(fraction(percent))
    if isinstance(abort, str):
        if abort not in STATUSES:
            raise ValueError(f"found the status {abort!r}; allowed is one of gRPC's, such as UNAVAILABLE")
        made.abort.grpc_status = STATUSES.index(abort)
        made.abort.percentage.CopyFrom(fraction(percent))
    elif abort is not None:
        if isinstance(abort, bool) or not 200 <= abort < 600:
            raise ValueError(f"found the status {abort!r}; allowed is one from 200 to 599")
        made.abort.http_status = abort
        made.abort.percentage.CopyFrom(fraction(percent))
    return made


class Rules:
    """What is in force in one test."""

    path = "meshlib.testing"

    def __init__(self, upstreams: Upstreams) -> None:
        self.upstreams = upstreams
        self.lock = threading.RLock()
        self.documents: dict[tuple[str, str, str], AnyDocument] = {}
        self.faults: list[Fault] = []
        """The last one of a service counts."""
        self._users: list[LocalSource] = []
        self._version = 0
        self._texts = 0
        self._compiler = _Compiler(self, "1.0")

    def __repr__(self) -> str:
        return f"<Rules: {len(self.documents)} documents, {len(self.faults)} faults>"

    def apply(self, given: str | Path, root: Path) -> None:
        """Takes YAML, a file or a folder; paths are looked for below `root`. ConfigError: it is refused."""
        namespace = self.upstreams.namespace
        if isinstance(given, str) and ("\n" in given or ": " in given):
            self._texts += 1
            read = documents_in(given, f"apply-{self._texts}.yaml", namespace)
            documents, problems = read.documents, read.problems
        else:
            try:
                loaded = FileSource(root / given, namespace).load()
            except OSError as error:
                raise ConfigError(f"{error}; a text of YAML has 'kind: …' in it") from None
            documents, problems = loaded.documents, loaded.problems
        _tell(problems)
        if not documents:
            raise ConfigError(f"{given!s:.80}: there is no document in it")
        with self.lock:
            self.documents |= {document.key: document for document in documents}
            every = self.documents.values()
            self.upstreams.know(service.host for one in every for service in services_of(one, _DOMAIN))
        self.changed()

    @property
    def trust_domain(self) -> str:
        """Of the mesh, as the documents say."""
        return str(build_graph(self.documents.values()).mesh.trust_domain)

    def put(self, fault: Fault) -> None:
        """A fault more."""
        with self.lock:
            self.faults.append(fault)
        self.changed()

    def heal(self, faults: Iterable[Fault]) -> None:
        """These are over."""
        with self.lock:
            gone = list(faults)
            self.faults = [one for one in self.faults if one not in gone]
        self.changed()

    def fault_of(self, cluster: str) -> Any:
        """The HTTPFault of requests to a cluster, or None."""
        name = ClusterName.parse(cluster)
        if name is None:
            return None
        found = (f.message for f in reversed(self.faults) if f.message and f.concerns(name.host, name.subset))
        return next(found, None)

    # As a LocalControl

    def use(self, user: "LocalSource") -> None:
        """Hands out to `user` at once."""
        with self.lock:
            if user not in self._users:
                self._users.append(user)
            user.refresh(self._compiler, "")

    def leave(self, user: "LocalSource") -> None:
        """`user` wants nothing any more."""
        with self.lock:
            if user in self._users:
                self._users.remove(user)

    def changed(self) -> None:
        """Hands out what is in force now."""
        with self.lock:
            self._version += 1
            self._compiler = _Compiler(self, f"1.{self._version}")
            for user in self._users:
                user.refresh(self._compiler, "")

    def after_fork_in_child(self) -> None:
        """A lock of its own."""
        self.lock = threading.RLock()
        self._users = []


def _tell(problems: Iterable[Problem]) -> None:
    errors = [problem for problem in problems if problem.severity is Severity.ERROR]
    if errors:
        raise ConfigError("\n".join(printable(str(problem)) for problem in errors))
    for problem in problems:
        log.warning("%s", printable(str(problem)))


class _Endpoints(Registry):
    """A registry whose endpoints are those of a test."""

    @classmethod
    def over(cls, registry: Registry, upstreams: Upstreams) -> "_Endpoints":
        made = cls.__new__(cls)
        made.__dict__.update(registry.__dict__)
        made.upstreams = upstreams
        return made

    upstreams: Upstreams

    def endpoints(self, service: Service, port: Port) -> tuple[Endpoint, ...]:
        """As scripted."""
        return self.upstreams.endpoints(service.host, port, super().endpoints(service, port))


class _Compiler:
    """Of one moment; see `closures.Compiler`."""

    def __init__(self, rules: Rules, version: str) -> None:
        self.version = version
        self._rules = rules

    def resources(self, client: Client, listeners: frozenset[str]) -> Iterator[Resource]:
        documents = list(self._rules.documents.values())
        graph = self._graph([*documents, *self._made(documents, listeners)])
        for resource in GraphCompiler(graph, self.version).resources(client, listeners):
            yield self._faulted(resource) if resource.kind is Kind.ROUTES else resource

    def _graph(self, documents: list[AnyDocument]) -> Graph:
        graph = build_graph(documents)
        graph.registry = _Endpoints.over(graph.registry, self._rules.upstreams)
        return graph

    def _made(self, documents: list[AnyDocument], listeners: Iterable[str]) -> Iterator[AnyDocument]:
        upstreams = self._rules.upstreams
        known = [service.host for document in documents for service in services_of(document, _DOMAIN)]
        hosts, ports = _named(documents)
        hosts |= dict.fromkeys(upstreams.hosts())
        hosts |= dict.fromkeys(upstreams.full(fault.service) for fault in self._rules.faults)
        ports |= {split_authority(n, _HTTP_PORT)[1] for n in listeners if inbound_port(n) is None}
        for host in hosts:
            if (
                not is_wildcard(host)
                and not _is_address(host)
                and not any(covers(one, host) for one in known)
            ):
                yield _existing(host, sorted(upstreams.ports(host) or ports or {_HTTP_PORT}))

    def _faulted(self, resource: Resource) -> Resource:
        message = resource.message()
        for host in message.virtual_hosts:
            for route in host.routes:
                places = [(route.route.cluster, route)] if route.HasField("route") else []
                places += [(one.name, one) for one in route.route.weighted_clusters.clusters]
                for cluster, place in places:
                    found = self._rules.fault_of(cluster)
                    if found is not None:
                        place.typed_per_filter_config[FAULT].CopyFrom(pb.pack(found))
        return Resource.of(resource.kind, resource.name, message)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _named(documents: Iterable[AnyDocument]) -> tuple[dict[str, None], set[int]]:
    """The full hosts that rules name, and the ports."""
    hosts: dict[str, None] = {}
    ports: set[int] = set()
    for document in documents:
        if document.kind == "DestinationRule":
            hosts[expand(document.spec.host, document.namespace)] = None
        if document.kind != "VirtualService":
            continue
        spec = document.spec
        hosts |= dict.fromkeys(expand(host, document.namespace) for host in spec.hosts)
        for rule in spec.http:
            led = [split.destination for split in rule.route]
            led += [rule.mirror, *(mirror.destination for mirror in rule.mirrors)]
            for to in led:
                if to is not None:
                    hosts[expand(to.host, document.namespace)] = None
                    ports |= {to.port.number} if to.port is not None and to.port.number else set()
    return hosts, ports


def _existing(host: str, ports: list[int]) -> AnyDocument:
    """A document that says that a host exists. ConfigError: there can't be such a host."""
    listed: list[dict[str, Any]] = [{"number": number, "name": f"http-{number}"} for number in ports]
    end = f".svc.{_DOMAIN}"
    name, _, namespace = host.removesuffix(end).partition(".")
    if host.endswith(end) and namespace:
        value: dict[str, Any] = {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {"ports": [{"port": port["number"], "name": port["name"]} for port in listed]},
        }
    else:
        value = {
            "apiVersion": "networking.istio.io/v1",
            "kind": "ServiceEntry",
            "metadata": {"name": host},
            "spec": {
                "hosts": [host],
                "ports": [{**port, "protocol": "HTTP"} for port in listed],
                "resolution": "STATIC",
                "workloadSelector": {"labels": {"meshlib.testing/host": host[:63]}},
            },
        }
    read = documents_in(json.dumps(value), "a service that a test names")
    _tell(read.problems)
    return read.documents[0]
