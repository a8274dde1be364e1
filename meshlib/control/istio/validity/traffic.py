"""DestinationRule and its traffic policies, as Istio's webhook checks them."""

from meshlib.control.istio.destinationrule import (
    ClientTLSMode,
    ClientTLSSettings,
    ConnectionPoolSettings,
    ConsistentHashLB,
    DestinationRule,
    LoadBalancerSettings,
    LocalityLoadBalancerSetting,
    OutlierDetection,
    PortTrafficPolicy,
    SimpleLB,
    TrafficPolicy,
)
from meshlib.control.istio.validity import hosts
from meshlib.control.istio.validity.report import Report

_FILES = ("client_certificate", "private_key", "ca_certificates")


def destination_rule(spec: DestinationRule, to: Report) -> None:
    """The whole spec."""
    hosts.host(spec.host, to.at("host"), wildcard=True)
    if spec.traffic_policy:
        _policy(spec.traffic_policy, to.at("traffic_policy"))
    seen: set[str] = set()
    for index, subset in enumerate(spec.subsets):
        at = to.at("subsets", index)
        if not hosts.is_host(subset.name) or "." in subset.name:
            at.at("name").error("not the name of a subset", repr(subset.name), "letters, digits and -")
        if subset.name in seen:
            at.at("name").error("a subset that stands twice", repr(subset.name), "each name once")
        seen.add(subset.name)
        hosts.labels(subset.labels, at.at("labels"))
        if subset.traffic_policy:
            _policy(subset.traffic_policy, at.at("traffic_policy"))
    hosts.export_to(spec.export_to, to.at("export_to"))
    if spec.workload_selector:
        hosts.selector(spec.workload_selector.match_labels, to.at("workload_selector", "match_labels"))


def _policy(policy: TrafficPolicy, to: Report) -> None:
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
        _blocks(level, at)
    if policy.retry_budget and policy.retry_budget.percent is not None:
        hosts.percent(policy.retry_budget.percent, to.at("retry_budget", "percent"))
    if tunnel := policy.tunnel:
        at = to.at("tunnel")
        if tunnel.protocol not in ("", "CONNECT", "POST"):
            at.at("protocol").error("not a tunnel's protocol", repr(tunnel.protocol), "CONNECT, POST")
        hosts.host(tunnel.target_host, at.at("target_host"))
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
        to.at("warmup_duration_secs").old(
            "deprecated; the same as warmup.duration in today's Istio, no effect here"
        )
        hosts.duration(balancer.warmup_duration_secs, to.at("warmup_duration_secs"))
    if balancer.warmup:
        hosts.duration(balancer.warmup.duration, to.at("warmup", "duration"))
        if balancer.warmup.minimum_percent is not None:
            hosts.percent(balancer.warmup.minimum_percent, to.at("warmup", "minimum_percent"))
        if balancer.warmup.aggression is not None and balancer.warmup.aggression < 1:
            to.at("warmup", "aggression").error("too small", balancer.warmup.aggression, "1 or more")
    if balancer.consistent_hash:
        _hash(balancer.consistent_hash, to.at("consistent_hash"))
    if balancer.locality_lb_setting:
        locality(balancer.locality_lb_setting, ejects, to.at("locality_lb_setting"))


def _hash(given: ConsistentHashLB, to: Report) -> None:
    if not (
        given.http_header_name or given.http_cookie or given.use_source_ip or given.http_query_parameter_name
    ):
        to.error("nothing to hash", "", "httpHeaderName, httpCookie, useSourceIp or httpQueryParameterName")
    if given.http_cookie and not given.http_cookie.name:
        to.at("http_cookie", "name").error("no name", "", "the name of a cookie")
    if given.minimum_ring_size is not None:
        to.at("minimum_ring_size").old(
            "deprecated; today's Istio takes it as ringHash.minimumRingSize; "
            "consistent hashing is not applied here yet"
        )
        if given.ring_hash or given.maglev:
            to.at("minimum_ring_size").error("stands with ringHash or maglev", "", "one of them")
    if given.maglev and given.maglev.table_size is not None and not _is_prime(given.maglev.table_size):
        to.at("maglev", "table_size").error(
            "not a table size", given.maglev.table_size, "a prime below 5000011"
        )


def _is_prime(number: int) -> bool:
    if not 2 <= number <= 5_000_011:
        return False
    return all(number % divisor for divisor in range(2, int(number**0.5) + 1))


def locality(setting: LocalityLoadBalancerSetting, ejects: bool, to: Report) -> None:
    """Balancing by locality."""
    if setting.distribute and (setting.failover or setting.failover_priority):
        to.at("distribute").error("stands with failover", "", "distribute or failover")
    for index, share in enumerate(setting.distribute):
        at = to.at("distribute", index, "to")
        if any(not 1 <= weight <= 100 for weight in share.to.values()) or sum(share.to.values()) != 100:
            at.error(
                "the shares are not 100", sum(share.to.values()), "shares of 1 to 100 that add up to 100"
            )
    for index, over in enumerate(setting.failover):
        at = to.at("failover", index)
        for name, region in (("from_", over.from_), ("to", over.to)):
            if not region or "/" in region or "*" in region:
                at.at(name).error("not a region", repr(region), "a region without zone and wildcard")
        if over.from_ == over.to:
            at.error("a region that fails over to itself", repr(over.to), "two regions")
    regional = ("topology.kubernetes.io/region", "topology.kubernetes.io/zone", "topology.istio.io/subzone")
    if setting.failover and any(label.split("=")[0] in regional for label in setting.failover_priority):
        to.at("failover_priority").error(
            "names localities beside failover", "", "other labels, or no failover"
        )
    if (setting.failover or setting.failover_priority) and not ejects:
        to.warn(
            "failover works only together with outlierDetection", "", "outlierDetection in the same policy"
        )


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
        hosts.duration(http.idle_timeout, at.at("idle_timeout"), zero=True)
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
                to.at(name).error(
                    "ISTIO_MUTUAL uses the mesh's certificates", getattr(tls, name), "leave it out"
                )
    if tls.credential_name and any(getattr(tls, name) for name in _FILES):
        to.at("credential_name").error("stands with files", repr(tls.credential_name), "one of them")
    if tls.insecure_skip_verify and tls.ca_certificates:
        to.at("insecure_skip_verify").error("stands with caCertificates", "true", "one of them")
