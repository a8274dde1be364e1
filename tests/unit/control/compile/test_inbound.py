"""How the paths of a port are put in order, from the mesh's setting to what a server does with it."""

import pytest
from support.security_envoy import graph_of

from meshlib.control.compile.inbound import inbound_listener
from meshlib.core.authz.path import EscapedSlashes, PathOptions
from meshlib.dataplane.decode.inbound import decode_inbound
from meshlib.xds.names import inbound_listener as name_of
from meshlib.xds.node import Client, Flavour

MESH = """apiVersion: mesh.istio.io/v1alpha1
kind: MeshConfig
metadata: {name: mesh}
%s
"""


@pytest.mark.parametrize(
    ("setting", "options"),
    [
        ("", PathOptions()),
        ("pathNormalization: {}", PathOptions()),
        ("pathNormalization: {normalization: DEFAULT}", PathOptions()),
        ("pathNormalization: {normalization: BASE}", PathOptions()),
        ("pathNormalization: {normalization: NONE}", PathOptions(normalize=False)),
        ("pathNormalization: {normalization: MERGE_SLASHES}", PathOptions(merge_slashes=True)),
        (
            "pathNormalization: {normalization: DECODE_AND_MERGE_SLASHES}",
            PathOptions(merge_slashes=True, escaped_slashes=EscapedSlashes.FORWARD),
        ),
    ],
)
def test_how_paths_are_put_in_order(setting: str, options: PathOptions) -> None:
    client = Client(Flavour.MESHLIB, "foo")
    made, _ = inbound_listener(name_of(8080), 8080, graph_of(MESH % setting), client, roots=False)
    assert decode_inbound(made).paths == options
