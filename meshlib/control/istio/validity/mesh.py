"""MeshConfig and ProxyConfig, as Istio's webhook checks them."""

from pydantic import ValidationError

from meshlib.control.istio.duration import spell
from meshlib.control.istio.meshconfig import GatewayTopology, MeshConfig
from meshlib.control.istio.proxyconfig import ProxyConfig
from meshlib.control.istio.validity import hosts, locality, rules, traffic
from meshlib.control.istio.validity.provider import provider as authorizer
from meshlib.control.istio.validity.report import Report
from meshlib.control.istio.virtualservice import HTTPRetry


def mesh_config(spec: MeshConfig, to: Report) -> None:
    """What of the mesh's settings is read here."""
    if not hosts.namespace(spec.root_namespace):
        to.at("root_namespace").error("not a namespace", repr(spec.root_namespace), "a namespace")
    for path, domain in (
        (("trust_domain",), spec.trust_domain),
        *((("trust_domain_aliases", i), alias) for i, alias in enumerate(spec.trust_domain_aliases)),
    ):
        if not all(map(hosts.is_label, domain.replace("@", ".").removesuffix(".").split("."))):
            to.at(*path).error("not a trust domain", repr(domain), "a DNS name such as cluster.local")
    hosts.duration(spec.connect_timeout, to.at("connect_timeout"))
    if spec.connect_timeout > 3600:
        to.at("connect_timeout").error("too long a duration", spell(spec.connect_timeout), "at most 1h")
    hosts.duration(spec.protocol_detection_timeout, to.at("protocol_detection_timeout"), zero=True)
    for name in (
        "default_service_export_to",
        "default_virtual_service_export_to",
        "default_destination_rule_export_to",
    ):
        hosts.export_to(getattr(spec, name), to.at(name), none=True)
    _defaults(spec, to)
    if spec.zone_aware_lb_setting:
        locality.zone_aware(spec.zone_aware_lb_setting, True, to.at("zone_aware_lb_setting"))
    if spec.locality_lb_setting:
        locality.setting(spec.locality_lb_setting, True, to.at("locality_lb_setting"))
    _providers(spec, to.at("extension_providers"))
    _topology(spec, to.at("default_config", "gatewayTopology"))


def _topology(spec: MeshConfig, to: Report) -> None:
    try:
        if GatewayTopology.of(spec).proxy_protocol is not None:
            to.at("proxyProtocol").info("gateways do not read PROXY headers")
    except ValidationError as invalid:
        for error in invalid.errors(include_url=False):
            place = ".".join(map(str, error["loc"])) or "gatewayTopology"
            to.error(f"{place}: {error['msg']}", repr(error.get("input"))[:80], "a gatewayTopology")


def _defaults(spec: MeshConfig, to: Report) -> None:
    for name in ("default_http_retry_policy", "default_inbound_http_retry_policy"):
        if retries := getattr(spec, name):
            rules.retries(retries, to.at(name))
    _inbound_retries(spec.default_inbound_http_retry_policy, to.at("default_inbound_http_retry_policy"))
    if policy := spec.default_traffic_policy:
        at = to.at("default_traffic_policy")
        if policy.connection_pool:
            traffic.connection_pool(policy.connection_pool, at.at("connection_pool"))
        if policy.outlier_detection:
            traffic.outlier(policy.outlier_detection, at.at("outlier_detection"))


def _providers(spec: MeshConfig, to: Report) -> None:
    seen: set[object] = set()
    for index, provider in enumerate(spec.extension_providers):
        given, at = provider.get("name"), to.at(index)
        if not isinstance(given, str) or not given:
            at.error("no name", "", "a name")
        elif given in seen:
            at.at("name").error("a name that stands twice", repr(given), "each name once")
        else:
            seen.add(given)
        authorizer(provider, at)


def _inbound_retries(policy: HTTPRetry | None, to: Report) -> None:
    if policy is None:
        return
    if policy.attempts == 0 and policy.backoff is not None:
        to.at("backoff").error("there are no attempts", "attempts: 0", "attempts of at least 1")
    for name in ("per_try_timeout", "retry_remote_localities", "retry_ignore_previous_hosts"):
        if getattr(policy, name) is not None:
            to.at(name).warn("no effect on what comes in", "", "leave it out")


def proxy_config(spec: ProxyConfig, to: Report) -> None:
    """The whole spec."""
    hosts.selecting(spec.selector, to.at("selector"))
    if spec.concurrency is not None and spec.concurrency < 0:
        to.at("concurrency").error("a negative number", spec.concurrency, "0 (all cores) or more")
