"""How a workload is said, and what is wrong with one."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from meshlib.agent.workload import Workload
from meshlib.agent.workloads import MAX_BYTES, follow, of_list, read
from meshlib.errors import ConfigError

WHOLE = {
    "name": "ratings-1",
    "namespace": "shop",
    "serviceAccount": "ratings",
    "labels": {"app": "ratings"},
    "ports": {"http": 9080},
    "address": "10.0.0.5",
    "netns": "/run/netns/ratings-1",
    "appPorts": {"9080": 19080},
    "locality": "r/z",
    "weight": 3,
}


def test_everything_that_is_said_of_one() -> None:
    found = Workload.of(WHOLE)
    assert found == Workload(
        "ratings-1",
        (("http", 9080),),
        "shop",
        "ratings",
        (("app", "ratings"),),
        "10.0.0.5",
        "/run/netns/ratings-1",
        ((9080, 19080),),
        0,
        "r/z",
        3,
    )
    assert found.captured
    assert Workload.of(found.said()) == found


def test_defaults_are_those_of_any_process() -> None:
    found = Workload.of({"name": "a", "service": "ratings", "ports": {"http": 9080}})
    assert (found.namespace, found.service_account, found.weight) == ("default", "default", 1)
    assert dict(found.labels)["app"] == "ratings"
    assert not found.captured
    assert Workload.of(found.said()) == found


def test_the_environment_of_the_agent_is_not_that_of_a_workload(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MESHLIB_NAMESPACE", "elsewhere")
    assert Workload.of({"name": "a", "ports": {"http": 1}}).namespace == "default"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": None}, "name: found None; allowed is up to 63"),
        ({"name": "a/b"}, "name: found 'a/b'"),
        ({"name": "a" * 64}, "name: found 'aaa"),
        ({"ports": None}, "ports: found None; allowed is name: number pairs"),
        ({"ports": {}}, "ports: found {}; allowed is name=number pairs"),
        ({"ports": {"http": 0}}, "ports: found {'http': 0}"),
        ({"ports": [9080]}, r"ports: found \[9080\]"),
        ({"port": 9080}, "port: there is no such field; there are name, namespace"),
        ({"serviceAccount": "A"}, "serviceAccount: found 'A'; allowed is lower-case"),
        ({"labels": {"-": "b"}}, "labels: found the label name '-'"),
        ({"labels": "a"}, "labels: found 'a'"),
        ({"address": "somewhere"}, "address: found 'somewhere'; allowed is the IP address"),
        ({"address": "0.0.0.0"}, "address: found '0.0.0.0'"),
        ({"netns": "ratings"}, "netns: found 'ratings'; allowed is the absolute path"),
        ({"netns": "/run/../x"}, "netns: found '/run/../x'"),
        ({"netns": 5}, "netns: found 5"),
        ({"proxyPort": 80}, "proxyPort: found 80; allowed is nothing beside `netns`"),
        ({"netns": None, "proxyPort": 65536}, "proxyPort: found 65536; allowed is a whole number"),
        ({"netns": None, "proxyPort": True}, "proxyPort: found True"),
        ({"appPorts": {"80": 8080}}, "appPorts: found {'80': 8080}; allowed is port: number pairs"),
        ({"appPorts": {"9080": 0}}, "appPorts: found {'9080': 0}"),
        ({"appPorts": [9080]}, r"appPorts: found \[9080\]"),
        ({"weight": 0}, "weight: found 0; allowed is a whole number"),
        ({"locality": "a//b"}, "locality: found 'a//b'"),
    ],
)
def test_what_is_no_good_says_where_and_what_is_allowed(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=f"^w.yaml: {said}"):
        Workload.of(WHOLE | change, "w.yaml: ")


@pytest.mark.parametrize("said", [None, 5, "a", []])
def test_what_is_no_object_is_no_workload(said: Any) -> None:
    with pytest.raises(ConfigError, match="allowed is an object"):
        Workload.of(said)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name: a", "found dict; allowed is a list of workloads"),
        ("- 5", r"\[0\].found 5; allowed is an object"),
        ("- {name: a, ports: {h: 1}}\n- {name: a, ports: {h: 1}}", r"\[1\].name: 'a' stands twice"),
        ("- {name: a, ports: {h: 1, h: 2}}", "line 1: 'h' stands twice"),
        ("- {name: a", "expected ',' or '}'"),
        ("- !!python/object/apply:os.getcwd []", "could not determine a constructor"),
        ("- {? [a] : 1}", "unhashable|found unhashable"),
        ("\x00", "unacceptable character|control characters"),
        ("#" * (MAX_BYTES + 1), f"more than {MAX_BYTES} bytes"),
        ("[" * 20_000, "."),
    ],
)
def test_a_file_that_is_no_good(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "w.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=f"^{path}: .*({said})"):
        read(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read(tmp_path / "none")


def test_an_empty_file_is_an_empty_list(tmp_path: Path) -> None:
    (tmp_path / "w.yaml").write_text("# nobody\n")
    assert read(tmp_path / "w.yaml") == ()
    assert of_list([], "") == ()


async def test_a_file_is_read_again_and_its_last_good_state_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("meshlib.agent.workloads.LOOK_SECONDS", 0.001)
    path = tmp_path / "w.yaml"

    def put(text: str) -> None:
        (tmp_path / "new").write_text(text)
        (tmp_path / "new").replace(path)

    put("- {name: a, ports: {http: 1}}")
    changes = follow(path)
    assert [one.name for one in await anext(changes)] == ["a"]
    put("- {name: a")
    told = asyncio.ensure_future(anext(changes))
    while "the last good one stays" not in caplog.text:
        await asyncio.sleep(0.001)
    put("- {name: a, ports: {http: 1}}  # the same\n")
    put("- {name: b, ports: {http: 1}}")
    assert [one.name for one in await told] == ["b"]
    path.unlink()
    told = asyncio.ensure_future(anext(changes))
    while "No such file" not in caplog.text:
        await asyncio.sleep(0.001)
    put("")
    assert await told == ()
    await changes.aclose()
