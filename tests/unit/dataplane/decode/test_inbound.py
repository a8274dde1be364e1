"""A served port's listener as its policy: from what is compiled, and with everything that must be refused."""

from collections.abc import Callable
from typing import Any

import pytest

from meshlib.control.compile.inbound import inbound_listener
from meshlib.control.graph import build_graph
from meshlib.control.sources.text import documents_in
from meshlib.core.inbound import Inbound
from meshlib.core.mtls import InboundMode, ServerTls
from meshlib.core.route.rule import Origin
from meshlib.core.telemetry import AccessLog, Telling
from meshlib.dataplane.decode.errors import Refused
from meshlib.dataplane.decode.inbound import decode_inbound
from meshlib.dataplane.decode.listeners import listener_value
from meshlib.xds import names, pb
from meshlib.xds.node import Client, Flavour

NAME = names.inbound_listener(9080)
MODE = """
apiVersion: mesh.istio.io/v1alpha1
kind: MeshConfig
metadata: {name: mesh}
trustDomain: Example.org
trustDomainAliases: [old.example.org]
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: peers}
spec: {mtls: {mode: %s}}
"""
TRUSTED = ("example.org", "old.example.org")


def listener(mode: str = "PERMISSIVE") -> Any:
    graph = build_graph(documents_in(MODE % mode, "in.yaml").documents)
    return inbound_listener(NAME, 9080, graph, Client(Flavour.MESHLIB), roots=True)[0]


@pytest.mark.parametrize(
    ("mode", "tls"),
    [
        ("STRICT", ServerTls(InboundMode.STRICT, TRUSTED)),
        ("PERMISSIVE", ServerTls(InboundMode.PERMISSIVE, TRUSTED)),
        ("DISABLE", ServerTls(InboundMode.DISABLE)),
    ],
)
def test_modes(mode: str, tls: ServerTls) -> None:
    origin = Origin("PeerAuthentication default/peers", "in.yaml:11")
    assert listener_value(listener(mode)) == Inbound(NAME, tls, origin=origin)


def test_what_is_told_of_requests() -> None:
    made = listener()
    for chain in made.filter_chains:
        manager = pb.unpack(chain.filters[0].typed_config)
        settings = pb.message("envoy.extensions.access_loggers.file.v3.FileAccessLog")(path="/dev/stdout")
        settings.log_format.text_format_source.inline_string = "%PROTOCOL%"
        manager.access_log.add(name="file").typed_config.CopyFrom(pb.pack(settings))
        chain.filters[0].typed_config.CopyFrom(pb.pack(manager))
    assert decode_inbound(made).telling == Telling((AccessLog("/dev/stdout", "%PROTOCOL%"),))


def with_filter(made: Any, config: Any, **more: Any) -> Any:
    """The listener with one more HTTP filter in each chain, before the router."""
    for chain in made.filter_chains:
        manager = pb.unpack(chain.filters[0].typed_config)
        router = pb.HttpFilter()
        router.CopyFrom(manager.http_filters[-1])
        del manager.http_filters[:]
        manager.http_filters.add(name="one", typed_config=pb.pack(config), **more)
        manager.http_filters.add().CopyFrom(router)
        chain.filters[0].typed_config.CopyFrom(pb.pack(manager))
    return made


def test_filters_are_values_by_their_type() -> None:
    made = with_filter(listener(), pb.HTTPFault())
    found = decode_inbound(made, {pb.type_url(pb.HTTPFault): lambda name, message: (name, type(message))})
    assert found.filters == (("one", pb.HTTPFault),)


def test_a_filter_that_is_refused_says_where() -> None:
    def refuse(_name: str, _message: Any) -> object:
        raise Refused("policies[x]", "is bad")

    with pytest.raises(Refused) as caught:
        decode_inbound(with_filter(listener(), pb.HTTPFault()), {pb.type_url(pb.HTTPFault): refuse})
    assert str(caught.value).endswith("typed_config.http_filters[0].policies[x]: is bad")


@pytest.mark.parametrize("more", [{}, {"is_optional": True}, {"disabled": True}])
def test_an_unknown_filter_is_refused_whatever_it_says(more: dict[str, bool]) -> None:
    with pytest.raises(Refused, match=r"http_filters\[0\]: one: .*HTTPFault is not supported"):
        decode_inbound(with_filter(listener(), pb.HTTPFault(), **more))


def test_a_filter_that_is_switched_off_is_refused() -> None:
    made = with_filter(listener(), pb.HTTPFault(), disabled=True)
    with pytest.raises(Refused):
        decode_inbound(made, {pb.type_url(pb.HTTPFault): lambda name, message: name})


def edit_tls(made: Any, change: Callable[[Any], None]) -> None:
    socket = made.filter_chains[0].transport_socket
    context = pb.unpack(socket.typed_config)
    change(context)
    socket.typed_config.CopyFrom(pb.pack(context))


def edit_manager(made: Any, change: Callable[[Any], None]) -> None:
    for chain in made.filter_chains:
        manager = pb.unpack(chain.filters[0].typed_config)
        change(manager)
        chain.filters[0].typed_config.CopyFrom(pb.pack(manager))


def no_client_certificate(made: Any) -> None:
    edit_tls(made, lambda context: context.ClearField("require_client_certificate"))


def other_roots(made: Any) -> None:
    def change(context: Any) -> None:
        combined = context.common_tls_context.combined_validation_context
        combined.validation_context_sds_secret_config.name = "others"

    edit_tls(made, change)


def other_certificate(made: Any) -> None:
    def change(context: Any) -> None:
        context.common_tls_context.tls_certificate_sds_secret_configs[0].name = "others"

    edit_tls(made, change)


def no_trust_domain(made: Any) -> None:
    def change(context: Any) -> None:
        combined = context.common_tls_context.combined_validation_context
        combined.default_validation_context.match_subject_alt_names.add(prefix="spiffe://a")

    edit_tls(made, change)


def no_validation(made: Any) -> None:
    edit_tls(made, lambda context: context.common_tls_context.ClearField("combined_validation_context"))


def upstream_context(made: Any) -> None:
    made.filter_chains[0].transport_socket.typed_config.CopyFrom(pb.pack(pb.UpstreamTlsContext()))


def other_filters(made: Any) -> None:
    made.filter_chains[0].filters[0].name = "other"


def twice(made: Any) -> None:
    made.filter_chains.add().CopyFrom(made.filter_chains[0])


def wrong_transport(made: Any) -> None:
    made.filter_chains[1].filter_chain_match.transport_protocol = "tls"


def narrower(made: Any) -> None:
    made.filter_chains[0].filter_chain_match.server_names.append("x.example")


def no_chains(made: Any) -> None:
    del made.filter_chains[:]


def no_router(made: Any) -> None:
    edit_manager(made, lambda manager: manager.ClearField("http_filters"))


def no_filter(made: Any) -> None:
    for chain in made.filter_chains:
        del chain.filters[:]


def not_http(made: Any) -> None:
    for chain in made.filter_chains:
        chain.filters[0].typed_config.CopyFrom(pb.pack(pb.TcpProxy()))


def broken(made: Any) -> None:
    for chain in made.filter_chains:
        chain.filters[0].typed_config.value = b"\xff"


@pytest.mark.parametrize(
    "change",
    [
        no_client_certificate,
        other_roots,
        other_certificate,
        no_trust_domain,
        no_validation,
        upstream_context,
        other_filters,
        twice,
        wrong_transport,
        narrower,
        no_chains,
        no_router,
        no_filter,
        not_http,
        broken,
    ],
)
def test_refused(change: Callable[[Any], None]) -> None:
    made = listener()
    change(made)
    with pytest.raises(Refused, match=r"^filter_chains"):
        decode_inbound(made)
