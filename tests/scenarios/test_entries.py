"""Services outside of the mesh, from YAML to the socket: every resolution, wildcards, who sees what."""

import asyncio
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from support import commands
from support.named_server import named_server
from support.named_tcp import named_tcp
from support.raw_server import RawServer, raw_server
from support.told_names import ToldNames, told_names

import meshlib

ANY = "0.0.0.0"
MESH = """
apiVersion: mesh.istio.io/v1alpha1
kind: MeshConfig
metadata: {{name: mesh}}
dnsRefreshRate: 100ms
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: names}}
spec:
  hosts: [names.example]
  ports: [{{number: 80, name: http, protocol: HTTP, targetPort: {http}}}]
  resolution: DNS
  endpoints: [{{address: a.names.example}}, {{address: b.names.example}}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: itself}}
spec:
  hosts: [itself.example]
  ports:
  - {{number: 80, name: http, protocol: HTTP, targetPort: {http}}}
  - {{number: 7000, name: tcp, protocol: TCP, targetPort: {tcp}}}
  resolution: DNS
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: one}}
spec:
  hosts: [one.example]
  ports:
  - {{number: 80, name: http, protocol: HTTP, targetPort: {http}}}
  - {{number: 7000, name: tcp, protocol: TCP, targetPort: {tcp}}}
  resolution: DNS_ROUND_ROBIN
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: wiki}}
spec:
  hosts: ['*.wiki.example']
  ports: [{{number: {http}, name: http, protocol: HTTP}}, {{number: {tcp}, name: tls, protocol: TLS}}]
  resolution: DYNAMIC_DNS
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: any}}
spec:
  hosts: ['*.any.example']
  ports: [{{number: {http}, name: http, protocol: HTTP}}]
  resolution: NONE
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: wide}}
spec:
  hosts: ['*.wide.example']
  ports: [{{number: 80, name: http, protocol: HTTP, targetPort: {http}}}]
  resolution: STATIC
  endpoints: [{{address: 127.0.0.1}}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: narrow}}
spec:
  hosts: ['*.narrow.wide.example', exact.wide.example]
  ports: [{{number: 80, name: http, protocol: HTTP, targetPort: {other}}}]
  resolution: STATIC
  endpoints: [{{address: 127.0.0.1}}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: subnet}}
spec:
  hosts: [subnet.example]
  addresses: [127.0.0.0/24, 127.0.1.0/24]
  ports: [{{number: 7001, name: tcp, protocol: TCP, targetPort: {tcp}}}]
  resolution: STATIC
  endpoints: [{{address: 127.0.0.1}}]
---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {{name: default, namespace: shut}}
spec:
  egress: [{{hosts: ['*/*.wiki.example']}}]
  outboundTrafficPolicy: {{mode: REGISTRY_ONLY}}
---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {{name: default, namespace: behind}}
spec:
  egress: [{{hosts: ['./*']}}]
  outboundTrafficPolicy:
    mode: ALLOW_ANY
    egressProxy: {{host: itself.example, port: {{number: 7000}}}}
---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {{name: default, namespace: over-http}}
spec:
  egress: [{{hosts: ['./*']}}]
  outboundTrafficPolicy:
    mode: ALLOW_ANY
    egressProxy: {{host: itself.example, port: {{number: 80}}}}
"""


def wait_until(holds: Callable[[], bool]) -> None:
    commands.wait_until(holds, 10, "what was said to the resolver")


@pytest.fixture(scope="module")
def servers() -> Iterator[dict[str, Any]]:
    with ExitStack() as stack:
        yield {
            "http": stack.enter_context(raw_server(host=ANY)),
            "other": stack.enter_context(named_server("other")),
            "tcp": stack.enter_context(named_tcp("tcp", host="0.0.0.0")),
        }


@pytest.fixture(scope="module")
def folder(servers: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("mesh")
    ports = {**servers, "http": servers["http"].port}
    (made / "mesh.yaml").write_text(MESH.format(**ports))
    return made


@pytest.fixture
def names() -> Iterator[ToldNames]:
    with told_names() as made:
        yield made


@pytest.fixture
def mesh(folder: Path, names: ToldNames) -> Iterator[meshlib.Mesh]:
    with meshlib.connect(folder) as made:
        yield made


@pytest.fixture
def client(mesh: meshlib.Mesh) -> Iterator[meshlib.Client]:
    with meshlib.Client(mesh=mesh) as made:
        yield made


def endpoint(client: meshlib.Client, url: str) -> str:
    answer = client.get(url)
    assert answer.status_code == 200, answer.text
    return str(answer.extensions["meshlib"].endpoint)


def test_every_address_of_every_name_is_an_endpoint(
    client: meshlib.Client, names: ToldNames, servers: dict[str, Any]
) -> None:
    names.addresses |= {"a.names.example": ["127.0.0.1", "127.0.0.2"], "b.names.example": ["127.0.0.3"]}
    port = servers["http"].port
    asked = Counter(endpoint(client, "http://names.example/echo") for _ in range(60))
    assert asked.keys() == {f"127.0.0.1:{port}", f"127.0.0.2:{port}", f"127.0.0.3:{port}"}
    assert set(names.asked) == {"a.names.example", "b.names.example"}


def test_addresses_come_and_go_and_stay_while_dns_fails(
    client: meshlib.Client, names: ToldNames, servers: dict[str, Any]
) -> None:
    url, port = "http://itself.example/echo", servers["http"].port
    names.addresses["itself.example"] = ["127.0.0.1"]
    assert endpoint(client, url) == f"127.0.0.1:{port}"
    names.addresses["itself.example"] = ["127.0.0.2"]
    wait_until(lambda: endpoint(client, url) == f"127.0.0.2:{port}")
    names.down = True
    count = len(names.asked)
    wait_until(lambda: len(names.asked) > count + 1)
    assert endpoint(client, url) == f"127.0.0.2:{port}"
    names.down = False
    del names.addresses["itself.example"]
    wait_until(lambda: client.get(url).status_code == 503)
    answer = client.get(url)
    assert (answer.text, answer.extensions["meshlib"].flag) == ("no healthy upstream", "UH")
    names.addresses["itself.example"] = ["127.0.0.1"]
    wait_until(lambda: client.get(url).status_code == 200)


def test_a_name_that_nobody_knows_has_no_endpoint(client: meshlib.Client, mesh: meshlib.Mesh) -> None:
    answer = client.get("http://itself.example/echo")
    assert (answer.status_code, answer.extensions["meshlib"].flag) == (503, "UH")
    with pytest.raises(meshlib.NoUpstream, match=r"no healthy endpoint.*\[UH\]"):
        meshlib.create_connection(("itself.example", 7000), mesh=mesh)


async def test_tasks_see_the_same(mesh: meshlib.Mesh, names: ToldNames, servers: dict[str, Any]) -> None:
    names.addresses["itself.example"] = ["127.0.0.1", "127.0.0.2"]
    async with meshlib.AsyncClient(mesh=mesh) as client:
        asked = await asyncio.gather(*(client.get("http://itself.example/echo") for _ in range(40)))
    port = servers["http"].port
    assert {one.extensions["meshlib"].endpoint for one in asked} == {f"127.0.0.1:{port}", f"127.0.0.2:{port}"}
    reader, writer = await meshlib.open_connection("itself.example", 7000, mesh=mesh)
    assert await reader.readline() == b"tcp\n"
    writer.close()
    await writer.wait_closed()


def test_a_round_robin_name_is_one_endpoint_whose_connections_stay(
    client: meshlib.Client, mesh: meshlib.Mesh, names: ToldNames, servers: dict[str, Any]
) -> None:
    url, server = "http://one.example/echo", servers["http"]
    key = f"one.example:{server.port}"
    names.addresses["one.example"] = ["127.0.0.1", "127.0.0.2"]
    before = server.connections
    assert endpoint(client, url) == key
    names.addresses["one.example"] = ["127.0.0.9", "127.0.0.1"]
    cluster = "outbound|80||one.example"
    wait_until(
        lambda: mesh.view.endpoints[cluster].localities[0].endpoints[0].at == ("127.0.0.9", server.port)
    )
    assert endpoint(client, url) == key
    assert server.connections == before + 1
    with meshlib.create_connection(("one.example", 7000), mesh=mesh) as made:
        assert made.getpeername()[0] == "127.0.0.9"


def test_each_request_names_where_it_goes(
    client: meshlib.Client, mesh: meshlib.Mesh, names: ToldNames, servers: dict[str, Any]
) -> None:
    names.addresses |= {"en.wiki.example": ["127.0.0.1"], "de.any.example": ["127.0.0.1"]}
    port = servers["http"].port
    for host, cluster in (("en.wiki.example", "*.wiki.example"), ("de.any.example", "*.any.example")):
        answer = client.get(f"http://{host}:{port}/echo")
        assert answer.extensions["meshlib"].endpoint == f"{host}:{port}"
        assert answer.extensions["meshlib"].cluster == f"outbound|{port}||{cluster}"
    # The host of the request decides, and not that of the URL, whose rules it follows.
    answer = client.get(f"http://127.0.0.1:{port}/echo", headers={"host": f"en.wiki.example:{port}"})
    assert answer.extensions["meshlib"].endpoint == f"en.wiki.example:{port}"
    with pytest.raises(meshlib.ConnectFailed, match="Name or service not known"):
        client.get(f"http://nobody.wiki.example:{port}/echo")
    names.addresses["a.wiki.example"] = ["127.0.0.4"]
    with meshlib.create_connection(("a.wiki.example", servers["tcp"]), mesh=mesh) as made:
        assert (made.recv(4), made.getpeername()[0]) == (b"tcp\n", "127.0.0.4")
    # At a port of TLS the name that will be asked for (SNI) decides.
    asked = {"server_hostname": "a.wiki.example"}
    with meshlib.create_connection(("b.wiki.example", servers["tcp"]), mesh=mesh, **asked) as made:
        assert made.getpeername()[0] == "127.0.0.4"


def test_the_closest_wildcard_counts(
    client: meshlib.Client, names: ToldNames, servers: dict[str, Any]
) -> None:
    for host, cluster in (
        ("a.wide.example", "*.wide.example"),
        ("narrow.wide.example", "*.wide.example"),
        ("exact.wide.example", "exact.wide.example"),
        ("a.exact.wide.example", "*.wide.example"),
        ("a.narrow.wide.example", "*.narrow.wide.example"),
        ("b.a.narrow.wide.example", "*.narrow.wide.example"),
    ):
        answer = client.get(f"http://{host}/echo")
        assert answer.extensions["meshlib"].cluster == f"outbound|80||{cluster}", host
    assert names.asked == []
    with pytest.raises(meshlib.ConnectFailed):  # of its own it is not known: it is passed through
        client.get("http://wide.example/echo")


def test_an_address_in_a_subnet_of_a_service(mesh: meshlib.Mesh) -> None:
    for address in ("127.0.0.77", "127.0.1.5"):
        with meshlib.create_connection((address, 7001), mesh=mesh) as made:
            assert (made.recv(4), made.getpeername()[0]) == (b"tcp\n", "127.0.0.1")
    with pytest.raises(meshlib.ConnectFailed, match="PassthroughCluster"):
        meshlib.create_connection(("127.0.2.5", 7001), mesh=mesh)


def test_a_sidecar_says_what_is_seen(folder: Path, names: ToldNames, servers: dict[str, Any]) -> None:
    names.addresses |= {"en.wiki.example": ["127.0.0.1"], "de.any.example": ["127.0.0.1"]}
    port = servers["http"].port
    with meshlib.connect(folder, namespace="shut") as shut, meshlib.Client(mesh=shut) as client:
        assert client.get(f"http://en.wiki.example:{port}/echo").status_code == 200
        assert client.get(f"http://de.any.example:{port}/echo").status_code == 502
        with pytest.raises(meshlib.NoUpstream, match="REGISTRY_ONLY"):
            meshlib.create_connection(("itself.example", 7000), mesh=shut)
        with pytest.raises(meshlib.ConnectFailed, match="REGISTRY_ONLY"):
            client.get("https://secure.example/")


def test_what_is_not_known_goes_through_the_egress_proxy(
    folder: Path, names: ToldNames, servers: dict[str, Any]
) -> None:
    names.addresses["itself.example"] = ["127.0.0.1"]
    with (
        meshlib.connect(folder, namespace="behind") as behind,
        meshlib.create_connection(("unknown.example", 5432), mesh=behind) as made,
    ):
        assert made.recv(4) == b"tcp\n"
    server: RawServer = servers["http"]
    with meshlib.connect(folder, namespace="over-http") as mesh, meshlib.Client(mesh=mesh) as client:
        assert client.get("http://unknown.example/echo").status_code == 200
        assert b"host: unknown.example" in server.heads[-1].lower()
        # What it does not see, it does not know either.
        assert client.get("http://names.example/echo").extensions["meshlib"].route == "allow_any"


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forks_child_looks_names_up_itself(
    client: meshlib.Client, names: ToldNames, servers: dict[str, Any]
) -> None:
    url, port = "http://itself.example/echo", servers["http"].port
    names.addresses["itself.example"] = ["127.0.0.1"]
    assert endpoint(client, url) == f"127.0.0.1:{port}"
    child = os.fork()
    if child == 0:
        good = False
        try:
            names.addresses["itself.example"] = ["127.0.0.2"]
            endpoint(client, url)
            wait_until(lambda: endpoint(client, url) == f"127.0.0.2:{port}")
            good = True
        finally:
            os._exit(0 if good else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert endpoint(client, url) == f"127.0.0.1:{port}"
