"""Servers of Gateways that are left out, Secrets that they miss, and what of them no gateway does."""

from collections.abc import Iterator

from meshlib.control.analysis.world import World, problem
from meshlib.control.graph.gateways import Gateways, Served
from meshlib.control.istio.document import AnyDocument
from meshlib.control.istio.gateway import ServerTLSMode
from meshlib.control.istio.problem import NOT_APPLIED, Problem, Severity
from meshlib.xds.names import OF_CA


def analyze(world: World) -> Iterator[Problem]:
    """Every Gateway."""
    documents = list(world.of_kind("Gateway"))
    if not documents:
        return
    yield from _left_out(documents)
    secrets = {document.name for document in world.of_kind("Secret")}
    for document in documents:
        yield from _secrets(document, secrets)
        yield from _not_applied(document)


def _left_out(documents: list[AnyDocument]) -> Iterator[Problem]:
    gateways = Gateways(documents)
    told: set[tuple[str, int]] = set()
    for labels in {tuple(sorted(document.spec.selector.items())): None for document in documents}:
        for opened in gateways.opened(dict(labels)):
            for served, reason in opened.skipped:
                place = (served.document.title, served.number)
                if place not in told and not _told_elsewhere(served, reason):
                    told.add(place)
                    path = ("spec", "servers", served.number)
                    message = f"the server is left out: {reason}"
                    yield problem(Severity.ERROR, "IST0145", served.document, path, message)


def _told_elsewhere(served: Served, reason: str) -> bool:
    """Whether it is a host of two Gateways: `conflicts` says so of each."""
    return reason.startswith("the host") and served.document.title not in reason


def _secrets(document: AnyDocument, known: set[str]) -> Iterator[Problem]:
    for index, server in enumerate(document.spec.servers):
        tls = server.tls
        if tls is None:
            continue
        named = [("credential_name", tls.credential_name)] if tls.credential_name else []
        named += [("credential_names", name) for name in tls.credential_names]
        if tls.ca_cert_credential_name:
            named.append(("ca_cert_credential_name", tls.ca_cert_credential_name))
        for field, name in named:
            if name not in known and name + OF_CA not in known:
                path = ("spec", "servers", index, "tls", field)
                yield problem(
                    Severity.ERROR, "IST0101", document, path, "no such Secret in any namespace", repr(name)
                )


def _not_applied(document: AnyDocument) -> Iterator[Problem]:
    for index, server in enumerate(document.spec.servers):
        if server.tls is not None and server.tls.mode is ServerTLSMode.AUTO_PASSTHROUGH:
            message = "AUTO_PASSTHROUGH joins networks, of which there is one; nothing is served"
            path = ("spec", "servers", index, "tls", "mode")
            yield problem(Severity.INFO, NOT_APPLIED, document, path, message)
        if server.port is not None and server.port.protocol.upper() == "GRPC-WEB":
            message = "served as HTTP; gRPC-Web is not translated"
            path = ("spec", "servers", index, "port", "protocol")
            yield problem(Severity.INFO, NOT_APPLIED, document, path, message)
