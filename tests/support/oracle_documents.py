"""Random Istio documents as YAML: services and rules of three namespaces, the odd included.

What is made is valid, so that all of it is served. Chances are 0 or 100 percent, but for weights: several
destinations may have one. Everything follows from the random.Random that is passed.
"""

import random
from collections.abc import Iterator
from typing import Any

import yaml
from support.oracle_routes import EDIT_NAMES, EDIT_VALUES, PATHS, PATTERNS, QUERY, TEXT_PATTERNS, TEXTS

from meshlib.control.istio.validity.hosts import overlap

Values = dict[str, Any]

NAMESPACES = ("default", "shop", "third")
PORTS = (80, 9080)
SERVICES = (
    ("reviews", "default", (9080,)),
    ("reviews", "shop", (80, 9080)),
    ("ratings", "default", (80,)),
    ("ratings", "third", (80, 9080)),
    ("web", "shop", (80,)),
)
ENTRIES = ("api.example.com", "*.example.com", "*.a.example.com", "reviews.default", "legacy")
RULE_HOSTS = (
    *("reviews", "reviews", "ratings", "Reviews", "reviews.default.svc.cluster.local", "web"),
    *("reviews.shop.svc.cluster.local", "*.default.svc.cluster.local", "*.svc.cluster.local", "*.local"),
    *("api.example.com", "*.example.com", "*.com", "legacy.internal", "reviews.default", "10.0.0.7"),
)
DESTINATIONS = (
    *("reviews", "ratings", "reviews.default.svc.cluster.local", "ratings.third.svc.cluster.local"),
    *("api.example.com", "nowhere", "Reviews.Shop.svc.cluster.local"),
)
LABELS: tuple[dict[str, str], ...] = ({}, {"app": "web"}, {"app": "web", "version": "v2"})
GATEWAYS = (["mesh"], ["mesh", "gw"], ["gw"], ["shop/gw"])
EXPORTS = (["*"], ["."], ["shop"], [".", "third"])
HEADERS = ("x-a", "X-B", "end-user", "user-agent", "cookie", "accept", "content-type")
REWRITES = ("/", "/new", "/new/", "/a%20b", "/n?x=1")
SUBSTITUTIONS = ("/x\\1", "/fixed", "\\0\\0", "/y\\0?z=1")
AUTHORITIES = ("other", "Other.Example.com:8080", "x")


def make_documents(dice: random.Random) -> list[Values]:
    """Services, DestinationRules and VirtualServices, some of them delegates."""
    made = list(_services(dice))
    made += [_destination_rule(dice, number) for number in range(dice.randint(0, 3))]
    delegates = [_delegate(dice, number) for number in range(dice.randint(0, 2))]
    made += delegates
    made += [_virtual_service(dice, number, delegates) for number in range(dice.randint(1, 4))]
    if _chance(dice, 0.2):
        made.append(_mesh(dice))
    if _chance(dice, 0.15):
        made.append(_sidecar(dice))
    dice.shuffle(made)
    return made


def to_yaml(documents: list[Values]) -> str:
    """All of them as one text."""
    return str(yaml.dump_all(documents, Dumper=yaml.CSafeDumper, sort_keys=False))


def _chance(dice: random.Random, share: float) -> bool:
    return dice.random() < share


def _document(
    kind: str, name: str, namespace: str, spec: Values, version: str = "networking.istio.io/v1"
) -> Values:
    return {
        "apiVersion": version,
        "kind": kind,
        "metadata": {"name": name, "namespace": namespace},
        "spec": spec,
    }


def _services(dice: random.Random) -> Iterator[Values]:
    for name, namespace, ports in SERVICES:
        if _chance(dice, 0.75):
            spec: Values = {"ports": [{"port": port, "name": f"http-{port}"} for port in ports]}
            if name == "web":
                spec["clusterIP"] = dice.choice(("None", "10.0.0.7"))
            made = _document("Service", name, namespace, spec, "v1")
            if _chance(dice, 0.15):
                exported = {"networking.istio.io/exportTo": ",".join(dice.choice(EXPORTS))}
                made["metadata"]["annotations"] = exported
            yield made
    for number, host in enumerate(ENTRIES):
        if _chance(dice, 0.3):
            ports = [{"number": port, "name": f"http-{port}", "protocol": "HTTP"} for port in PORTS]
            spec = {"hosts": [host], "ports": dice.sample(ports, dice.randint(1, 2)), "resolution": "NONE"}
            spec |= _export(dice)
            yield _document("ServiceEntry", f"entry-{number}", dice.choice(NAMESPACES), spec)


def _export(dice: random.Random) -> Values:
    return {"exportTo": dice.choice(EXPORTS)} if _chance(dice, 0.3) else {}


def _mesh(dice: random.Random) -> Values:
    made: Values = {
        "apiVersion": "mesh.istio.io/v1alpha1",
        "kind": "MeshConfig",
        "metadata": {"name": "mesh"},
    }
    made["outboundTrafficPolicy"] = {"mode": dice.choice(("ALLOW_ANY", "REGISTRY_ONLY"))}
    if _chance(dice, 0.5):
        made["defaultHttpRetryPolicy"] = {"attempts": dice.choice((0, 3))}
    if _chance(dice, 0.3):
        made["defaultVirtualServiceExportTo"] = ["."]
    return made


def _sidecar(dice: random.Random) -> Values:
    hosts = dice.sample(("./*", "shop/*", "*/reviews.default.svc.cluster.local", "*/*.example.com", "~/*"), 2)
    spec: Values = {"egress": [{"hosts": hosts}]}
    if _chance(dice, 0.5):
        spec["workloadSelector"] = {"labels": {"app": "web"}}
    if _chance(dice, 0.5):
        spec["outboundTrafficPolicy"] = {"mode": dice.choice(("ALLOW_ANY", "REGISTRY_ONLY"))}
    return _document("Sidecar", "sidecar", dice.choice(NAMESPACES), spec)


def _destination_rule(dice: random.Random, number: int) -> Values:
    hash_by: Values = dice.choice(
        ({"httpHeaderName": "x-a"}, {"httpQueryParameterName": "q"}, {"useSourceIp": True})
    )
    spec: Values = {
        "host": dice.choice((*DESTINATIONS, "*.svc.cluster.local")),
        "subsets": [{"name": name, "labels": {"version": name}} for name in ("v1", "v2")],
    }
    if _chance(dice, 0.5):
        spec["trafficPolicy"] = {"loadBalancer": {"consistentHash": hash_by}}
    return _document("DestinationRule", f"rule-{number}", dice.choice(NAMESPACES), spec | _export(dice))


def _virtual_service(dice: random.Random, number: int, delegates: list[Values]) -> Values:
    hosts: list[str] = []
    for host in dice.sample(RULE_HOSTS, dice.randint(1, 3)):
        if not any(overlap(host, other) for other in hosts):
            hosts.append(host)
    spec: Values = {"hosts": hosts}
    if _chance(dice, 0.25):
        spec["gateways"] = dice.choice(GATEWAYS)
    spec["http"] = [_rule(dice, f"r{number}-{index}", delegates) for index in range(dice.randint(1, 5))]
    made = _document("VirtualService", f"routes-{number}", dice.choice(NAMESPACES), spec | _export(dice))
    if _chance(dice, 0.3):
        made["metadata"]["creationTimestamp"] = f"2026-01-0{dice.randint(1, 9)}T00:00:00Z"
    return made


def _delegate(dice: random.Random, number: int) -> Values:
    rules = [_rule(dice, f"d{number}-{index}", []) for index in range(dice.randint(1, 3))]
    return _document(
        "VirtualService", f"delegate-{number}", dice.choice(NAMESPACES), {"http": rules} | _export(dice)
    )


def _rule(dice: random.Random, name: str, delegates: list[Values]) -> Values:
    made = _any_rule(dice, name, delegates)
    # The authority may be said in one place only.
    if "authority" in made.get("rewrite", {}):
        said = made.get("headers", {}).get("request", {}).get("set", {})
        for header in ("host", "Host", ":authority"):
            said.pop(header, None)
    return made


def _any_rule(dice: random.Random, name: str, delegates: list[Values]) -> Values:
    made: Values = {"name": name} if _chance(dice, 0.9) else {}
    if _chance(dice, 0.85):
        made["match"] = [make_match(dice) for _ in range(dice.choice((1, 1, 1, 2, 3)))]
        if _chance(dice, 0.3):
            made["match"][0]["name"] = "first"
    if _chance(dice, 0.3):
        made["headers"] = _headers(dice)
    kind = dice.random()
    if delegates and kind < 0.35:
        to = dice.choice(delegates)["metadata"]
        made["delegate"] = {"name": to["name"], "namespace": to["namespace"]}
        if _chance(dice, 0.5):
            made["match"] = [{"uri": {"prefix": dice.choice(("/", "/a"))}}]
        return made | _on_the_way(dice)
    if kind < 0.8:
        made["route"] = _route(dice)
        return made | _on_the_way(dice)
    if kind < 0.92:
        made["redirect"] = _redirect(dice)
        return made
    made["directResponse"] = {"status": dice.choice((200, 201, 204, 302, 403, 503, 599))}
    if made["directResponse"]["status"] != 204 and _chance(dice, 0.7):
        made["directResponse"]["body"] = dice.choice(({"string": "hello"}, {"bytes": "aGVsbG8="}))
    return made


def make_match(dice: random.Random) -> Values:
    """One block of conditions."""
    made: Values = {}
    if _chance(dice, 0.8):
        made["uri"] = dice.choice(
            (
                {"prefix": dice.choice(PATHS)},
                {"exact": dice.choice(PATHS)},
                {"regex": dice.choice(PATTERNS) or ".*"},
            )
        )
        if _chance(dice, 0.2):
            made["ignoreUriCase"] = True
    for name, values in (
        ("method", ("GET", "POST")),
        ("authority", ("reviews", "api.example.com")),
        ("scheme", ("http",)),
    ):
        if _chance(dice, 0.08):
            made[name] = {dice.choice(("exact", "prefix", "regex")): dice.choice(values)}
    for name, share in (("headers", 0.3), ("withoutHeaders", 0.15)):
        if _chance(dice, share):
            present = ({}, {"regex": "*"}) if name == "withoutHeaders" else ({},)
            made[name] = {header: _text(dice, present) for header in dice.sample(HEADERS, dice.randint(1, 2))}
    if _chance(dice, 0.2):
        made["queryParams"] = {
            name: _text(dice, ({},)) for name in dice.sample(QUERY[:-1], dice.randint(1, 2))
        }
    static: Values = {
        "port": dice.choice(PORTS),
        "sourceLabels": dice.choice(LABELS[1:]),
        "sourceNamespace": dice.choice(NAMESPACES),
        "gateways": dice.choice(GATEWAYS),
    }
    return made | {name: value for name, value in static.items() if _chance(dice, 0.08)}


def _text(dice: random.Random, present: tuple[Values, ...]) -> Values:
    """A condition on a text; `present`: those that ask only whether there is one."""
    kind = dice.choice(("exact", "exact", "prefix", "regex", ""))
    if not kind:
        return dice.choice(present)
    if kind == "exact":
        return {kind: dice.choice((*TEXTS, ""))}
    return {kind: dice.choice(TEXT_PATTERNS if kind == "regex" else TEXTS) or ".*"}


def _route(dice: random.Random) -> list[Values]:
    kind = dice.random()
    if kind < 0.6:
        return [_destination(dice, dice.choice((0, 1, 100)))]
    count = dice.randint(2, 3)
    if kind < 0.8:
        chosen = dice.randrange(count)
        return [_destination(dice, 100 if number == chosen else 0) for number in range(count)]
    return [_destination(dice, dice.choice((1, 30, 70))) for _ in range(count)]


def _destination(dice: random.Random, weight: int) -> Values:
    to: Values = {"host": dice.choice(DESTINATIONS)}
    if _chance(dice, 0.5):
        to["subset"] = dice.choice(("v1", "v2"))
    if _chance(dice, 0.4):
        to["port"] = {"number": dice.choice(PORTS)}
    made: Values = {"destination": to, "weight": weight}
    if _chance(dice, 0.3):
        made["headers"] = _headers(dice)
    return made


def _headers(dice: random.Random) -> Values:
    made: Values = {}
    for side in ("request", "response"):
        if not _chance(dice, 0.6):
            continue
        said = made[side] = {}
        for verb in ("set", "add"):
            if _chance(dice, 0.6):
                names = dice.sample(EDIT_NAMES, dice.randint(1, 3))
                said[verb] = {name: dice.choice(EDIT_VALUES) for name in names}
        if side == "request" and _chance(dice, 0.2):
            said.setdefault("set", {})[dice.choice(("host", "Host", ":authority"))] = dice.choice(AUTHORITIES)
        if _chance(dice, 0.3):
            said["remove"] = dice.sample(EDIT_NAMES, dice.randint(1, 2))
    return made


def _on_the_way(dice: random.Random) -> Values:
    made: Values = {}
    if _chance(dice, 0.3):
        made["rewrite"] = _rewrite(dice)
    if _chance(dice, 0.4):
        made["timeout"] = dice.choice(("2s", "250ms", "30s", "1m", "1h"))
    if _chance(dice, 0.3):
        made["retries"] = dice.choice(
            (
                {"attempts": 0},
                {"attempts": 3, "perTryTimeout": dice.choice(("1s", "3s", "20s"))},
                {"attempts": 1, "perTryTimeout": "2s", "retryOn": "5xx,503,reset", "backoff": "1ms"},
                {"attempts": 2, "retryRemoteLocalities": True, "retryIgnorePreviousHosts": False},
            )
        )
    kind = dice.random()
    if kind < 0.1:
        made["mirror"] = {"host": dice.choice(DESTINATIONS)}
        made |= dice.choice(({}, {"mirrorPercentage": {"value": 0}}, {"mirrorPercent": 100}))
    elif kind < 0.2:
        mirror = {
            "destination": {"host": dice.choice(DESTINATIONS)},
            "percentage": {"value": dice.choice((0, 100))},
        }
        made["mirrors"] = [mirror]
    return made


def _rewrite(dice: random.Random) -> Values:
    made: Values = {}
    kind = dice.random()
    if kind < 0.5:
        made["uri"] = dice.choice(REWRITES)
    elif kind < 0.8:
        pattern = dice.choice(("(/a.*)", "([a-z]+)", "(a)|(p)", "^/(api)"))
        made["uriRegexRewrite"] = {"match": pattern, "rewrite": dice.choice(SUBSTITUTIONS)}
    if not made or _chance(dice, 0.3):
        made["authority"] = dice.choice(AUTHORITIES)
    return made


def _redirect(dice: random.Random) -> Values:
    made: Values = {}
    if _chance(dice, 0.7):
        made["redirectCode"] = dice.choice((301, 302, 303, 307, 308))
    if _chance(dice, 0.4):
        made["authority"] = dice.choice(AUTHORITIES)
    if _chance(dice, 0.3):
        made["scheme"] = dice.choice(("http", "https"))
    kind = dice.random()
    if kind < 0.2:
        made["port"] = dice.choice((80, 443, 8443))
    elif kind < 0.5:
        made["derivePort"] = dice.choice(("FROM_PROTOCOL_DEFAULT", "FROM_REQUEST_PORT"))
    kind = dice.random()
    if kind < 0.4 or not made.keys() - {"redirectCode"}:
        made["uri"] = dice.choice(("/new", "/new?x=1", "/", "/a%2fb"))
    elif kind < 0.6:
        made["prefixRewrite"] = dice.choice(REWRITES)
    return made
