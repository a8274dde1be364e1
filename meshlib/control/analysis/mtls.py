"""Clients that are told to speak what their servers refuse.

What a rule is about is known by namespace: settings of single workloads and ports are left aside.
"""

from collections.abc import Iterator

from meshlib.control.analysis.world import World, full, problem
from meshlib.control.graph.peerauthentication import Mode, PeerAuthentications
from meshlib.control.istio.destinationrule import ClientTLSMode, ClientTLSSettings, TrafficPolicy
from meshlib.control.istio.document import FieldPath
from meshlib.control.istio.peerauthentication import MutualTLSMode
from meshlib.control.istio.problem import OTHER_TLS, Problem, Severity
from meshlib.control.istio.validity.hosts import covers


def analyze(world: World) -> Iterator[Problem]:
    """Plain text to a namespace that is STRICT, and mutual TLS to one that is DISABLE."""
    known = PeerAuthentications(world.of_kind("PeerAuthentication"), world.root)
    homes = {f"{d.name}.{d.namespace}.svc.cluster.local": d.namespace for d in world.of_kind("Service")}
    for rule in world.destination_rules:
        host = full(rule.spec.host, rule.namespace)
        found = (
            [home for name, home in homes.items() if covers(host, name)] if "*" in host else [homes.get(host)]
        )
        modes = [known.of_namespace(home) for home in dict.fromkeys(found) if home is not None]
        policies: list[tuple[FieldPath, TrafficPolicy | None]] = [
            (("spec", "traffic_policy"), rule.spec.traffic_policy)
        ]
        for index, subset in enumerate(rule.spec.subsets):
            policies.append((("spec", "subsets", index, "traffic_policy"), subset.traffic_policy))
        for path, policy in policies:
            for at, tls in _settings(path, policy):
                message = next(filter(None, (_refusal(tls.mode, mode) for mode in modes)), "")
                if message:
                    field = (*at, "tls", "mode")
                    yield problem(Severity.WARNING, OTHER_TLS, rule, field, message, tls.mode.value)


def _settings(path: FieldPath, policy: TrafficPolicy | None) -> Iterator[tuple[FieldPath, ClientTLSSettings]]:
    if policy is None:
        return
    if policy.tls is not None:
        yield path, policy.tls
    for index, level in enumerate(policy.port_level_settings):
        if level.tls is not None:
            yield (*path, "port_level_settings", index), level.tls


def _refusal(spoken: ClientTLSMode, mode: Mode) -> str:
    """Why such clients are refused; empty: they are not."""
    if mode.document is None:
        return ""
    where = f"{mode.document.title} ({mode.source})"
    if spoken is ClientTLSMode.DISABLE and mode.mode is MutualTLSMode.STRICT:
        return f"requests go in plain text, and {where} takes mutual TLS only"
    if spoken is ClientTLSMode.ISTIO_MUTUAL and mode.mode is MutualTLSMode.DISABLE:
        return f"requests go over mutual TLS, and {where} takes plain text only"
    return ""
