"""A workload that a node's Envoy speaks for: who it is, what it serves, where it is.

It is said as an object, in a file or by `meshlib node run`:

    name: ratings-1                    # its name on the node
    service: ratings                   # gives the labels that Istio knows it by, if there are none
    namespace: default
    serviceAccount: ratings
    labels: {app: ratings, version: v1}
    ports: {http: 9080}
    netns: /run/netns/ratings-1        # without: nothing is captured (explicit mode)
    address: 10.0.0.5                  # without: the namespace's own, or the node's
    appPorts: {9080: 19080}            # where the application itself listens, if elsewhere
    proxyPort: 15080                   # without a namespace: an HTTP proxy at 127.0.0.1
    locality: region/zone
    weight: 1

What can't be used is a ConfigError that says which field, what was found and what is allowed.
"""

import posixpath
import string
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from meshlib.bootstrap import Bootstrap, bootstrap
from meshlib.errors import ConfigError

_SETTINGS = {
    "namespace": "namespace",
    "service": "service",
    "serviceAccount": "service_account",
    "labels": "labels",
    "ports": "ports",
    "address": "address",
    "locality": "locality",
    "weight": "weight",
}
"""Fields that are settings of any process in the mesh."""
_OWN = ("name", "netns", "appPorts", "proxyPort")
_NAME = frozenset(f"{string.ascii_letters}{string.digits}._~-")
_MOST = 63


@dataclass(frozen=True, slots=True)
class Workload:
    """One workload of a node."""

    name: str
    ports: tuple[tuple[str, int], ...]
    """By name; sorted."""
    namespace: str = "default"
    service_account: str = "default"
    labels: tuple[tuple[str, str], ...] = ()
    address: str = ""
    """Where others reach it; empty: not known yet."""
    netns: str = ""
    """The file of its network namespace; empty: it is in the node's own, and nothing is captured."""
    app_ports: tuple[tuple[int, int], ...] = ()
    proxy_port: int = 0
    locality: str = ""
    weight: int = 1

    @property
    def captured(self) -> bool:
        """Whether it needs to know nothing of the mesh."""
        return bool(self.netns)

    @classmethod
    def of(cls, said: Any, where: str = "") -> "Workload":
        """From an object as above; `where` begins what an error says. ConfigError."""
        if not isinstance(said, Mapping):
            raise ConfigError(f"{where}found {said!r}; allowed is an object with name and ports")
        for field in said:
            if field not in _SETTINGS and field not in _OWN:
                known = ", ".join((*_OWN[:1], *_SETTINGS, *_OWN[1:]))
                raise ConfigError(f"{where}{field}: there is no such field; there are {known}")
        name = said.get("name")
        if not isinstance(name, str) or not 0 < len(name) <= _MOST or not _NAME.issuperset(name):
            raise _wrong(where, "name", name, f"up to {_MOST} letters, digits, '.', '_', '~' and '-'")
        settings = _settings(said, where)
        if not settings.ports:
            raise _wrong(where, "ports", said.get("ports"), "name: number pairs, such as {http: 9080}")
        netns = said.get("netns") or ""
        if netns and not (isinstance(netns, str) and netns[0] == "/" and posixpath.normpath(netns) == netns):
            raise _wrong(where, "netns", netns, "the absolute path of a network namespace")
        proxy = said.get("proxyPort", 0)
        if not _is_port(proxy, least=0):
            raise _wrong(where, "proxyPort", proxy, "a whole number from 0 to 65535")
        if proxy and netns:
            raise _wrong(where, "proxyPort", proxy, "nothing beside `netns`: what is captured needs no proxy")
        return cls(
            name,
            settings.ports,
            settings.namespace,
            settings.service_account,
            settings.labels,
            settings.address,
            netns,
            _app_ports(said.get("appPorts"), settings.ports, where),
            proxy,
            settings.locality,
            settings.weight,
        )

    def said(self) -> dict[str, Any]:
        """The object that gives this one again."""
        names = {"service_account": "serviceAccount", "app_ports": "appPorts", "proxy_port": "proxyPort"}
        found = {names.get(one.name, one.name): getattr(self, one.name) for one in fields(self)}
        found |= {name: dict(found[name]) for name in ("ports", "labels")}
        found["appPorts"] = {str(port): own for port, own in self.app_ports}
        return {name: value for name, value in found.items() if value not in ("", 0, {})}


def _settings(said: Mapping[Any, Any], where: str) -> Bootstrap:
    given = {setting: said[field] for field, setting in _SETTINGS.items() if said.get(field) is not None}
    try:
        return bootstrap({}, **given)
    except ConfigError as error:
        spelled = {setting: field for field, setting in _SETTINGS.items()}
        setting, _, rest = str(error).partition(":")
        raise ConfigError(f"{where}{spelled.get(setting, setting)}:{rest}") from None


def _app_ports(said: Any, ports: tuple[tuple[str, int], ...], where: str) -> tuple[tuple[int, int], ...]:
    allowed = "port: number pairs, such as {9080: 19080}, the ports being among `ports`"
    if said is None:
        return ()
    known = {str(number): number for _, number in ports}
    if not isinstance(said, Mapping) or not all(
        str(port) in known and _is_port(own) for port, own in said.items()
    ):
        raise _wrong(where, "appPorts", said, allowed)
    return tuple(sorted((known[str(port)], own) for port, own in said.items()))


def _is_port(said: Any, least: int = 1) -> bool:
    return isinstance(said, int) and not isinstance(said, bool) and least <= said <= 65535


def _wrong(where: str, field: str, found: Any, allowed: str) -> ConfigError:
    return ConfigError(f"{where}{field}: found {found!r}; allowed is {allowed}")
