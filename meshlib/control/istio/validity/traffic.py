"""DestinationRule and its traffic policies, as Istio's webhook checks them."""

import math

from meshlib.control.istio.destinationrule import (
    ClientTLSMode,
    ClientTLSSettings,
    ConnectionPoolSettings,
    ConsistentHashLB,
    DestinationRule,
    LoadBalancerSettings,
    OutlierDetection,
    PortTrafficPolicy,
    SimpleLB,
    TrafficPolicy,
)
from meshlib.control.istio.fields import camel
from meshlib.control.istio.validity import hosts, locality
from meshlib.control.istio.validity.report import Report

MAX_RING = 8 * 1024 * 1024
"""Points of the largest ring that an Envoy builds."""
_BLOCKS = tuple(name for name in PortTrafficPolicy.model_fields if name != "port")
_FILES = ("client_certificate", "private_key", "ca_certificates")


def destination_rule(spec: DestinationRule, to: Report) -> None:
    """The whole spec."""
    hosts.host(spec.host, to.at("host"), wildcard=True)
    if spec.traffic_policy:
        _policy(spec.traffic_policy, to.at("traffic_policy"))
    seen: set[str] = set()
    for index, subset in enumerate(spec.subsets):
        at = to.at("subsets", index)
        if not hosts.is_label(subset.name):
            at.at("name").error("not the name of a subset", repr(subset.name), hosts.LABEL)
        if subset.name in seen:
            at.at("name").error("a subset that stands twice", repr(subset.name), "each name once")
        seen.add(subset.name)
        hosts.labels(subset.labels, at.at("labels"))
        if subset.traffic_policy:
            _policy(subset.traffic_policy, at.at("traffic_policy"))
    hosts.export_to(spec.export_to, to.at("export_to"))
    hosts.selecting(spec.workload_selector, to.at("workload_selector"))
    if spec.workload_selector and len(spec.export_to) > 1:
        to.at("export_to").error(
            "several with workloadSelector", ", ".join(spec.export_to), "the rule's own namespace"
        )
    elif spec.workload_selector and "*" in spec.export_to:
        to.at("export_to").error("all namespaces with workloadSelector", "*", "the rule's own namespace")


def _policy(policy: TrafficPolicy, to: Report) -> None:
    if not policy.model_fields_set:
        to.error("an empty policy", "", ", ".join(sorted(map(camel, TrafficPolicy.model_fields))))
    if policy.tunnel and policy.proxy_protocol:
        to.at("proxy_protocol").error("stands with tunnel", "", "tunnel or proxyProtocol")
    _blocks(policy, to)
    seen: set[int] = set()
    for index, level in enumerate(policy.port_level_settings):
        at = to.at("port_level_settings", index)
        if level.port is None:
            at.error("no port", "", "port with a number")
        else:
            hosts.port(level.port.number, at.at("port", "number"))
            if level.port.number in seen:
                at.at("port", "number").error("a port that stands twice", level.port.number, "each port once")
            seen.add(level.port.number)
        if not level.model_fields_set - {"port"}:
            at.error("an empty policy", "", ", ".join(map(camel, _BLOCKS)))
        _blocks(level, at)
    if budget := policy.retry_budget:
        if budget.percent is not None:
            hosts.percent(budget.percent, to.at("retry_budget", "percent"))
        hosts.duration(budget.budget_interval, to.at("retry_budget", "budget_interval"), zero=True)
    if tunnel := policy.tunnel:
        at = to.at("tunnel")
        if tunnel.protocol not in ("", "CONNECT", "POST"):
            at.at("protocol").error("not a tunnel's protocol", repr(tunnel.protocol), "CONNECT, POST")
        hosts.host(tunnel.target_host, at.at("target_host"), ip=True)
        hosts.port(tunnel.target_port, at.at("target_port"))


def _blocks(policy: TrafficPolicy | PortTrafficPolicy, to: Report) -> None:
    if policy.load_balancer:
        _balancer(policy.load_balancer, policy.outlier_detection is not None, to.at("load_balancer"))
    if policy.connection_pool:
        connection_pool(policy.connection_pool, to.at("connection_pool"))
    if policy.outlier_detection:
        outlier(policy.outlier_detection, to.at("outlier_detection"))
    if policy.tls:
        _tls(policy.tls, to.at("tls"))


def _balancer(balancer: LoadBalancerSettings, ejects: bool, to: Report) -> None:
    if balancer.simple is SimpleLB.LEAST_CONN:
        to.at("simple").old("LEAST_CONN is deprecated; LEAST_REQUEST here and in today's Istio")
    if balancer.warmup_duration_secs is not None:
        to.at("warmup_duration_secs").old("deprecated; the same as warmup.duration here and in today's Istio")
        hosts.duration(balancer.warmup_duration_secs, to.at("warmup_duration_secs"))
    if balancer.warmup:
        if balancer.warmup.duration is None:
            to.at("warmup").error("no duration", "", "duration of at least 1ms")
        hosts.duration(balancer.warmup.duration, to.at("warmup", "duration"))
        if balancer.warmup.minimum_percent is not None:
            hosts.percent(balancer.warmup.minimum_percent, to.at("warmup", "minimum_percent"))
        aggression = balancer.warmup.aggression
        if aggression is not None and not 0 < aggression < math.inf:
            to.at("warmup", "aggression").error("not a pace", aggression, "more than 0")
    if balancer.consistent_hash:
        _hash(balancer.consistent_hash, to.at("consistent_hash"))
    if balancer.locality_lb_setting:
        locality.setting(balancer.locality_lb_setting, ejects, to.at("locality_lb_setting"))
    if balancer.zone_aware_lb_setting:
        locality.zone_aware(balancer.zone_aware_lb_setting, ejects, to.at("zone_aware_lb_setting"))
        if balancer.locality_lb_setting:
            to.at("zone_aware_lb_setting").error("stands with localityLbSetting", "", "one of them")


def _hash(given: ConsistentHashLB, to: Report) -> None:
    if not (
        given.http_header_name or given.http_cookie or given.use_source_ip or given.http_query_parameter_name
    ):
        to.error("nothing to hash", "", "httpHeaderName, httpCookie, useSourceIp or httpQueryParameterName")
    if given.http_cookie and not given.http_cookie.name:
        to.at("http_cookie", "name").error("no name", "", "the name of a cookie")
    names: set[str] = set()
    for index, attribute in enumerate(given.http_cookie.attributes if given.http_cookie else ()):
        at = to.at("http_cookie", "attributes", index, "name")
        if not attribute.name or attribute.name in names:
            at.error("no name of its own", repr(attribute.name), "a name, each once")
        names.add(attribute.name)
    if given.minimum_ring_size is not None:
        to.at("minimum_ring_size").old(
            "deprecated; the same as ringHash.minimumRingSize here and in today's Istio"
        )
        if given.ring_hash or given.maglev:
            to.at("minimum_ring_size").error("stands with ringHash or maglev", "", "one of them")
    sizes = [(given.minimum_ring_size, to.at("minimum_ring_size"))]
    if given.ring_hash:
        sizes.append((given.ring_hash.minimum_ring_size, to.at("ring_hash", "minimum_ring_size")))
    for size, at in sizes:
        if size is not None and size > MAX_RING:
            at.error("more points than Envoy takes", size, f"at most {MAX_RING}")
    if given.maglev and not _is_prime(size := given.maglev.table_size or 0):
        to.at("maglev", "table_size").error("not a table size", size, "a prime below 5000011")


def _is_prime(number: int) -> bool:
    if not 2 <= number < 5_000_011:
        return False
    return all(number % divisor for divisor in range(2, int(number**0.5) + 1))


def connection_pool(pool: ConnectionPoolSettings, to: Report) -> None:
    """Limits of connections and requests."""
    if not (pool.http or pool.tcp):
        to.error("neither http nor tcp", "", "http or tcp")
    if tcp := pool.tcp:
        at = to.at("tcp")
        _positive(tcp.max_connections, at.at("max_connections"))
        hosts.duration(tcp.connect_timeout, at.at("connect_timeout"))
        hosts.duration(tcp.max_connection_duration, at.at("max_connection_duration"))
        hosts.duration(tcp.idle_timeout, at.at("idle_timeout"), zero=True)
        if tcp.tcp_keepalive:
            for name in ("time", "interval"):
                hosts.duration(getattr(tcp.tcp_keepalive, name), at.at("tcp_keepalive", name))
    if http := pool.http:
        at = to.at("http")
        for name in (
            "http1_max_pending_requests",
            "http2_max_requests",
            "max_requests_per_connection",
            "max_retries",
            "max_concurrent_streams",
        ):
            _positive(getattr(http, name), at.at(name))
        hosts.duration(http.idle_timeout, at.at("idle_timeout"))
        if keep := http.http2_keep_alive:
            for name in ("interval", "timeout"):
                if getattr(keep, name) is None:
                    at.at("http2_keep_alive").error(f"no {name}", "", f"{name} of at least 1ms")
                hosts.duration(getattr(keep, name), at.at("http2_keep_alive", name))
        if http.use_client_protocol and http.h2_upgrade_policy.value == "UPGRADE":
            at.at("use_client_protocol").error("stands with h2UpgradePolicy: UPGRADE", "true", "one of them")


def _positive(value: int, to: Report) -> None:
    if value < 0:
        to.error("a negative limit", value, "0 (no limit) or more")


def outlier(given: OutlierDetection, to: Report) -> None:
    """When endpoints are left out."""
    hosts.duration(given.interval, to.at("interval"))
    hosts.duration(given.base_ejection_time, to.at("base_ejection_time"))
    hosts.percent(given.max_ejection_percent, to.at("max_ejection_percent"))
    hosts.percent(given.min_health_percent, to.at("min_health_percent"))
    if given.consecutive_local_origin_failures and not given.split_external_local_origin_errors:
        to.at("consecutive_local_origin_failures").error(
            "no effect alone", given.consecutive_local_origin_failures, "splitExternalLocalOriginErrors: true"
        )
    if given.consecutive_errors:
        at = to.at("consecutive_errors")
        _positive(given.consecutive_errors, at)
        at.old(
            "deprecated; here it counts gateway errors (502, 503, 504), as consecutiveGatewayErrors does; "
            "today's Istio ignores it and ejects after 5 consecutive 5xx errors"
        )
    for index, code in enumerate(given.outlier_detection_http_error_codes):
        if not 100 <= code <= 599:
            to.at("outlier_detection_http_error_codes", index).error("not a status", code, "100 to 599")


def _tls(tls: ClientTLSSettings, to: Report) -> None:
    if tls.mode is ClientTLSMode.MUTUAL and not tls.credential_name:
        for name in ("client_certificate", "private_key"):
            if not getattr(tls, name):
                to.at(name).error("MUTUAL needs it", "", "a file, or credentialName")
    if tls.mode is ClientTLSMode.ISTIO_MUTUAL:
        for name in (*_FILES, "credential_name"):
            if getattr(tls, name):
                to.at(name).warn(
                    "ISTIO_MUTUAL uses the mesh's certificates", getattr(tls, name), "leave it out"
                )
    if tls.mode not in (ClientTLSMode.SIMPLE, ClientTLSMode.MUTUAL):
        return
    if tls.credential_name and any(getattr(tls, name) for name in (*_FILES, "ca_crl")):
        to.at("credential_name").error("stands with files", repr(tls.credential_name), "one of them")
    if tls.insecure_skip_verify:
        checked = ("ca_certificates", "subject_alt_names")
        # With MUTUAL the credential may hold the client's certificate alone.
        for name in (*checked, "credential_name") if tls.mode is ClientTLSMode.SIMPLE else checked:
            if getattr(tls, name):
                to.at("insecure_skip_verify").error(f"stands with {camel(name)}", "true", "one of them")
