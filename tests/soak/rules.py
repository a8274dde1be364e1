"""The configuration: another one for each number. What the script of the soak relies on stays."""

from collections.abc import Mapping, Sequence

SERVICES = ("plain", "ratings", "reviews", "greeter")
BALANCERS = (
    "simple: ROUND_ROBIN",
    "simple: LEAST_REQUEST",
    "simple: RANDOM",
    "consistentHash: {httpHeaderName: x-user}",
)
_ENTRY = """
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: {service}-{port}}}
spec: {{address: 127.0.0.1, ports: {{http: {port}}}, labels: {{app: {service}}}}}
"""
_STRICT = """
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: istio-system}
spec: {mtls: {mode: STRICT}}
"""
_SERVICE = """
apiVersion: v1
kind: Service
metadata: {{name: {service}}}
spec:
  selector: {{app: {service}}}
  ports: [{{name: {name}, port: {port}, targetPort: {name}}}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: {service}}}
spec:
  host: {service}
  trafficPolicy:
    loadBalancer: {{{balancer}}}
    connectionPool:
      tcp: {{maxConnections: {most}}}
      http: {{maxRequestsPerConnection: {uses}, idleTimeout: {idle}s, h2UpgradePolicy: {upgrade}}}
    outlierDetection: {{{outliers}, interval: 1s, baseEjectionTime: 1s, maxEjectionPercent: 100}}
  subsets:
  - {{name: one, labels: {{app: {service}}}}}
  - {{name: two, labels: {{app: {service}}}, trafficPolicy: {{loadBalancer: {{simple: RANDOM}}}}}}
  - {{name: three, labels: {{app: {service}}}}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: {service}}}
spec:
  hosts: [{service}]
  http:
  - match: [{{headers: {{x-policy: {{exact: bare}}}}}}]
    headers: {{response: {{add: {{x-configuration: "{number}"}}}}}}
    timeout: {bare}s
    retries: {{attempts: 0}}
    route:
    - {{destination: {{host: {service}, subset: one}}, weight: {weight}}}
    - {{destination: {{host: {service}, subset: two}}, weight: {rest}}}
  - timeout: {whole}s
    retries: {{attempts: {attempts}, perTryTimeout: 2s, retryOn: "{on}"}}
    route:
    - {{destination: {{host: {service}, subset: two}}, weight: {weight}}}
    - {{destination: {{host: {service}, subset: three}}, weight: {rest}}}
"""


def rules(
    number: int, ports: Mapping[str, int], entries: Mapping[str, Sequence[int]], bare_seconds: int
) -> str:
    """Documents. `ports`: of the services, of HTTP and gRPC; `entries`: ports of endpoints that do not
    register themselves; `bare_seconds`: how long a request may take that is not tried again.
    """
    made = [_STRICT]
    for service in SERVICES:
        name = "grpc" if service == "greeter" else "http"
        weight = number * 7 % 101
        made.append(
            _SERVICE.format(
                service=service,
                name=name,
                port=ports[name],
                number=number,
                balancer=BALANCERS[number % len(BALANCERS)],
                most=(3, 1000)[number % 2],
                uses=(0, 1, 20)[number % 3],
                idle=1 + number % 5,
                upgrade="UPGRADE"
                if service == "ratings"
                else ("DO_NOT_UPGRADE", "UPGRADE")[_upgraded(service, number)],
                outliers=("consecutiveGatewayErrors: 3", "consecutive5xxErrors: 2")[number // 2 % 2],
                weight=weight,
                rest=100 - weight,
                bare=bare_seconds + number % 2,
                whole=60 + number % 3,
                attempts=5 + number % 2,
                on="connect-failure,refused-stream,reset,gateway-error,unavailable",
            )
        )
    made += [
        _ENTRY.format(service=service, port=port) for service, found in entries.items() for port in found
    ]
    return "---".join(made)


def _upgraded(service: str, number: int) -> bool:
    """Endpoints of `plain` speak both; now it is one, now the other."""
    return service == "plain" and number % 5 == 4
