"""One line per rule of Istio's webhook: what is written, at which field it is told, and in which words."""

import pytest

from meshlib.control.istio.kinds import KINDS
from meshlib.control.istio.problem import Severity
from meshlib.control.sources.text import documents_in

TO = "route: [{destination: {host: b}}]"
HTTP = "hosts: [a], http: [{" + TO + ", %s}]"
DR = "host: a, trafficPolicy: {%s}"
LB = "host: a, trafficPolicy: {outlierDetection: {}, loadBalancer: {%s}}"
SHARES = LB % "localityLbSetting: {distribute: [%s]}"
GW = "servers: [{port: {number: 443, name: s, protocol: HTTPS}, hosts: ['*'], tls: {%s}}]"
SE = "hosts: [a.b], ports: [{number: 80, name: http, protocol: HTTP}], %s"
CAR = "egress: [{hosts: ['./*']}], %s"
IN = CAR % "ingress: [{port: {number: 80, protocol: HTTP}, %s}]"
RULE = "rules: [{from: [{source: {%s}}]}]"
JWT = "jwtRules: [{issuer: x, %s}]"

VIRTUAL_SERVICE = [
    (HTTP % "timeout: 0s", "http[0].timeout", "too short a duration, found 0s; allowed: at least 1ms"),
    (HTTP % "timeout: 1500us", "http[0].timeout", "finer than a millisecond"),
    (HTTP % "retries: {attempts: 1, perTryTimeout: 0s}", "http[0].retries.perTryTimeout", "too short"),
    (HTTP % "retries: {attempts: 0, perTryTimeout: 1s}", "http[0].retries.perTryTimeout", "no attempts"),
    (HTTP % "retries: {attempts: 1, retryOn: '499'}", "http[0].retries.retryOn", "unknown condition"),
    (HTTP % "headers: {request: {set: {':path': /}}}", "http[0].headers.request.set.:path", "be edited"),
    (HTTP % "headers: {request: {add: {':method': A}}}", "http[0].headers.request.add.:method", "be edited"),
    (HTTP % "headers: {request: {remove: [host]}}", "http[0].headers.request.remove[0]", "be edited"),
    (HTTP % "headers: {response: {set: {':status': '1'}}}", "http[0].headers.response.set.:status", "edited"),
    (HTTP % "headers: {response: {add: {Host: a}}}", "http[0].headers.response.add.Host", "be edited"),
    (
        HTTP % "rewrite: {authority: c}, headers: {request: {set: {host: d}}}",
        "http[0].headers.request.set.host",
        "the authority is c already",
    ),
    (HTTP % 'headers: {request: {set: {x: "a\\x01"}}}', "http[0].headers.request.set.x", "control char"),
    (HTTP % "match: [{uri: {regex: ''}}]", "http[0].match[0].uri.regex", "an empty pattern"),
    (HTTP % f"match: [{{uri: {{regex: {'a' * 1025}}}}}]", "http[0].match[0].uri.regex", "at most 1024"),
    (HTTP % "match: [{method: {prefix: ''}}]", "http[0].match[0].method.prefix", "an empty prefix"),
    (
        HTTP % "match: [{headers: {'@request.auth.claims.a': {exact: b}}}]",
        "http[0].match[0].headers.@request.auth.claims.a",
        "claims are for gateways only",
    ),
    (
        HTTP % "match: [{withoutHeaders: {'@Request.Auth.Claims[a]': {}}}]",
        "http[0].match[0].withoutHeaders.@Request.Auth.Claims[a]",
        "claims are for gateways only",
    ),
    *(
        (
            f"gateways: [mesh, g], {HTTP}" % f"match: [{{headers: {{'@request.auth.claims{rest}': {{}}}}}}]",
            f"http[0].match[0].headers.@request.auth.claims{rest}",
            "not a claim",
        )
        for rest in ("", ".a..b", "[]", "[a][]", "[a", "a", "[a].b[")
    ),
    (HTTP % "match: [{gateways: [./a]}]", "http[0].match[0].gateways[0]", "not a gateway"),
    (HTTP % "fault: {abort: {httpStatus: 100}}", "http[0].fault.abort.httpStatus", "200 to 599"),
    (HTTP % "fault: {abort: {http2Error: X}}", "http[0].fault.abort.http2Error", "does not support"),
    (
        HTTP % "fault: {delay: {fixedDelay: 1s, percentage: {value: 0.00001}}}",
        "http[0].fault.delay.percentage.value",
        "too small a percentage",
    ),
    (HTTP % "fault: {delay: {exponentialDelay: 1s}}", "http[0].fault.delay.exponentialDelay", "not support"),
    (HTTP % "corsPolicy: {allowMethods: [FETCH]}", "http[0].corsPolicy.allowMethods[0]", "not a method"),
    (HTTP % "corsPolicy: {allowHeaders: ['a b']}", "http[0].corsPolicy.allowHeaders[0]", "name of a header"),
    (HTTP % "corsPolicy: {maxAge: 1500ms}", "http[0].corsPolicy.maxAge", "whole seconds"),
    (HTTP % "corsPolicy: {allowOrigins: [{exact: ''}]}", "http[0].corsPolicy.allowOrigins[0]", "nothing to"),
    (
        HTTP % "mirror: {host: c}, mirrorPercentage: {value: 101}",
        "http[0].mirrorPercentage.value",
        "0 to 100",
    ),
    (
        "hosts: [a], http: [{redirect: {redirectCode: 200, uri: /}}]",
        "http[0].redirect.redirectCode",
        "no red",
    ),
    ("hosts: [a], http: [{directResponse: {status: 99}}]", "http[0].directResponse.status", "200 to 599"),
    (
        "hosts: [a], http: [{directResponse: {status: 200}, fault: {abort: {httpStatus: 500}}}]",
        "http[0].fault",
        "not with directResponse",
    ),
    (
        "hosts: [a], http: [{route: [{destination: {host: 1.2.3.4}}]}]",
        "http[0].route[0].destination.host",
        "",
    ),
    ("hosts: [a_b], http: [{" + TO + "}]", "hosts[0]", "not a host, found 'a_b'"),
    (
        "hosts: [a], http: [{route: [{destination: {host: b, subset: a.b}}]}]",
        "http[0].route[0].destination.subset",
        "not the name of a subset",
    ),
    ("hosts: [a], exportTo: ['~'], http: [{" + TO + "}]", "exportTo[0]", "not a namespace"),
    ("hosts: [a], tcp: [{match: [{port: 70000}], " + TO + "}]", "tcp[0].match[0].port", "1 to 65535"),
]
DESTINATION_RULE = [
    ("host: 1.2.3.4", "host", "not a host"),
    ("host: a, subsets: [{name: a.b}]", "subsets[0].name", "not the name of a subset"),
    ("host: a, subsets: [{name: b, labels: {v: 'a b'}}]", "subsets[0].labels.v", "value of a label"),
    ("host: a, trafficPolicy: {}", "trafficPolicy", "an empty policy"),
    (
        DR % "portLevelSettings: [{port: {number: 1}}]",
        "trafficPolicy.portLevelSettings[0]",
        "an empty policy",
    ),
    (DR % "connectionPool: {}", "trafficPolicy.connectionPool", "neither http nor tcp"),
    (
        DR % "connectionPool: {http: {idleTimeout: 0s}}",
        "trafficPolicy.connectionPool.http.idleTimeout",
        "at least 1ms",
    ),
    (
        DR % "connectionPool: {http: {maxRequestsPerConnection: -1}}",
        "trafficPolicy.connectionPool.http.maxRequestsPerConnection",
        "a negative limit",
    ),
    (
        DR % "connectionPool: {http: {http2KeepAlive: {interval: 1s}}}",
        "trafficPolicy.connectionPool.http.http2KeepAlive",
        "no timeout",
    ),
    (DR % "outlierDetection: {interval: 0s}", "trafficPolicy.outlierDetection.interval", "at least 1ms"),
    (
        DR % "outlierDetection: {minHealthPercent: 101}",
        "trafficPolicy.outlierDetection.minHealthPercent",
        "0 to 100",
    ),
    (
        DR % "tls: {mode: SIMPLE, insecureSkipVerify: true, subjectAltNames: [a]}",
        "trafficPolicy.tls.insecureSkipVerify",
        "stands with subjectAltNames",
    ),
    (LB % "warmup: {}", "trafficPolicy.loadBalancer.warmup", "no duration"),
    (
        LB % "warmup: {duration: 1s, aggression: 0}",
        "trafficPolicy.loadBalancer.warmup.aggression",
        "not a pace, found 0.0; allowed: more than 0",
    ),
    (LB % "warmup: {duration: 1s, aggression: .inf}", "trafficPolicy.loadBalancer.warmup.aggression", ""),
    (
        LB % "consistentHash: {useSourceIp: true, ringHash: {minimumRingSize: 8388609}}",
        "trafficPolicy.loadBalancer.consistentHash.ringHash.minimumRingSize",
        "more points than Envoy takes, found 8388609; allowed: at most 8388608",
    ),
    (
        LB % "consistentHash: {useSourceIp: true, minimumRingSize: 9000000}",
        "trafficPolicy.loadBalancer.consistentHash.minimumRingSize",
        "more points than Envoy takes",
    ),
    (
        LB % "consistentHash: {useSourceIp: true, maglev: {tableSize: 4}}",
        "trafficPolicy.loadBalancer.consistentHash.maglev.tableSize",
        "a prime",
    ),
    (
        LB % "localityLbSetting: {}, zoneAwareLbSetting: {}",
        "trafficPolicy.loadBalancer.zoneAwareLbSetting",
        "stands with localityLbSetting",
    ),
    (
        LB % "localityLbSetting: {failover: [{from: a, to: a}]}",
        "trafficPolicy.loadBalancer.localityLbSetting.failover[0]",
        "fails over to itself",
    ),
    (
        LB % "localityLbSetting: {failover: [{from: a, to: b/c}]}",
        "trafficPolicy.loadBalancer.localityLbSetting.failover[0].to",
        "not a region",
    ),
]
DISTRIBUTE = [
    ("{from: a/*/b, to: {c: 100}}", "[0].from", "not a locality, found 'a/*/b'"),
    ("{from: a//b, to: {c: 100}}", "[0].from", "not a locality"),
    ("{from: a, to: {c: 100}}, {from: a, to: {c: 100}}", "[1].from", "overlaps a, found 'a'"),
    ("{from: a/*, to: {c: 100}}, {from: a/b/c, to: {c: 100}}", "[1].from", "overlaps a/*"),
    ("{from: '*', to: {c: 100}}, {from: b, to: {c: 100}}", "[1].from", "overlaps *"),
    ("{from: a, to: {b: 50, c: 40}}", "[0].to", "the shares are not 100, found 90"),
    ("{from: a, to: {b: 100, c: 0}}", "[0].to.c", "not a share, found 0"),
    ("{from: a, to: {b: 50, b/c: 50}}", "[0].to.b/c", "overlaps b"),
]
GATEWAY = [
    ("servers: []", "", "no servers"),
    (
        "servers: [{port: {number: 0, name: a, protocol: HTTP}, hosts: ['*']}]",
        "servers[0].port.number",
        "not a",
    ),
    (
        "servers: [{port: {number: 1, name: a, protocol: X}, hosts: ['*']}]",
        "servers[0].port.protocol",
        "unkn",
    ),
    (
        "servers: [{port: {number: 1, name: a, protocol: HTTP}, hosts: [a]}]",
        "servers[0].hosts[0]",
        "a dot in it",
    ),
    (
        "servers: [{port: {number: 1, name: a, protocol: HTTP}, hosts: ['*a.b']}]",
        "servers[0].hosts[0]",
        "not a",
    ),
    (
        "servers: [{port: {number: 1, name: a, protocol: HTTP}, hosts: ['*'], bind: x}]",
        "servers[0].bind",
        "not an IP address",
    ),
    (
        "servers: [{port: {number: 1, name: a, protocol: HTTP, targetPort: 2}, hosts: ['*']}]",
        "servers[0].port.targetPort",
        "not of a Gateway",
    ),
    (
        "servers: [{port: {number: 1, name: a, protocol: TCP}, hosts: ['*'], tls: {httpsRedirect: true}}]",
        "servers[0].tls",
        "tls on a port of TCP",
    ),
    (
        GW % "mode: ISTIO_MUTUAL, credentialName: a",
        "servers[0].tls.credentialName",
        "the mesh's certificates",
    ),
    (
        GW % "mode: SIMPLE, credentialName: a, credentialNames: [b]",
        "servers[0].tls.credentialNames",
        "a second source",
    ),
    (
        GW % "mode: MUTUAL, serverCertificate: a, privateKey: b",
        "servers[0].tls.caCertificates",
        "MUTUAL needs it",
    ),
    (
        GW % "mode: SIMPLE, tlsCertificates: [{privateKey: b}]",
        "servers[0].tls.tlsCertificates[0].serverCertificate",
        "needs it",
    ),
    (GW % "mode: MUTUAL, credentialName: a, caCrl: b", "servers[0].tls.caCrl", "stands with credentialName"),
]
SERVICE_ENTRY = [
    ("hosts: ['*'], resolution: NONE", "hosts[0]", "all hosts of the world"),
    ("hosts: [1.2.3.4], resolution: NONE", "hosts[0]", "not a host"),
    ("hosts: [a.b], ports: [{number: 1, name: a.b}]", "ports[0].name", "not the name of a port"),
    ("hosts: [a.b], ports: [{number: 1, name: a, protocol: X}]", "ports[0].protocol", "unknown protocol"),
    (SE % "resolution: NONE, endpoints: [{address: 1.2.3.4}]", "endpoints", "with resolution NONE"),
    (SE % "resolution: STATIC, endpoints: [{address: a.b}]", "endpoints[0].address", "not an IP address"),
    (SE % "resolution: DNS, addresses: [10.0.0.0/8]", "addresses[0]", "a range with resolution DNS"),
    (SE % "resolution: DNS, endpoints: [{address: 'unix:///a'}]", "endpoints[0].address", "a Unix socket"),
    (
        SE % "resolution: STATIC, endpoints: [{address: 1.2.3.4, ports: {x: 1}}]",
        "endpoints[0].ports.x",
        "no such port",
    ),
    (
        SE % "resolution: DNS_ROUND_ROBIN, endpoints: [{address: a.b}, {address: c.d}]",
        "endpoints",
        "at most 1",
    ),
    (SE % "resolution: DYNAMIC_DNS", "hosts[0]", "no wildcard"),
    (
        "hosts: [a.b, c.d], ports: [{number: 1, name: a, protocol: TCP}], resolution: DNS",
        "hosts",
        "can't be told apart",
    ),
    (SE % "exportTo: ['~', a]", "exportTo[0]", "~ stands with others"),
    (SE % "workloadSelector: {labels: {a: '*'}}", "workloadSelector.labels.a", "a selector with a wildcard"),
]
SIDECAR = [
    ("{}", "", "an empty Sidecar"),
    ("egress: [{hosts: [a.b]}]", "egress[0].hosts[0]", "not namespace/host"),
    ("egress: [{hosts: [./a]}]", "egress[0].hosts[0]", "a dot in it"),
    ("egress: [{hosts: ['./*']}, {port: {number: 1}, hosts: ['./*']}]", "egress[0]", "not the last"),
    ("egress: [{hosts: ['./*'], port: {number: 0}}]", "egress[0].port.number", "0 with a Unix socket"),
    (IN % "defaultEndpoint: '10.0.0.1:80'", "ingress[0].defaultEndpoint", "not an endpoint"),
    (IN % "bind: x", "ingress[0].bind", "not an IP address"),
    (
        CAR % "ingress: [{port: {number: 1, protocol: TLS}, tls: {credentialName: a}}]",
        "ingress[0].tls.credentialName",
        "not of a Sidecar",
    ),
    (
        CAR % "outboundTrafficPolicy: {mode: ALLOW_ANY_DYNAMIC_DNS}",
        "outboundTrafficPolicy.mode",
        "whole mesh",
    ),
    (
        CAR % "outboundTrafficPolicy: {egressProxy: {host: a.b}}",
        "outboundTrafficPolicy.egressProxy",
        "REGISTRY_ONLY",
    ),
]
WORKLOADS = [
    ("WorkloadEntry", "address: 'unix://a'", "address", "not the path of a socket"),
    ("WorkloadEntry", "address: 1.2.3.4, ports: {a: 0}", "ports.a", "1 to 65535"),
    ("WorkloadEntry", "address: 1.2.3.4, ports: {a.b: 1}", "ports.a.b", "not the name of a port"),
    ("WorkloadEntry", "address: 1.2.3.4, locality: a/*", "locality", "not a locality"),
    ("WorkloadGroup", "template: {}, probe: {exec: {}}", "probe.exec.command", "no command"),
    (
        "WorkloadGroup",
        "template: {}, probe: {tcpSocket: {port: 1}, failureThreshold: -1}",
        "probe.failureThreshold",
        "a negative number",
    ),
    ("ProxyConfig", "selector: {matchLabels: {a: 'b*'}}", "selector.matchLabels.a", "with a wildcard"),
]
POLICIES = [
    ("AuthorizationPolicy", "action: CUSTOM, rules: [{}]", "provider", "CUSTOM without provider"),
    ("AuthorizationPolicy", RULE % "ipBlocks: [1.2.3]", "rules[0].from[0].source.ipBlocks[0]", "not an IP"),
    ("AuthorizationPolicy", RULE % "serviceAccounts: [a/]", "rules[0].from[0].source.serviceAccounts[0]", ""),
    (
        "AuthorizationPolicy",
        RULE % "trustDomains: [a*b]",
        "rules[0].from[0].source.trustDomains[0]",
        "middle",
    ),
    (
        "AuthorizationPolicy",
        RULE % "notServiceAccounts: [a], principals: [b]",
        "rules[0].from[0].source.notServiceAccounts",
        "stands with principals",
    ),
    (
        "AuthorizationPolicy",
        "rules: [{to: [{operation: {paths: ['/{**}/{*}']}}]}]",
        "rules[0].to[0].operation.paths[0]",
        "the last operator",
    ),
    (
        "AuthorizationPolicy",
        "rules: [{when: [{key: source.namespace, values: ['']}]}]",
        "rules[0].when[0].values[0]",
        "an empty value",
    ),
    ("PeerAuthentication", "portLevelMtls: {80: {mode: STRICT}}", "portLevelMtls", "no selector"),
    ("RequestAuthentication", JWT % "jwksUri: 'ftp://a'", "jwtRules[0].jwksUri", "not a URI"),
    ("RequestAuthentication", JWT % "timeout: 0s", "jwtRules[0].timeout", "at least 1ms"),
    (
        "RequestAuthentication",
        JWT % "outputClaimToHeaders: [{claim: a, header: 'b.c'}]",
        "jwtRules[0].outputClaimToHeaders[0].header",
        "not the name of a header",
    ),
    ("Telemetry", "tracing: [{providers: [{}]}]", "tracing[0].providers[0].name", "no name"),
    (
        "Telemetry",
        "tracing: [{customTags: {a: {literal: {}}}}]",
        "tracing[0].customTags.a.literal.value",
        "an empty text",
    ),
]
REFUSED = [
    *(("VirtualService", *row) for row in VIRTUAL_SERVICE),
    *(("DestinationRule", *row) for row in DESTINATION_RULE),
    *(
        (
            "DestinationRule",
            SHARES % given,
            f"trafficPolicy.loadBalancer.localityLbSetting.distribute{field}",
            says,
        )
        for given, field, says in DISTRIBUTE
    ),
    *(("Gateway", *row) for row in GATEWAY),
    *(("ServiceEntry", *row) for row in SERVICE_ENTRY),
    *(("Sidecar", *row) for row in SIDECAR),
    *WORKLOADS,
    *POLICIES,
]
WARNED = [
    (
        "VirtualService",
        "hosts: [a], http: [{match: [{uri: {exact: /a}}], redirect: {prefixRewrite: /b}}]",
        "http[0].redirect.prefixRewrite",
        "matches no prefix",
    ),
    (
        "VirtualService",
        HTTP % "fault: {abort: {percentage: {value: 1}}}",
        "http[0].fault.abort",
        "nothing is",
    ),
    ("DestinationRule", DR % "tls: {mode: ISTIO_MUTUAL, privateKey: a}", "trafficPolicy.tls.privateKey", ""),
    (
        "Gateway",
        GW % "mode: PASSTHROUGH, credentialName: a",
        "servers[0].tls.credentialName",
        "no certificates",
    ),
    ("ServiceEntry", SE % "resolution: STATIC", "resolution", "STATIC without endpoints"),
    ("Sidecar", "egress: [{hosts: ['*/*', a/b.c]}]", "egress[0].hosts", "takes in all others"),
    ("Sidecar", CAR % "workloadSelector: {}", "workloadSelector", "a selector without labels"),
    ("AuthorizationPolicy", "action: DENY, rules: [{to: [{operation: {paths: [/a]}}]}]", "rules[0]", "TCP"),
    ("Telemetry", "tracing: [{}, {}]", "tracing", "only one is used"),
]


def found(kind: str, spec: str) -> list[tuple[Severity, str, str]]:
    version = KINDS[kind].api_versions[0]
    text = f"apiVersion: {version}\nkind: {kind}\nmetadata: {{name: a}}\n"
    body = spec if spec.startswith("{") else f"{{{spec}}}"
    return [(p.severity, p.field, p.text) for p in documents_in(f"{text}spec: {body}\n", "f.yaml").problems]


@pytest.mark.parametrize(("kind", "spec", "field", "says"), REFUSED)
def test_it_is_refused(kind: str, spec: str, field: str, says: str) -> None:
    errors = [(at, text) for severity, at, text in found(kind, spec) if severity is Severity.ERROR]
    assert [at for at, _ in errors] == [f"spec.{field}".rstrip(".")]
    assert says in errors[0][1]


@pytest.mark.parametrize(("kind", "spec", "field", "says"), WARNED)
def test_it_is_taken_with_a_warning(kind: str, spec: str, field: str, says: str) -> None:
    severities = {severity for severity, _, _ in found(kind, spec)}
    assert Severity.ERROR not in severities
    assert any(at == f"spec.{field}" and says in text for severity, at, text in found(kind, spec))


@pytest.mark.parametrize(
    ("kind", "spec"),
    [
        ("VirtualService", HTTP % "headers: {request: {set: {Host: a}}}"),
        ("VirtualService", HTTP % "headers: {request: {add: {':authority': a}}}"),
        ("VirtualService", HTTP % "match: [{uri: {prefix: ''}}]"),
        ("VirtualService", HTTP % "match: [{withoutHeaders: {a: {regex: '*'}}}]"),
        ("VirtualService", "hosts: [1.2.3.4, b.example], http: [{" + TO + "}]"),
        ("DestinationRule", DR % "connectionPool: {tcp: {idleTimeout: 0s}}"),
        ("DestinationRule", SHARES % "{from: a/b/*, to: {c/*: 70, d/e/*: 30}}, {from: a/c, to: {c: 100}}"),
        ("DestinationRule", SHARES % "{from: a/b/c, to: {c: 100}}, {from: a/*, to: {c: 100}}"),
        ("DestinationRule", LB % "warmup: {duration: 1s, aggression: 0.5}"),
        ("DestinationRule", LB % "consistentHash: {useSourceIp: true, ringHash: {minimumRingSize: 8388608}}"),
        ("Sidecar", "egress: [{hosts: ['~/*', './*', 'a/*.b.c']}]"),
        ("ServiceEntry", SE % "exportTo: ['~'], resolution: DNS"),
    ],
)
def test_it_is_taken(kind: str, spec: str) -> None:
    assert [text for severity, _, text in found(kind, spec) if severity is not Severity.INFO] == []
