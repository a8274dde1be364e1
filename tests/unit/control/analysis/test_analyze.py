"""The analyses: codes, lines, and what suppresses them."""

import pytest

from meshlib.control.analysis.analyze import analyze
from meshlib.control.sources.text import documents_in

SERVICES = """\
apiVersion: v1
kind: Service
metadata: {name: a}
spec: {ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: two}
spec: {ports: [{name: http, port: 80}, {name: http-b, port: 81}]}
---
"""


def virtual_service(spec: str, name: str = "x", note: str = "") -> str:
    return (
        f"apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: {name}{note}}}\n"
        f"spec: {spec}\n---\n"
    )


def codes(text: str) -> list[tuple[str, str]]:
    read = documents_in(SERVICES + text, "f.yaml")
    assert not [p for p in read.problems if p.severity == "error"]
    return [(p.code, p.field) for p in analyze(read.documents)]


ROUTE = "{route: [{destination: {host: a}}]}"


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("{hosts: [a], http: [" + ROUTE + "]}", []),
        (
            "{hosts: [a], http: [{route: [{destination: {host: nope}}]}]}",
            [("IST0101", "spec.http[0].route[0].destination.host")],
        ),
        (
            "{hosts: [a], http: [{route: [{destination: {host: a, subset: v1}}]}]}",
            [("IST0101", "spec.http[0].route[0].destination.subset")],
        ),
        (
            "{hosts: [a], http: [{route: [{destination: {host: a, port: {number: 9}}}]}]}",
            [("IST0101", "spec.http[0].route[0].destination.port")],
        ),
        (
            "{hosts: [a], http: [{route: [{destination: {host: two}}]}]}",
            [("IST0112", "spec.http[0].route[0].destination")],
        ),
        ("{hosts: [a], gateways: [g], http: [" + ROUTE + "]}", [("IST0101", "spec.gateways[0]")]),
        (
            "{hosts: [a], http: [{match: [{gateways: [g]}], route: [{destination: {host: a}}]}]}",
            [("IST0101", "spec.http[0].match[0].gateways[0]")],
        ),
        ("{hosts: [a], http: [" + ROUTE + "," + ROUTE + "]}", [("IST0130", "spec.http[1]")]),
        ("{hosts: [a], http: [{delegate: {name: nope}}]}", [("IST0101", "spec.http[0].delegate")]),
        (
            "{hosts: [a], http: [{route: [{destination: {host: a}}], fault: {abort: {httpStatus: 500}}}]}",
            [],
        ),
    ],
)
def test_references_and_rules(spec: str, expected: list[tuple[str, str]]) -> None:
    assert codes(virtual_service(spec)) == expected


@pytest.mark.parametrize("kind", ["http", "tcp"])
@pytest.mark.parametrize(
    ("own", "named", "never"),
    [
        ("", "[mesh]", []),
        ("gateways: [mesh, g],", "[g, mesh, default/g]", []),
        ("gateways: [g],", "[mesh]", [0]),
        ("", "[mesh, g]", [1]),
    ],
)
def test_a_match_for_gateways_that_its_document_is_not_for(
    kind: str, own: str, named: str, never: list[int]
) -> None:
    """Istio looks at the document's list only, and istioctl says nothing."""
    gateway = (
        "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: g}\n"
        "spec: {servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: ['*']}]}\n---\n"
    )
    rule = f"{{match: [{{gateways: {named}}}], route: [{{destination: {{host: a}}}}]}}"
    text = gateway + virtual_service(f"{{hosts: [a], {own} {kind}: [{rule}]}}")
    expected = [("MESH0005", f"spec.{kind}[0].match[0].gateways[{at}]") for at in never]
    assert [one for one in codes(text) if one[0] != "IST0133"] == expected


def test_claims_need_a_request_authentication() -> None:
    gateway = (
        "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: g}\nspec:\n"
        "  servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: ['*']}]\n---\n"
    )
    claims = "headers: {'@Request.auth.claims[b]': {}}, withoutHeaders: {'@request.auth.claims.c': {}}"
    rule = f"{{match: [{{{claims}}}], route: [{{destination: {{host: a}}}}]}}"
    text = gateway + virtual_service(f"{{hosts: [a], gateways: [g], http: [{rule}]}}")
    place = "spec.http[0].match[0]"
    assert codes(text) == [
        ("IST0149", f"{place}.headers.@Request.auth.claims[b]"),
        ("IST0149", f"{place}.withoutHeaders.@request.auth.claims.c"),
    ]
    tokens = (
        "apiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {name: r}\n"
        "spec: {jwtRules: [{issuer: i, jwksUri: 'https://i.example/keys'}]}\n"
    )
    assert codes(text + tokens) == []


def test_two_virtual_services_of_one_host() -> None:
    one, two = (virtual_service("{hosts: [a], http: [" + ROUTE + "]}", name) for name in ("one", "two"))
    assert codes(one + two) == [("IST0109", "spec.hosts[0]")]


def test_an_annotation_suppresses() -> None:
    note = ', annotations: {galley.istio.io/analyze-suppress: "IST0101"}'
    assert codes(virtual_service("{hosts: [a], http: [{delegate: {name: nope}}]}", note=note)) == []


def test_a_destination_rule_of_no_host() -> None:
    rule = (
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: r}\nspec: {host: nope}\n"
    )
    assert codes(rule) == [("IST0174", "spec.host")]


def delegation(text: str) -> list[tuple[str, str]]:
    """(document, message) of what the analyses say of delegates."""
    read = documents_in(SERVICES + text, "f.yaml")
    return [(p.document, p.message) for p in analyze(read.documents, read.problems) if "delegate" in p.field]


def to(name: str, hosts: str = "") -> str:
    return f"{{{hosts}http: [{{delegate: {{name: {name}}}}}]}}"


def test_a_delegate_that_was_refused_is_not_missing() -> None:
    text = virtual_service(to("b", "hosts: [a], "), "a") + virtual_service("{http: [{timeout: 5}]}", "b")
    ((document, message),) = delegation(text)
    assert document == "VirtualService default/a"
    assert message.startswith(
        "the delegate was refused because of f.yaml:19: spec.http[0].timeout: not a dur"
    )
    assert message.endswith("; the rule is left out")


def test_a_cycle_of_delegates() -> None:
    for other in ("", "hosts: [two], "):
        text = virtual_service(to("b", "hosts: [a], "), "a") + virtual_service(to("a", other), "b")
        document, message = delegation(text)[0]
        assert document == "VirtualService default/a"
        assert message.startswith("a cycle of delegates: default/a -> default/b -> default/a; ")
    assert delegation(virtual_service(to("a", "hosts: [a], "), "a")) == [
        ("VirtualService default/a", "a cycle of delegates: default/a -> default/a; the rule is left out")
    ]


def test_a_cycle_of_refused_delegates_is_told_once() -> None:
    text = virtual_service(to("b"), "a") + virtual_service(to("a"), "b")
    assert delegation(text) == [
        ("VirtualService default/a", "a cycle of delegates: default/a -> default/b -> default/a")
    ]


PEERS = """
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: peers%s}
spec: {%smtls: {mode: %s}}
---
"""
RULE = """
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: r}
spec: {host: a, %s}
"""


@pytest.mark.parametrize(
    ("peers", "rule", "expected"),
    [
        (("", "", "STRICT"), "trafficPolicy: {tls: {mode: DISABLE}}", ["spec.trafficPolicy.tls.mode"]),
        (("", "", "DISABLE"), "trafficPolicy: {tls: {mode: ISTIO_MUTUAL}}", ["spec.trafficPolicy.tls.mode"]),
        (
            (", namespace: istio-system", "", "STRICT"),
            "subsets: [{name: v1, trafficPolicy: {portLevelSettings: [{port: {number: 80}, tls: {}}]}}]",
            ["spec.subsets[0].trafficPolicy.portLevelSettings[0].tls.mode"],
        ),
        (("", "", "PERMISSIVE"), "trafficPolicy: {tls: {mode: DISABLE}}", []),
        (("", "", "STRICT"), "trafficPolicy: {tls: {mode: ISTIO_MUTUAL}}", []),
        (("", "", "STRICT"), "trafficPolicy: {loadBalancer: {simple: RANDOM}}", []),
        (("", "selector: {matchLabels: {x: y}}, ", "STRICT"), "trafficPolicy: {tls: {mode: DISABLE}}", []),
        ((", namespace: other", "", "STRICT"), "trafficPolicy: {tls: {mode: DISABLE}}", []),
    ],
)
def test_clients_that_speak_what_their_servers_refuse(
    peers: tuple[str, str, str], rule: str, expected: list[str]
) -> None:
    found = [field for code, field in codes(PEERS % peers + RULE % rule) if code == "MESH0002"]
    assert found == expected


HOST_RULES = [
    (("trafficPolicy: {loadBalancer: {simple: RANDOM}}",) * 2, []),
    (
        (
            "trafficPolicy: {loadBalancer: {simple: RANDOM}}",
            "trafficPolicy: {connectionPool: {tcp: {maxConnections: 1}}}",
        ),
        ["spec.trafficPolicy"],
    ),
    (("subsets: [{name: v1, labels: {version: v1}}]", "trafficPolicy: {loadBalancer: {simple: RANDOM}}"), []),
    (("subsets: [{name: v1, labels: {version: v1}}]",) * 2, []),
    (
        (
            "subsets: [{name: v1, labels: {version: v1}}]",
            "subsets: [{name: v2}, {name: v1, labels: {version: v9}}]",
        ),
        ["spec.subsets[1].name"],
    ),
    (("subsets: [{name: v1}]", 'subsets: [{name: v2}], exportTo: ["."]'), ["spec.exportTo"]),
    (
        (
            "subsets: [{name: v1}]",
            "subsets: [{name: v1, labels: {a: b}}], workloadSelector: {matchLabels: {x: y}}",
        ),
        [],
    ),
]


@pytest.mark.parametrize(("specs", "fields"), HOST_RULES)
def test_destination_rules_of_one_host(specs: tuple[str, str], fields: list[str]) -> None:
    one, two = ((RULE % spec).replace("{name: r}", f"{{name: r{n}}}") for n, spec in enumerate(specs))
    found = [field for code, field in codes(one + "---" + two) if code == "MESH0003"]
    assert found == fields


def test_peer_authentications_of_the_same_workloads() -> None:
    both = PEERS % ("", "", "STRICT") + PEERS % ("2", "", "DISABLE")
    assert ("MESH0003", "spec") in codes(both)
    chosen = "selector: {matchLabels: {app: a}}, "
    assert ("MESH0003", "spec.selector") in codes(
        PEERS % ("", chosen, "STRICT") + PEERS % ("2", chosen, "DISABLE")
    )
    other = "selector: {matchLabels: {app: b}}, "
    assert codes(PEERS % ("", chosen, "STRICT") + PEERS % ("2", other, "DISABLE")) == []


def test_a_rule_for_many_hosts_that_speaks_what_one_of_them_refuses() -> None:
    wide = (RULE % "trafficPolicy: {tls: {mode: DISABLE}}").replace("host: a", "host: '*.local'")
    assert ("MESH0002", "spec.trafficPolicy.tls.mode") in codes(PEERS % ("", "", "STRICT") + wide)
    assert all(code != "MESH0002" for code, _ in codes(PEERS % ("", "", "PERMISSIVE") + wide))


def test_what_is_not_given_is_not_told_to_be_without_effect() -> None:
    for mode in ("DISABLE", "ISTIO_MUTUAL"):
        assert codes(RULE % f"trafficPolicy: {{tls: {{mode: {mode}}}}}") == []
    simple = RULE % "trafficPolicy: {tls: {mode: SIMPLE, credentialName: x}}"
    assert ("MESH0001", "spec.trafficPolicy.tls.credentialName") in codes(simple)
    hashed = "loadBalancer: {consistentHash: {useSourceIp: true, ringHash: {minimumRingSize: 64}}}"
    warming = "loadBalancer: {simple: ROUND_ROBIN, warmup: {duration: 1s}}"
    for policy in (hashed, warming):
        assert codes(RULE % f"trafficPolicy: {{{policy}}}") == []


ENTRY = """apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: e%s}
spec: {hosts: [x.test], ports: [{number: %s, name: %s, protocol: HTTP}], %s}
---
"""
STATIC = "resolution: STATIC, endpoints: [{address: 10.0.0.1}]"


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (("81", "http-b", STATIC), []),
        (("80", "http", STATIC), []),
        (("81", "http", STATIC), [("MESH0003", "spec.ports[0].name")]),
        (("81", "http-b", "resolution: DNS"), [("MESH0003", "spec.resolution")]),
        (("81", "http-b", STATIC + ", exportTo: ['.']"), [("MESH0003", "spec.exportTo")]),
    ],
)
def test_two_entries_of_one_host(other: tuple[str, str, str], told: list[tuple[str, str]]) -> None:
    assert codes(ENTRY % ("", "80", "http", STATIC) + ENTRY % (2, *other)) == told


def test_the_ports_of_a_host_are_those_of_all_its_entries() -> None:
    entries = ENTRY % ("", "80", "http", STATIC) + ENTRY % (2, "81", "http-b", STATIC)
    rule = "{hosts: [x.test], http: [{route: [{destination: {host: x.test, port: {number: 81}}}]}]}"
    assert codes(entries + virtual_service(rule)) == []
