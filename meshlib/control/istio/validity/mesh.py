"""MeshConfig, ProxyConfig and Telemetry, as Istio's webhook checks them."""

from meshlib.control.istio.meshconfig import MeshConfig
from meshlib.control.istio.proxyconfig import ProxyConfig
from meshlib.control.istio.telemetry import TagOperation, Telemetry
from meshlib.control.istio.validity import hosts, locality, rules, security, traffic
from meshlib.control.istio.validity.report import Report


def mesh_config(spec: MeshConfig, to: Report) -> None:
    """What of the mesh's settings is read here."""
    if not hosts.namespace(spec.root_namespace):
        to.at("root_namespace").error("not a namespace", repr(spec.root_namespace), "a namespace")
    for path, domain in (
        (("trust_domain",), spec.trust_domain),
        *((("trust_domain_aliases", i), alias) for i, alias in enumerate(spec.trust_domain_aliases)),
    ):
        if not hosts.is_host(domain.replace("@", ".")):
            to.at(*path).error("not a trust domain", repr(domain), "a DNS name such as cluster.local")
    hosts.duration(spec.connect_timeout, to.at("connect_timeout"))
    hosts.duration(spec.protocol_detection_timeout, to.at("protocol_detection_timeout"), zero=True)
    for name in (
        "default_service_export_to",
        "default_virtual_service_export_to",
        "default_destination_rule_export_to",
    ):
        hosts.export_to(getattr(spec, name), to.at(name), none=True)
    for name in ("default_http_retry_policy", "default_inbound_http_retry_policy"):
        if policy := getattr(spec, name):
            rules.retries(policy, to.at(name))
    if spec.locality_lb_setting:
        locality.setting(spec.locality_lb_setting, True, to.at("locality_lb_setting"))
    if policy := spec.default_traffic_policy:
        at = to.at("default_traffic_policy")
        if policy.connection_pool:
            traffic.connection_pool(policy.connection_pool, at.at("connection_pool"))
        if policy.outlier_detection:
            traffic.outlier(policy.outlier_detection, at.at("outlier_detection"))
    seen: set[object] = set()
    for index, provider in enumerate(spec.extension_providers):
        given, at = provider.get("name"), to.at("extension_providers", index)
        if not isinstance(given, str) or not given:
            at.error("no name", "", "a name")
        elif given in seen:
            at.at("name").error("a name that stands twice", repr(given), "each name once")
        else:
            seen.add(given)
        security.provider(provider, at)


def proxy_config(spec: ProxyConfig, to: Report) -> None:
    """The whole spec."""
    if spec.selector:
        hosts.selector(spec.selector.match_labels, to.at("selector", "match_labels"))
    if spec.concurrency is not None and spec.concurrency < 0:
        to.at("concurrency").error("a negative number", spec.concurrency, "0 (all cores) or more")


def telemetry(spec: Telemetry, to: Report) -> None:
    """The whole spec."""
    security.target(spec, to)
    for index, tracing in enumerate(spec.tracing):
        at = to.at("tracing", index)
        if tracing.random_sampling_percentage is not None:
            hosts.percent(tracing.random_sampling_percentage, at.at("random_sampling_percentage"))
        if len(tracing.providers) > 1:
            at.at("providers").warn("only one provider is used", len(tracing.providers), "one")
        for name, tag in tracing.custom_tags.items():
            if not name:
                at.at("custom_tags").error("an empty name", "''", "a name")
            if not tag.model_fields_set:
                at.at("custom_tags", name).error("no value", "", "literal, environment, header or formatter")
    for index, metrics in enumerate(spec.metrics):
        hosts.duration(metrics.reporting_interval, to.at("metrics", index, "reporting_interval"))
        for position, override in enumerate(metrics.overrides):
            at = to.at("metrics", index, "overrides", position)
            if override.match and override.match.custom_metric == "":
                at.at("match", "custom_metric").error("an empty name", "''", "the name of a metric")
            for name, tag_override in override.tag_overrides.items():
                upsert = tag_override.operation is TagOperation.UPSERT
                if upsert != bool(tag_override.value):
                    allowed = "a value with UPSERT, none with REMOVE"
                    at.at("tag_overrides", name).error(
                        "value and operation differ", repr(tag_override.value), allowed
                    )
