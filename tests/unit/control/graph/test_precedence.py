"""Which of several documents holds for a host and a client: Istio's order, seen in what is compiled."""

import random
from collections import Counter

import pytest

from meshlib.control.compile.compiler import GraphCompiler
from meshlib.control.compile.policy import policy_of
from meshlib.control.graph import build_graph
from meshlib.control.istio.destinationrule import SimpleLB
from meshlib.control.istio.meshconfig import MeshConfig
from meshlib.control.sources.text import documents_in
from meshlib.core.request import RequestHead
from meshlib.core.route.forward import pick_cluster
from meshlib.core.route.rule import DirectResponse, Forward, Route
from meshlib.dataplane.decode.routes import decode_routes
from meshlib.xds.kinds import Kind
from meshlib.xds.node import Client, Flavour

OLD, NEW = "2025-01-01T00:00:00Z", "2026-01-01T00:00:00Z"
FULL = "reviews.shop.svc.cluster.local"


def document(kind: str, title: str, spec: str, created: str = "") -> str:
    namespace, name = title.split("/")
    age = f', creationTimestamp: "{created}"' if created else ""
    return f"""---
apiVersion: networking.istio.io/v1
kind: {kind}
metadata: {{name: {name}, namespace: {namespace}{age}}}
spec: {spec}
"""


def service(title: str, *ports: int) -> str:
    listed = ", ".join(f"{{name: http-{port}, port: {port}}}" for port in ports or (80,))
    return document("Service", title, f"{{ports: [{listed}]}}").replace("networking.istio.io/v1", "v1")


def routes(
    title: str, host: str, created: str = "", more: str = "", match: str = "", gateways: str = ""
) -> str:
    """A VirtualService whose only rule is named like itself."""
    name = title.split("/")[1]
    gates = f"gateways: {gateways}, " if gateways else ""
    block = f"match: {match}, " if match else ""
    rule = f"{{name: {name}, {block}route: [{{destination: {{host: {name}.example}}}}]}}"
    return document(
        "VirtualService",
        title,
        f'{{hosts: ["{host}"], {gates}{more and more + ", "}http: [{rule}]}}',
        created,
    )


def mesh(settings: str) -> str:
    return (
        f"---\napiVersion: mesh.istio.io/v1alpha1\nkind: MeshConfig\nmetadata: {{name: mesh}}\n{settings}\n"
    )


def found(
    text: str, target: str = f"{FULL}:80", namespace: str = "web", path: str = "/", **labels: str
) -> Route:
    """The rule that takes a GET to `target`."""
    read = documents_in(text, "mesh.yaml")
    assert [str(problem) for problem in read.problems if problem.severity.name == "ERROR"] == []
    client = Client(Flavour.MESHLIB, namespace=namespace, labels=tuple(sorted(labels.items())))
    resources = GraphCompiler(build_graph(read.documents), "1").resources(client, [target])
    table = decode_routes(next(r for r in resources if r.kind is Kind.ROUTES).message())
    route = table.match(RequestHead("GET", "http", target, path, []), random.Random(1))
    assert route is not None
    return route


def name_of(
    text: str, target: str = f"{FULL}:80", namespace: str = "web", path: str = "/", **labels: str
) -> str:
    return found(text, target, namespace, path, **labels).name


def clusters_of(route: Route) -> list[str]:
    assert isinstance(route.action, Forward)
    return [cluster.name for cluster in route.action.clusters]


@pytest.mark.parametrize(
    ("documents", "namespace", "name"),
    [
        # Of two for one host the oldest has all of it; without a date the names decide.
        ((routes("shop/b", FULL, OLD), routes("shop/a", FULL, NEW)), "web", "b"),
        ((routes("shop/b", FULL), routes("shop/a", FULL)), "web", "a"),
        ((routes("shop/same", FULL, NEW), routes("a/other", FULL, NEW)), "web", "other"),
        # A namespace's private one goes first, then what is exported to it, then what is for all.
        ((routes("web/own", FULL, NEW, 'exportTo: ["."]'), routes("shop/all", FULL, OLD)), "web", "own"),
        ((routes("web/own", FULL, NEW, 'exportTo: ["."]'), routes("shop/all", FULL, OLD)), "third", "all"),
        ((routes("shop/to", FULL, NEW, "exportTo: [web]"), routes("shop/all", FULL, OLD)), "web", "to"),
        ((routes("shop/to", FULL, NEW, "exportTo: [web]"), routes("shop/all", FULL, OLD)), "third", "all"),
        (
            (
                routes("web/own", FULL, NEW, 'exportTo: ["."]'),
                routes("shop/to", FULL, OLD, "exportTo: [web]"),
            ),
            "web",
            "own",
        ),
        # Public ones of the client's own namespace have no privilege.
        ((routes("web/own", FULL, NEW), routes("shop/all", FULL, OLD)), "web", "all"),
        # What is not exported is not there.
        ((routes("shop/hidden", FULL, "", 'exportTo: ["."]'),), "web", "default"),
        ((routes("shop/hidden", FULL, "", "exportTo: [third]"),), "web", "default"),
        # The closest host holds, whatever its age.
        (
            (routes("shop/wide", "*.shop.svc.cluster.local", OLD), routes("shop/near", FULL, NEW)),
            "web",
            "near",
        ),
        (
            (routes("a/wide", "*.local", OLD), routes("a/near", "*.shop.svc.cluster.local", NEW)),
            "web",
            "near",
        ),
        ((routes("shop/short", "reviews"),), "web", "short"),
        # A name with a dot is never completed, one without belongs to its document's namespace.
        ((routes("shop/dotted", "reviews.shop"),), "web", "default"),
        ((routes("web/short", "reviews"),), "web", "default"),
        # Gateways bind others than clients.
        ((routes("shop/gated", FULL, gateways="[gw]"), routes("shop/plain", FULL, NEW)), "web", "plain"),
        ((routes("shop/both", FULL, gateways="[gw, mesh]"),), "web", "both"),
        ((routes("shop/rule", FULL, gateways="[gw]", match="[{gateways: [mesh]}]"),), "web", "default"),
        ((routes("shop/rule", FULL, gateways="[gw, mesh]", match="[{gateways: [mesh]}]"),), "web", "rule"),
        ((routes("shop/rule", FULL, match="[{gateways: [gw]}]"),), "web", "default"),
    ],
)
def test_one_virtual_service_has_the_host(documents: tuple[str, ...], namespace: str, name: str) -> None:
    text = service("shop/reviews") + "".join(documents)
    assert name_of(text, namespace=namespace) == name
    swapped = service("shop/reviews") + "".join(reversed(documents))
    assert name_of(swapped, namespace=namespace) == name


def test_the_meshs_export_holds_for_those_that_say_nothing() -> None:
    text = service("shop/reviews") + routes("shop/quiet", FULL) + mesh('defaultVirtualServiceExportTo: ["."]')
    assert name_of(text) == "default"
    assert name_of(text, namespace="shop") == "quiet"


@pytest.mark.parametrize(
    ("match", "namespace", "labels", "target", "name"),
    [
        ("[{sourceLabels: {app: web}}]", "web", {"app": "web", "v": "1"}, f"{FULL}:80", "rule"),
        ("[{sourceLabels: {app: web}}]", "web", {"app": "api"}, f"{FULL}:80", "default"),
        ("[{sourceNamespace: web}]", "web", {}, f"{FULL}:80", "rule"),
        ("[{sourceNamespace: shop}]", "web", {}, f"{FULL}:80", "default"),
        ("[{port: 81}]", "web", {}, f"{FULL}:81", "rule"),
        ("[{port: 81}]", "web", {}, f"{FULL}:80", "default"),
        # With gateways given, labels and namespace are not looked at.
        (
            "[{gateways: [mesh], sourceNamespace: shop, sourceLabels: {a: b}}]",
            "web",
            {},
            f"{FULL}:80",
            "rule",
        ),
        ("[{sourceNamespace: shop}, {sourceNamespace: web}]", "web", {}, f"{FULL}:80", "rule"),
    ],
)
def test_conditions_on_the_client(
    match: str, namespace: str, labels: dict[str, str], target: str, name: str
) -> None:
    text = service("shop/reviews", 80, 81) + routes("shop/rule", FULL, match=match)
    assert name_of(text, target, namespace, **labels) == name


SUBSET = "{{host: {host}, subsets: [{{name: {name}, labels: {{a: b}}}}]{more}}}"


def rule(title: str, host: str = FULL, more: str = "", created: str = "") -> str:
    spec = SUBSET.format(host=f'"{host}"', name=title.split("/")[1], more=f", {more}" if more else "")
    return document("DestinationRule", title, spec, created)


@pytest.mark.parametrize(
    ("documents", "subsets"),
    [
        ((rule("web/client"), rule("shop/owner"), rule("istio-system/root")), ["client"]),
        ((rule("shop/owner"), rule("istio-system/root")), ["owner"]),
        ((rule("istio-system/root"), rule("third/stranger")), ["root"]),
        ((rule("third/stranger"),), []),
        # The first place with any rule decides: a wide one of the client's hides a near one of the owner's.
        ((rule("web/wide", "*.local"), rule("shop/near")), ["wide"]),
        ((rule("shop/wide", "*.shop.svc.cluster.local"), rule("shop/near")), ["near"]),
        ((rule("shop/wider", "*.local"), rule("shop/wide", "*.cluster.local")), ["wide"]),
        ((rule("shop/owner", more='exportTo: ["."]'), rule("istio-system/root")), ["root"]),
        ((rule("shop/owner", more="exportTo: [web]"), rule("istio-system/root")), ["owner"]),
        ((rule("istio-system/root", more='exportTo: ["."]'),), []),
        ((rule("shop/b", created=OLD), rule("shop/a", created=NEW)), ["b", "a"]),
        ((rule("shop/short", "reviews"),), ["short"]),
        ((rule("web/short", "reviews"),), []),
    ],
)
def test_where_a_destination_rule_is_looked_for(documents: tuple[str, ...], subsets: list[str]) -> None:
    read = documents_in(service("shop/reviews") + "".join(documents), "mesh.yaml")
    seen = build_graph(read.documents).scope(Client(Flavour.MESHLIB, namespace="web")).rule(FULL)
    assert list(seen.subsets if seen else ()) == subsets


def test_the_oldest_policy_stands_whole_and_subsets_are_joined() -> None:
    policy = "trafficPolicy: {loadBalancer: {simple: RANDOM}}"
    pool = "trafficPolicy: {connectionPool: {tcp: {maxConnections: 3}}}"
    text = rule("shop/a", more=pool, created=NEW) + rule("shop/b", more=policy, created=OLD)
    read = documents_in(service("shop/reviews") + text, "mesh.yaml")
    seen = build_graph(read.documents).scope(Client(Flavour.MESHLIB, namespace="web")).rule(FULL)
    assert seen is not None
    assert list(seen.subsets) == ["b", "a"]
    made = policy_of(seen, "a", 80, MeshConfig())
    assert made.load_balancer is not None
    assert made.load_balancer.simple is SimpleLB.RANDOM
    assert made.connection_pool is None


@pytest.mark.parametrize(
    ("subset", "port", "balancer", "has_pool"),
    [
        ("", 80, SimpleLB.RANDOM, True),
        # A port's settings replace all of the policy around them.
        ("", 81, SimpleLB.ROUND_ROBIN, False),
        # A subset takes what it does not say from the host's.
        ("pool", 80, SimpleLB.RANDOM, True),
        ("balancer", 80, SimpleLB.LEAST_REQUEST, True),
        ("balancer", 81, SimpleLB.LEAST_REQUEST, False),
        ("port", 80, SimpleLB.RANDOM, True),
        ("port", 81, SimpleLB.PASSTHROUGH, False),
        ("unknown", 80, SimpleLB.RANDOM, True),
    ],
)
def test_the_policy_of_a_subset_and_port(subset: str, port: int, balancer: SimpleLB, has_pool: bool) -> None:
    spec = """
  host: reviews
  trafficPolicy:
    loadBalancer: {simple: RANDOM}
    connectionPool: {tcp: {maxConnections: 3}}
    portLevelSettings: [{port: {number: 81}, loadBalancer: {simple: ROUND_ROBIN}}]
  subsets:
  - {name: pool, trafficPolicy: {connectionPool: {tcp: {maxConnections: 5}}}}
  - {name: balancer, trafficPolicy: {loadBalancer: {simple: LEAST_REQUEST}}}
  - name: port
    trafficPolicy: {portLevelSettings: [{port: {number: 81}, loadBalancer: {simple: PASSTHROUGH}}]}
"""
    read = documents_in(document("DestinationRule", "shop/rule", spec), "mesh.yaml")
    seen = build_graph(read.documents).scope(Client(Flavour.MESHLIB, namespace="shop")).rule(FULL)
    assert seen is not None
    made = policy_of(seen, subset, port, MeshConfig())
    assert made.load_balancer is not None
    assert (made.load_balancer.simple, made.connection_pool is not None) == (balancer, has_pool)
    if subset == "pool":
        assert made.connection_pool is not None
        assert made.connection_pool.tcp is not None
        assert made.connection_pool.tcp.max_connections == 5


def exported_service(value: str) -> str:
    made = service("shop/reviews")
    return made.replace(
        "namespace: shop", f'namespace: shop, annotations: {{networking.istio.io/exportTo: "{value}"}}'
    )


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (service("shop/reviews"), "default"),
        (exported_service("."), "allow_any"),
        (exported_service("web"), "default"),
        (exported_service("third,web"), "default"),
        (exported_service("~"), "allow_any"),
        (service("shop/reviews") + mesh('defaultServiceExportTo: ["."]'), "allow_any"),
        (exported_service("*") + mesh('defaultServiceExportTo: ["."]'), "default"),
    ],
)
def test_services_are_seen_where_they_are_exported(text: str, name: str) -> None:
    assert name_of(text) == name


def sidecar(title: str, hosts: str, more: str = "") -> str:
    return document("Sidecar", title, f"{{egress: [{{hosts: {hosts}}}]{more and ', ' + more}}}")


@pytest.mark.parametrize(
    ("documents", "name"),
    [
        (sidecar("web/a", '["./*"]'), "allow_any"),
        (sidecar("web/a", '["shop/*"]'), "rule"),
        (sidecar("web/a", f'["*/{FULL}"]'), "rule"),
        (sidecar("web/a", '["shop/other.example"]'), "allow_any"),
        (sidecar("web/a", '["~/*"]'), "allow_any"),
        (sidecar("web/a", '["~/*"]', "outboundTrafficPolicy: {mode: REGISTRY_ONLY}"), "block_all"),
        (sidecar("istio-system/a", '["./*"]'), "allow_any"),
        (sidecar("istio-system/root", '["./*"]') + sidecar("web/own", '["shop/*"]'), "rule"),
        (sidecar("third/a", '["./*"]'), "rule"),
        (sidecar("web/a", '["./*"]', "workloadSelector: {labels: {app: api}}"), "rule"),
        (sidecar("web/a", '["./*"]', "workloadSelector: {labels: {app: web}}"), "allow_any"),
        (
            sidecar("web/a", '["./*"]')
            + sidecar("web/b", '["shop/*"]', "workloadSelector: {labels: {app: web}}"),
            "rule",
        ),
    ],
)
def test_a_sidecar_bounds_what_is_seen(documents: str, name: str) -> None:
    text = service("shop/reviews") + routes("shop/rule", FULL) + documents
    assert name_of(text, app="web") == name


def test_destinations_of_what_a_sidecar_lets_through_are_seen() -> None:
    own = routes("web/front", "front.web.svc.cluster.local").replace("front.example", FULL)
    text = service("shop/reviews") + service("web/front") + own + sidecar("web/a", '["./*"]')
    assert name_of(text) == "default"


def delegating(root: str, rules: str, more: str = "") -> str:
    spec = f"{{hosts: [{FULL}], http: [{{name: root, {root}delegate: {{name: part, namespace: parts}}}}]}}"
    part = f"{{{more}http: [{rules}]}}"
    return document("VirtualService", "shop/root", spec) + document("VirtualService", "parts/part", part)


TO = "route: [{destination: {host: part}}]"


@pytest.mark.parametrize(
    ("root", "part", "name"),
    [
        ("", "", "root-part"),
        ("match: [{uri: {prefix: /a}}], ", "", "root-part"),
        ("match: [{uri: {prefix: /a}}], ", "match: [{uri: {prefix: /a/b}}], ", "root-part"),
        ("match: [{uri: {prefix: /a}}], ", "match: [{uri: {exact: /a/b}}], ", "root-part"),
        ("match: [{uri: {prefix: /a}}], ", "match: [{method: {exact: GET}}], ", "root-part"),
        ("", "match: [{uri: {regex: /a.*}}], ", "root-part"),
        # What does not lie within the root's match is left out.
        ("match: [{uri: {prefix: /a/b}}], ", "match: [{uri: {prefix: /a}}], ", "default"),
        ("match: [{uri: {prefix: /b}}], ", "match: [{uri: {prefix: /a}}], ", "default"),
        ("match: [{uri: {exact: /a/b}}], ", "match: [{uri: {prefix: /a/b}}], ", "default"),
        ("match: [{uri: {regex: /a.*}}], ", "match: [{uri: {regex: /a/.*}}], ", "default"),
        ("match: [{uri: {prefix: /a}, ignoreUriCase: true}], ", "match: [{uri: {prefix: /a}}], ", "default"),
        ("match: [{sourceNamespace: web}], ", "match: [{uri: {prefix: /a}}], ", "default"),
        ("match: [{sourceNamespace: web}], ", "match: [{sourceNamespace: web}], ", "root-part"),
        ("match: [{port: 80}], ", "match: [{port: 81}], ", "default"),
        ("match: [{sourceLabels: {app: web}}], ", "match: [{sourceLabels: {app: api}}], ", "default"),
        ("match: [{gateways: [mesh]}], ", "match: [{gateways: [gw]}], ", "default"),
    ],
)
def test_a_delegates_match_lies_within_its_roots(root: str, part: str, name: str) -> None:
    text = service("shop/reviews") + delegating(root, f"{{name: part, {part}{TO}}}")
    assert name_of(text, path="/a/b", app="web") == name


def test_a_delegate_takes_what_it_does_not_say_from_its_root() -> None:
    text = delegating(
        "timeout: 3s, retries: {attempts: 5}, ", f"{{name: part, {TO}, retries: {{attempts: 1}}}}"
    )
    route = found(service("shop/reviews") + text)
    assert isinstance(route.action, Forward)
    assert route.action.retry is not None
    assert (route.action.timeout, route.action.retry.retries) == (3.0, 1)
    assert clusters_of(route) == ["outbound|80||part.parts.svc.cluster.local"]


def test_a_delegate_that_is_missing_hidden_or_delegates_leaves_its_rule_out() -> None:
    hidden = delegating("", f"{{name: part, {TO}}}", 'exportTo: ["."], ')
    assert name_of(service("shop/reviews") + hidden) == "default"
    alone = hidden[: hidden.rindex("---")]
    assert name_of(service("shop/reviews") + alone) == "default"


def test_the_default_retries_and_the_meshs() -> None:
    text = service("shop/reviews")
    action = found(text).action
    assert isinstance(action, Forward)
    assert action.retry is not None
    assert action.retry.retries == 2
    assert action.retry.status_codes == frozenset()
    fewer = found(text + mesh("defaultHttpRetryPolicy: {attempts: 1, retryOn: '5xx,503'}")).action
    assert isinstance(fewer, Forward)
    assert fewer.retry is not None
    assert fewer.retry.retries == 1
    assert fewer.retry.status_codes == frozenset({503})
    none = found(text + mesh("defaultHttpRetryPolicy: {attempts: 0}")).action
    assert isinstance(none, Forward)
    assert none.retry is None


@pytest.mark.parametrize(
    ("host", "target", "name"),
    [
        # Without a service a host is known at port 80 alone.
        ("nowhere.example", "nowhere.example:80", "rule"),
        ("nowhere.example", "nowhere.example:81", "allow_any"),
        ("*.example", "nowhere.example:80", "rule"),
        # At no port that its service lacks, not even at 80.
        ("other.shop.svc.cluster.local", "other.shop.svc.cluster.local:80", "allow_any"),
        ("other.shop.svc.cluster.local", "other.shop.svc.cluster.local:9080", "rule"),
        # A wildcard that means services means nothing else.
        ("*.shop.svc.cluster.local", "gone.shop.svc.cluster.local:80", "allow_any"),
        ("*.shop.svc.cluster.local", f"{FULL}:80", "rule"),
    ],
)
def test_hosts_without_a_service_are_known_at_port_80(host: str, target: str, name: str) -> None:
    text = service("shop/reviews") + service("shop/other", 9080) + routes("shop/rule", host)
    assert name_of(text, target) == name


def test_a_host_without_a_rule_for_the_client_is_as_unknown() -> None:
    never = routes("a/never", "nowhere.example", match="[{sourceNamespace: third}]")
    assert name_of(never, "nowhere.example:80") == "allow_any"
    assert name_of(never + routes("a/wide", "*.example"), "nowhere.example:80") == "wide"


def test_hosts_that_are_not_known() -> None:
    assert clusters_of(found("", "unknown.example:80")) == ["PassthroughCluster"]
    blocked = found(mesh("outboundTrafficPolicy: {mode: REGISTRY_ONLY}"), "unknown.example:80")
    assert (blocked.name, blocked.action) == ("block_all", DirectResponse(502, blocks=True))


@pytest.mark.parametrize(
    ("destination", "cluster"),
    [
        ("{host: reviews}", f"outbound|80||{FULL}"),
        ("{host: reviews, subset: v1}", f"outbound|80|v1|{FULL}"),
        ("{host: reviews, port: {number: 99}}", f"outbound|99||{FULL}"),
        # The only port of its service, else the port called.
        ("{host: other}", "outbound|9080||other.shop.svc.cluster.local"),
        ("{host: two}", "outbound|80||two.shop.svc.cluster.local"),
        ("{host: gone}", "outbound|80||gone.shop.svc.cluster.local"),
        ("{host: gone.web}", "outbound|80||gone.web"),
    ],
)
def test_which_cluster_a_destination_is(destination: str, cluster: str) -> None:
    text = service("shop/reviews") + service("shop/other", 9080) + service("shop/two", 81, 82)
    spec = f"{{hosts: [reviews], http: [{{route: [{{destination: {destination}}}]}}]}}"
    assert clusters_of(found(text + document("VirtualService", "shop/r", spec))) == [cluster]


def test_requests_are_shared_out_as_the_weights_say() -> None:
    weights = {"a": 70, "b": 0, "c": 30, "d": 5}
    shares = ", ".join(f"{{destination: {{host: {name}.x}}, weight: {w}}}" for name, w in weights.items())
    spec = f"{{hosts: [reviews], http: [{{route: [{shares}]}}]}}"
    route = found(service("shop/reviews") + document("VirtualService", "shop/r", spec))
    assert isinstance(route.action, Forward)
    dice, rolls = random.Random(7), 20_000
    seen = Counter(pick_cluster(route.action, dice).name for _ in range(rolls))
    assert "outbound|80||b.x" not in seen
    for name in "acd":
        share = weights[name] / 105
        # Five standard deviations of a binomial distribution.
        assert abs(seen[f"outbound|80||{name}.x"] - rolls * share) < 5 * (rolls * share * (1 - share)) ** 0.5


@pytest.mark.parametrize(
    ("said", "shares"),
    [
        ("mirror: {host: m.x}", [1_000_000]),
        ("mirror: {host: m.x}, mirrorPercentage: {value: 12.5}", [125_000]),
        ("mirror: {host: m.x}, mirrorPercentage: {value: 0}, mirrorPercent: 50", []),
        ("mirror: {host: m.x}, mirrorPercent: 50", [500_000]),
        ("mirror: {host: m.x}, mirrorPercent: 0", []),
        (
            "mirrors: [{destination: {host: m.x}, percentage: {value: 0.01}}, {destination: {host: m.x}}]",
            [100, 1_000_000],
        ),
        ("mirrors: [{destination: {host: m.x}, percentage: {value: 0}}]", []),
    ],
)
def test_shares_of_mirrors(said: str, shares: list[int]) -> None:
    spec = f"{{hosts: [reviews], http: [{{route: [{{destination: {{host: reviews}}}}], {said}}}]}}"
    route = found(service("shop/reviews") + document("VirtualService", "shop/r", spec))
    assert isinstance(route.action, Forward)
    assert [mirror.millionths for mirror in route.action.mirrors] == shares
    assert {mirror.cluster for mirror in route.action.mirrors} <= {"outbound|80||m.x"}
