"""Rebuilds meshlib/xds/descriptors.binpb.gz from a wheel of xds-protos, and Istio's certificate service.

    pip download --no-deps -d protos xds-protos==1.85.0
    python .ci/descriptors.py protos/xds_protos-*.whl

The wheel is unpacked into a temporary folder and read in a process of its own, because
installed beside other packages it overwrites their files. The output depends on the wheel only.
"""

import gzip
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

OUT = Path(__file__).parent.parent / "meshlib/xds/descriptors.binpb.gz"

MODULES = (
    "envoy.admin.v3.config_dump",
    "envoy.config.bootstrap.v3.bootstrap",
    "envoy.config.cluster.v3.cluster",
    "envoy.config.endpoint.v3.endpoint",
    "envoy.config.listener.v3.listener",
    "envoy.config.route.v3.route",
    "envoy.config.route.v3.scoped_route",
    "envoy.extensions.access_loggers.file.v3.file",
    "envoy.extensions.access_loggers.filters.cel.v3.cel",
    "envoy.extensions.clusters.aggregate.v3.cluster",
    "envoy.extensions.clusters.dynamic_forward_proxy.v3.cluster",
    "envoy.extensions.common.dynamic_forward_proxy.v3.dns_cache",
    "envoy.extensions.filters.common.fault.v3.fault",
    "envoy.extensions.filters.http.cors.v3.cors",
    "envoy.extensions.filters.http.dynamic_forward_proxy.v3.dynamic_forward_proxy",
    "envoy.extensions.filters.http.ext_authz.v3.ext_authz",
    "envoy.extensions.filters.http.fault.v3.fault",
    "envoy.extensions.filters.http.header_mutation.v3.header_mutation",
    "envoy.extensions.filters.http.jwt_authn.v3.config",
    "envoy.extensions.filters.http.rbac.v3.rbac",
    "envoy.extensions.filters.http.router.v3.router",
    "envoy.extensions.filters.http.set_filter_state.v3.set_filter_state",
    "envoy.extensions.filters.listener.original_dst.v3.original_dst",
    "envoy.extensions.filters.listener.tls_inspector.v3.tls_inspector",
    "envoy.extensions.filters.listener.http_inspector.v3.http_inspector",
    "envoy.extensions.filters.network.ext_authz.v3.ext_authz",
    "envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager",
    "envoy.extensions.filters.network.rbac.v3.rbac",
    "envoy.extensions.filters.network.set_filter_state.v3.set_filter_state",
    "envoy.extensions.filters.network.tcp_proxy.v3.tcp_proxy",
    "envoy.extensions.filters.udp.dns_filter.v3.dns_filter",
    "envoy.extensions.formatter.req_without_query.v3.req_without_query",
    "envoy.extensions.load_balancing_policies.client_side_weighted_round_robin.v3.client_side_weighted_round_robin",
    "envoy.extensions.load_balancing_policies.least_request.v3.least_request",
    "envoy.extensions.load_balancing_policies.maglev.v3.maglev",
    "envoy.extensions.load_balancing_policies.random.v3.random",
    "envoy.extensions.load_balancing_policies.ring_hash.v3.ring_hash",
    "envoy.extensions.load_balancing_policies.round_robin.v3.round_robin",
    "envoy.extensions.load_balancing_policies.wrr_locality.v3.wrr_locality",
    "envoy.extensions.retry.host.previous_hosts.v3.previous_hosts",
    "envoy.extensions.retry.priority.previous_priorities.v3.previous_priorities_config",
    "envoy.extensions.transport_sockets.internal_upstream.v3.internal_upstream",
    "envoy.extensions.transport_sockets.proxy_protocol.v3.upstream_proxy_protocol",
    "envoy.extensions.transport_sockets.raw_buffer.v3.raw_buffer",
    "envoy.extensions.transport_sockets.tls.v3.tls",
    "envoy.extensions.upstreams.http.v3.http_protocol_options",
    "envoy.extensions.bootstrap.internal_listener.v3.internal_listener",
    "envoy.extensions.http.early_header_mutation.header_mutation.v3.header_mutation",
    "envoy.extensions.path.match.uri_template.v3.uri_template_match",
    "envoy.service.auth.v3.external_auth",
    "envoy.service.discovery.v3.ads",
    "envoy.service.discovery.v3.discovery",
    "envoy.service.health.v3.hds",
    "envoy.service.load_stats.v3.lrs",
    "envoy.service.runtime.v3.rtds",
    "envoy.service.secret.v3.sds",
    "envoy.service.status.v3.csds",
)

DUMP = """
import importlib, sys
from google.protobuf import descriptor_pb2
done, out = set(), descriptor_pb2.FileDescriptorSet()
def add(fd):
    if fd.name in done:
        return
    done.add(fd.name)
    for dep in fd.dependencies:
        add(dep)
    fd.CopyToProto(out.file.add())
for name in ("google.protobuf.duration", *sys.argv[1:]):
    add(importlib.import_module(name + "_pb2").DESCRIPTOR)
# budget_interval, which Envoy 1.40 knows and this wheel does not.
breaker = next(file for file in out.file if file.name == "envoy/config/cluster/v3/circuit_breaker.proto")
budget = breaker.message_type[0].nested_type[0].nested_type[0]
assert budget.name == "RetryBudget" and all(field.number != 3 for field in budget.field)
breaker.dependency.append("google/protobuf/duration.proto")
budget.field.add(name="budget_interval", number=3, type=11, label=1, type_name=".google.protobuf.Duration")
# istio.v1.auth, which no wheel carries: field numbers are Istio's.
ca = out.file.add(name="security/v1alpha1/ca.proto", package="istio.v1.auth", syntax="proto3")
ca.dependency.append("google/protobuf/struct.proto")
asked = ca.message_type.add(name="IstioCertificateRequest")
asked.field.add(name="csr", number=1, type=9, label=1)
asked.field.add(name="validity_duration", number=3, type=3, label=1)
asked.field.add(name="metadata", number=4, type=11, label=1, type_name=".google.protobuf.Struct")
given = ca.message_type.add(name="IstioCertificateResponse")
given.field.add(name="cert_chain", number=1, type=9, label=3)
sys.stdout.buffer.write(out.SerializeToString(deterministic=True))
"""


def main(wheel: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        zipfile.ZipFile(wheel).extractall(folder)
        raw = subprocess.run(
            [sys.executable, "-c", f"import sys; sys.path.insert(0, {folder!r})\n" + DUMP, *MODULES],
            stdout=subprocess.PIPE,
            check=True,
        ).stdout
    OUT.write_bytes(gzip.compress(raw, 9, mtime=0))
    print(f"{OUT.name}: {len(raw)} bytes, {OUT.stat().st_size} compressed")


if __name__ == "__main__":
    main(sys.argv[1])
