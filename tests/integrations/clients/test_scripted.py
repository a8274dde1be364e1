"""Every client plays with `meshlib.testing`: Istio's YAML decides, and no socket is opened."""

import asyncio

import pytest
from support.clients import CALLERS, calling

import meshlib
from meshlib.testing import Response, ScriptedMesh

RULES = """
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews}
spec:
  hosts: [reviews]
  http:
  - match: [{headers: {end-user: {exact: jason}}}]
    route: [{destination: {host: reviews, subset: v2}}]
  - route: [{destination: {host: reviews, subset: v1}}]
    timeout: 2s
    retries: {attempts: 2, retryOn: "5xx,reset"}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews}
spec:
  host: reviews
  subsets:
  - {name: v1, labels: {version: v1}}
  - {name: v2, labels: {version: v2}}
"""


@pytest.mark.parametrize("kind", CALLERS)
async def test_rules_decide_without_a_network(kind: str) -> None:
    with ScriptedMesh(RULES) as mesh:
        mesh.serve("reviews", 503, ConnectionResetError, Response(content=[b"ver", b"sion 1"]), version="v1")
        mesh.serve("reviews", Response(text="version 2"), version="v2")
        async with calling(kind, mesh) as caller:
            seen = await caller.call("/", "POST", body=[b"again ", b"and again"])
            assert (seen.status, seen.body) == (200, b"version 1")
            assert seen.facts is not None
            assert seen.facts.attempts == 3
            seen = await caller.call("/", headers={"end-user": "jason"})
            assert (seen.body, seen.headers["content-type"]) == (b"version 2", "text/plain; charset=utf-8")
            mesh.serve("reviews", Response(content=b"half", breaks=True), version="v1")
            with pytest.raises(caller.errors.broken_off) as raised:
                await caller.call("/")
            assert isinstance(raised.value, meshlib.UpstreamReset)
            mesh.serve("reviews", Response(delay=3), version="v1")
            with pytest.raises(meshlib.UpstreamTimedOut):
                await asyncio.wait_for(caller.call("/"), 5)
