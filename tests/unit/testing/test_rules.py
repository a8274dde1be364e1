"""Rules of a mesh in a test: what is taken, what exists because it is named, what is refused."""

from pathlib import Path
from typing import Any

import pytest

import meshlib
from meshlib.errors import ConfigError
from meshlib.testing import Response, ScriptedMesh, UnexpectedCall

SUBSETS = """
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: ratings}
spec:
  host: ratings
  subsets:
  - {name: v1, labels: {version: v1}}
  - {name: v2, labels: {version: v2}}
"""
TO_V2 = """
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: ratings}
spec:
  hosts: [ratings]
  http: [{route: [{destination: {host: ratings, subset: v2}}]}]
"""


def virtual(name: str, *http: str) -> str:
    head = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata"
    return f"{head}: {{name: {name.partition('.')[0]}}}\nspec: {{hosts: [{name}], http: [{', '.join(http)}]}}"


def route(host: str, more: str = "") -> str:
    return f"{{route: [{{destination: {{host: {host}}}}}]{more}}}"


def get(url: str, **more: Any) -> int:
    with meshlib.Client() as client:
        return client.get(url, **more).status_code


def test_files_folders_and_texts_are_taken(tmp_path: Path) -> None:
    folder = tmp_path / "mesh"
    folder.mkdir()
    (folder / "one.yaml").write_text(SUBSETS)
    (tmp_path / "two.yaml").write_text(TO_V2)
    with ScriptedMesh("mesh", Path("two.yaml"), root=tmp_path) as mesh:
        assert "2 documents, serves nobody, 0 calls" in repr(mesh)
        mesh.serve("ratings", version="v2")
        assert get("http://ratings:9080/") == 200
        mesh.assert_called("ratings", subset="v2")
        mesh.apply(TO_V2.replace("v2", "v1"))
        mesh.serve("ratings", 201, version="v1")
        assert get("http://ratings:9080/") == 201


def test_what_is_refused_raises_and_changes_nothing(tmp_path: Path) -> None:
    with ScriptedMesh(SUBSETS, TO_V2, root=tmp_path) as mesh:
        mesh.serve("ratings")
        with pytest.raises(ConfigError, match=r"apply-3.yaml:7.*weight"):
            mesh.apply(TO_V2.replace("subset: v2}", "subset: v2}, weight: -1"))
        with pytest.raises(ConfigError, match="no such file or folder; a text of YAML has"):
            mesh.apply("nowhere")
        with pytest.raises(ConfigError, match="there is no document in it"):
            mesh.apply(tmp_path)
        assert get("http://ratings:9080/") == 200
        mesh.assert_called("ratings", subset="v2")


def test_rules_at_the_start_are_held_to_the_same() -> None:
    with pytest.raises(ConfigError, match="did you mean VirtualService"):
        ScriptedMesh(TO_V2.replace("VirtualService", "VirtualServic"))


@pytest.mark.parametrize("settings", [{"control": "mesh/"}, {"nonsense": 1}])
def test_settings_say_who_and_nothing_else(settings: dict[str, Any]) -> None:
    with pytest.raises(TypeError):
        ScriptedMesh(**settings)


def test_the_environment_has_no_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MESHLIB_NAMESPACE", "elsewhere")
    with ScriptedMesh() as mesh:
        assert mesh.bootstrap.namespace == "default"


@pytest.mark.parametrize(
    ("served", "url"),
    [
        ("ratings", "http://ratings/"),
        ("ratings", "http://ratings.default:8080/"),
        ("ratings.default.svc", "http://ratings:1/"),
        ("ratings.default.svc.cluster.local", "http://RATINGS.default.svc.cluster.local:9080/"),
        ("api.example.com", "http://api.example.com/"),
        ("ratings.shop.svc", "http://ratings.shop:9080/"),
        ("10.1.2.3", "http://10.1.2.3:9080/"),
    ],
)
def test_what_is_served_exists_at_every_port(served: str, url: str) -> None:
    with ScriptedMesh() as mesh:
        mesh.serve(served)
        assert get(url) == 200
        mesh.assert_called(served, times=1)


def test_a_given_port_is_the_only_one() -> None:
    with ScriptedMesh(virtual("shop", route("ratings"))) as mesh:
        mesh.serve("ratings", port=9080)
        assert get("http://shop/") == 200  # a destination with one port is reached at that one
        mesh.assert_called("ratings", port=9080)


def test_hosts_that_rules_name_exist_and_nobody_serves_them() -> None:
    rules = virtual("shop.example.com", route("ratings", ", mirror: {host: audit, port: {number: 81}}"))
    with ScriptedMesh(rules) as mesh:
        with pytest.raises(UnexpectedCall, match=r"a copy of GET http://shop.example.com/ went to audit:81"):
            get("http://shop.example.com/")
        mesh.serve("audit")
        with pytest.raises(UnexpectedCall, match=r"went to ratings:80, which nobody serves"):
            get("http://shop.example.com/")


def test_services_of_the_rules_are_kept() -> None:
    service = """
apiVersion: v1
kind: Service
metadata: {name: ratings, namespace: shop}
spec: {selector: {app: ratings}, ports: [{port: 80, targetPort: 9080, name: http}]}
"""
    for early in (True, False):
        with ScriptedMesh(*[service] * early) as mesh:
            mesh.serve("ratings.shop")
            mesh.apply(*[service] * (not early))
            assert get("http://ratings.shop/") == 200
            (call,) = mesh.calls("ratings.shop.svc.cluster.local")
            assert (call.endpoint, call.host) == ("198.18.0.1:9080", "ratings.shop.svc.cluster.local")


def test_endpoints_of_the_rules_are_kept() -> None:
    entry = """
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: db}
spec:
  hosts: [db.example.com]
  ports: [{number: 80, name: http, protocol: HTTP}]
  resolution: STATIC
  endpoints:
  - {address: 10.0.0.1, labels: {version: v1}}
  - {address: 10.0.0.2, labels: {version: v2}}
"""
    with ScriptedMesh(entry, SUBSETS.replace("ratings", "db.example.com")) as mesh:
        mesh.serve("db.example.com", 200)
        mesh.serve("db.example.com", 201, version="v2")
        got = {get("http://db.example.com/") for _ in range(20)}
        assert got == {200, 201}
        assert {(call.endpoint, call.outcome) for call in mesh.calls()} == {
            ("10.0.0.1:80", 200),
            ("10.0.0.2:80", 201),
        }


@pytest.mark.parametrize("resolution", ["NONE", "DNS"])
def test_service_entries_without_addresses(resolution: str) -> None:
    entry = (
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: a}\nspec: {hosts: "
        f"[a.example.com], ports: [{{number: 80, name: http, protocol: HTTP}}], resolution: {resolution}}}"
    )
    with ScriptedMesh(entry) as mesh:
        with pytest.raises(UnexpectedCall, match=r"went to a.example.com:80, which nobody serves"):
            get("http://a.example.com/")
        mesh.serve("a.example.com")
        assert get("http://a.example.com/") == 200


def test_a_wildcard_is_served_by_the_name_that_is_called() -> None:
    entry = (
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: a}\nspec: {hosts: "
        '["*.example.com"], ports: [{number: 80, name: http, protocol: HTTP}], resolution: NONE}'
    )
    with ScriptedMesh(entry) as mesh:
        mesh.serve("a.example.com")
        assert get("http://a.example.com/") == 200
        with pytest.raises(UnexpectedCall, match=r"went to b.example.com:80"):
            get("http://b.example.com/")


def test_groups_without_labels_serve_what_no_other_group_does() -> None:
    with ScriptedMesh(SUBSETS, TO_V2) as mesh:
        mesh.serve("ratings", 200)
        assert get("http://ratings/") == 200
        mesh.serve("ratings", 202, version="v2")
        assert {get("http://ratings/") for _ in range(10)} == {202}
        mesh.serve("ratings", 203, version="v2")
        assert get("http://ratings/") == 203


def test_no_endpoints_is_no_healthy_upstream() -> None:
    with ScriptedMesh(SUBSETS, TO_V2) as mesh, meshlib.Client() as client:
        mesh.serve("ratings", endpoints=0)
        answer = client.get("http://ratings/")
        assert (answer.status_code, answer.extensions["meshlib"].flag) == (503, "UH")
        mesh.serve("ratings", version="v1")
        assert get("http://ratings/") == 503
    with pytest.raises(ValueError, match="-1 endpoints"):
        mesh.serve("ratings", endpoints=-1)


def test_a_host_that_can_not_be_is_refused() -> None:
    with ScriptedMesh() as mesh:
        mesh.serve("a_b")
        with pytest.raises(ConfigError, match="a_b"):
            get("http://a_b/")


def test_outbound_traffic_that_the_mesh_blocks_is_no_surprise() -> None:
    only = (
        "apiVersion: mesh.istio.io/v1alpha1\nkind: MeshConfig\noutboundTrafficPolicy: {mode: REGISTRY_ONLY}"
    )
    with ScriptedMesh(only) as mesh:
        assert get("http://unknown/") == 502
        assert mesh.unexpected == []


def test_what_the_rules_make_of_a_request_arrives() -> None:
    edits = ", rewrite: {uri: /b}, headers: {request: {set: {x-a: b}}, response: {add: {x-c: d}}}"
    with ScriptedMesh(virtual("shop", route("ratings", edits))) as mesh, meshlib.Client() as client:
        mesh.serve("ratings", lambda call: Response(text=call.path + call.headers["x-a"]))
        answer = client.get("http://shop/a")
        assert (answer.text, answer.headers["x-c"]) == ("/bab", "d")
