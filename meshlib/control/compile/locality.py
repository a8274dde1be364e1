"""Which endpoints a client prefers by where they run: priorities and weights of localities.

Rules (Istio):

- `distribute` shares the requests of the client's locality out by weight; endpoints in localities that
  it does not name get none. `*` and `region/*` stand for many. Where it stands there is no failover, also
  for clients elsewhere.
- Failover acts only with outlier detection: own sub-zone first, then zone, then region, then the rest;
  `failover` names the region that comes before the rest, `failoverPriority` compares labels instead.
- `failover` beside `failoverPriority` decides among those that the labels make equal.
- Localities have weights beside `distribute`, and where `failover` or `failoverPriority` is said and acts.
- zoneAwareLbSetting does the same by region alone, also without outlier detection: within the own region all
  zones are equal. (Which of them a proxy prefers there, it knows by self-discovery only, which Istio leaves
  off.)
- A DestinationRule's settings stand in place of the mesh's, which are on unless said otherwise. Of the mesh's
  two kinds zoneAwareLbSetting counts.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from meshlib.control.compile.policy import Policy
from meshlib.control.istio.destinationrule import LocalityLoadBalancerSetting, ZoneAwareLoadBalancerSetting
from meshlib.control.istio.meshconfig import MeshConfig
from meshlib.control.registry import Endpoint
from meshlib.xds.node import Client, Locality

_LABELS = {
    "topology.kubernetes.io/region": "region",
    "topology.kubernetes.io/zone": "zone",
    "topology.istio.io/subzone": "subzone",
}


_NETWORK = "topology.istio.io/network"
_DISTANCES = 5
"""How many `_by_distance` tells apart."""


@dataclass(frozen=True, slots=True)
class Group:
    """Endpoints of one locality and priority."""

    locality: Locality
    priority: int
    weight: int
    endpoints: tuple[Endpoint, ...]


Setting = LocalityLoadBalancerSetting | ZoneAwareLoadBalancerSetting


def setting_of(policy: Policy, mesh: MeshConfig) -> Setting | None:
    """The setting in force; None: localities don't count."""
    balancer = policy.load_balancer
    own = (balancer.zone_aware_lb_setting or balancer.locality_lb_setting) if balancer else None
    setting: Setting = (
        own or mesh.zone_aware_lb_setting or mesh.locality_lb_setting or LocalityLoadBalancerSetting()
    )
    return None if setting.enabled is False else setting


def weighted(policy: Policy, mesh: MeshConfig) -> bool:
    """Whether requests are shared out among localities by their weights, before an endpoint is picked."""
    setting = setting_of(policy, mesh)
    if setting is None or isinstance(setting, ZoneAwareLoadBalancerSetting):
        return False
    fails_over = policy.outlier_detection is not None and bool(setting.failover or setting.failover_priority)
    return fails_over or bool(setting.distribute)


def groups_of(
    endpoints: Sequence[Endpoint], policy: Policy, mesh: MeshConfig, client: Client
) -> tuple[Group, ...]:
    """The endpoints by locality and priority, sorted."""
    setting, here = setting_of(policy, mesh), client.locality
    shares = _shares(setting, client) if setting and here.region else None
    if shares is not None:
        made = _distributed(endpoints, shares)
    else:
        made = _preferred(endpoints, setting if _fails_over(setting, policy) else None, client)
    # In the order that Envoy puts them in, on which the points of a ring depend.
    return tuple(
        sorted(made, key=lambda group: (group.priority, group.locality != here, _parts(group.locality)))
    )


def _fails_over(setting: Setting | None, policy: Policy) -> bool:
    if setting is None or isinstance(setting, ZoneAwareLoadBalancerSetting):
        return setting is not None
    return policy.outlier_detection is not None and not setting.distribute


def _preferred(endpoints: Sequence[Endpoint], setting: Setting | None, client: Client) -> list[Group]:
    """By priority; without a setting there is one."""
    by: dict[tuple[int, Locality], list[Endpoint]] = {}
    for endpoint in endpoints:
        priority = 0 if setting is None else _priority(setting, endpoint, client)
        by.setdefault((priority, endpoint.locality), []).append(endpoint)
    # Priorities must count up without a gap.
    dense = {old: new for new, old in enumerate(sorted({priority for priority, _ in by}))}
    return [
        Group(where, dense[priority], sum(e.weight for e in found), tuple(found))
        for (priority, where), found in by.items()
    ]


def _shares(setting: Setting, client: Client) -> dict[str, int] | None:
    if isinstance(setting, ZoneAwareLoadBalancerSetting):
        return None
    for rule in setting.distribute:
        if _within(client.locality, rule.from_):
            return dict(rule.to)
    return None


def _within(locality: Locality, pattern: str) -> bool:
    for part, own in zip(
        pattern.split("/"), (locality.region, locality.zone, locality.subzone), strict=False
    ):
        if part == "*":
            return True
        if part != own:
            return False
    return True


def _distributed(endpoints: Sequence[Endpoint], shares: dict[str, int]) -> list[Group]:
    made: list[Group] = []
    taken: set[Locality] = set()
    by: dict[Locality, list[Endpoint]] = {}
    for endpoint in endpoints:
        by.setdefault(endpoint.locality, []).append(endpoint)
    for pattern, weight in shares.items():
        found = [where for where in by if where not in taken and _within(where, pattern)]
        taken.update(found)
        total = sum(endpoint.weight for where in found for endpoint in by[where])
        for where in found:
            own = sum(endpoint.weight for endpoint in by[where])
            made.append(Group(where, 0, math.ceil(weight * own / total), tuple(by[where])))
    return made


def _parts(locality: Locality) -> tuple[str, str, str]:
    return locality.region, locality.zone, locality.subzone


def _priority(setting: Setting, endpoint: Endpoint, client: Client) -> int:
    """How far an endpoint stands behind others: the less the better."""
    labels, here = setting.failover_priority, client.locality
    far = _by_labels(labels, endpoint, client) * _DISTANCES if labels else 0
    by_labels = labels and not setting.failover and not isinstance(setting, ZoneAwareLoadBalancerSetting)
    return far if by_labels or not here.region else far + _by_distance(setting, endpoint.locality, here)


def _by_distance(setting: Setting, there: Locality, here: Locality) -> int:
    if there.region == here.region:
        if isinstance(setting, ZoneAwareLoadBalancerSetting):
            return 0
        if there.zone != here.zone:
            return 2
        return 0 if there.subzone == here.subzone else 1
    target = next((rule.to for rule in setting.failover if rule.from_ == here.region), None)
    return 3 if target is None or there.region == target else 4


def _by_labels(names: tuple[str, ...], endpoint: Endpoint, client: Client) -> int:
    own, others = client.label_map, dict(endpoint.labels)
    elsewhere = 0
    for number, name in enumerate(names):
        key, given, value = name.partition("=")
        wanted = value if given else _label(own, client.locality, key)
        if _label(others, endpoint.locality, key) == wanted:
            continue
        if number == 0 and name == _NETWORK:
            # Behind all of the own network, and compared further (Istio).
            elsewhere = len(names)
            continue
        return elsewhere + len(names) - number
    return elsewhere


def _label(labels: Mapping[str, str], locality: Locality, key: str) -> str:
    if key in _LABELS:
        return str(getattr(locality, _LABELS[key]))
    return labels.get(key, "")
