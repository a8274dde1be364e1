"""A client that calls an IP address means the service of whose subnets one has it, if that is no HTTP."""

import pytest

from meshlib.control.graph import build_graph
from meshlib.control.sources.text import documents_in
from meshlib.xds.node import Client, Flavour

ENTRY = """---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: {name}}}
spec:
  hosts: [{name}.example]
  addresses: {addresses}
  ports: [{{number: 5432, name: {protocol}, protocol: {protocol}}}]
  resolution: NONE
"""
TEXT = (
    ENTRY.format(name="wide", addresses="[10.0.0.0/8, 'fd00::/8']", protocol="TCP")
    + ENTRY.format(name="narrow", addresses="[10.1.2.3/16]", protocol="TLS")
    + ENTRY.format(name="one", addresses="[10.1.0.7]", protocol="TCP")
    + ENTRY.format(name="web", addresses="[192.168.0.0/16]", protocol="HTTP")
)


@pytest.mark.parametrize(
    ("address", "host"),
    [
        ("10.2.0.1", "wide.example"),
        ("fd00::5", "wide.example"),
        ("10.1.9.9", "narrow.example"),
        ("10.1.0.7", "one.example"),
        ("11.0.0.1", ""),
        ("fe80::1", ""),
        ("192.168.1.1", ""),
        ("10.2.0.1.example", ""),
    ],
)
def test_the_narrowest_subnet_counts(address: str, host: str) -> None:
    scope = build_graph(documents_in(TEXT, "in.yaml").documents).scope(Client(Flavour.MESHLIB))
    found = scope.called(address, 5432).service
    assert (found.host if found is not None else "") == host
    assert scope.called(address, 5433).service is None
