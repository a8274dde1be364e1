"""Settings from arguments and environment: each good, each bad, and what follows from what."""

import warnings
from pathlib import Path
from typing import Any

import pytest

from meshlib.bootstrap import Bootstrap, bootstrap
from meshlib.errors import ConfigError


def test_defaults() -> None:
    assert bootstrap({}) == Bootstrap()
    assert Bootstrap().control == "127.0.0.1:15010"
    assert bootstrap({}).state_dir is None


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("control", "control.mesh:15010", "control.mesh:15010"),
        ("control", "[::1]:1", "[::1]:1"),
        ("namespace", "books", "books"),
        ("service", "reviews-1.2", "reviews-1.2"),
        ("service_account", "bookinfo-reviews", "bookinfo-reviews"),
        ("labels", "version=v1, app=reviews", (("app", "reviews"), ("version", "v1"))),
        ("labels", "empty=", (("empty", ""),)),
        ("labels", f"{'p' * 253}/{'n' * 63}={'v' * 63}", (("p" * 253 + "/" + "n" * 63, "v" * 63),)),
        ("labels", "x.io/A_b.c=V_1.2-x", (("x.io/A_b.c", "V_1.2-x"),)),
        ("locality", "eu/west/1", "eu/west/1"),
        ("locality", "eu", "eu"),
        ("state_dir", "/var/lib/mesh", Path("/var/lib/mesh")),
        ("state_dir", "", None),
        ("first_call_timeout", "0", 0.0),
        ("first_call_timeout", "2.5", 2.5),
        ("idle_targets", "1", 1.0),
        ("max_targets", "20000", 20_000),
        ("idle_connections", "0", 0),
        ("drain", "0", 0.0),
        ("request_headers_timeout", "0.1", 0.1),
        ("address", "10.0.0.1", "10.0.0.1"),
        ("address", "0:0::1", "::1"),
        ("ports", "http=9080,admin=9081", (("admin", 9081), ("http", 9080))),
        ("weight", "131072", 131_072),
    ],
)
def test_good(name: str, text: str, value: Any) -> None:
    assert getattr(bootstrap({f"MESHLIB_{name.upper()}": text}), name) == value
    assert getattr(bootstrap({}, **{name: text}), name) == value


@pytest.mark.parametrize(
    ("name", "text", "allowed"),
    [
        ("control", "host", "host:port"),
        ("control", "host:0", "host:port"),
        ("control", "host:65536", "host:port"),
        ("control", "host:٣", "host:port"),
        ("control", "::1:15010", "host:port"),
        ("control", ":15010", "host:port"),
        ("control", "a\0b:1", "host:port"),
        ("namespace", "Books", "lower-case letters"),
        ("service", "a_b", "lower-case letters"),
        ("service_account", "a" * 254, "lower-case letters"),
        ("labels", "app", "each name once"),
        ("labels", "=v", "each name once"),
        ("labels", "a=1,a=2", "each name once"),
        ("locality", "eu\nwest", "region[/zone[/subzone]]"),
        ("locality", "a/b/c/d", "region[/zone[/subzone]]"),
        ("locality", "a//c", "none of them empty"),
        ("locality", "/b", "none of them empty"),
        ("locality", "a/", "none of them empty"),
        ("first_call_timeout", "-1", "0 or more"),
        ("first_call_timeout", "soon", "0 or more"),
        ("drain", "nan", "0 or more"),
        ("request_headers_timeout", "0", "0.1 or more"),
        ("drain", "inf", "0 or more"),
        ("idle_targets", "0.5", "1 or more"),
        ("max_targets", "0", "from 1 to 20000"),
        ("idle_connections", "-1", "from 0 to 1000000"),
        ("max_targets", "1.5", "from 1 to 20000"),
        ("address", "reviews", "the IP address"),
        ("address", "0.0.0.0", "the IP address"),
        ("address", "224.0.0.1", "the IP address"),
        ("ports", "9080", "name=number"),
        ("ports", "http=0", "name=number"),
        ("ports", "http=65536", "name=number"),
        ("ports", "HTTP=1", "name=number"),
        ("weight", "0", "from 1 to 131072"),
    ],
)
def test_bad(name: str, text: str, allowed: str) -> None:
    with pytest.raises(ConfigError) as by_environment:
        bootstrap({f"MESHLIB_{name.upper()}": text})
    assert str(by_environment.value).startswith(f"MESHLIB_{name.upper()}: found {text!r}; allowed is ")
    assert allowed in str(by_environment.value)
    with pytest.raises(ConfigError) as by_argument:
        bootstrap({}, **{name: text})
    assert str(by_argument.value).startswith(f"{name}: found {text!r}; allowed is ")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("namespace", 7),
        ("labels", {"app": 1}),
        ("labels", {"": "x"}),
        ("ports", {}),
        ("ports", {"http": True}),
        ("max_targets", True),
        ("max_targets", 10.0),
        ("drain", False),
        ("address", []),
        ("control", 15010),
    ],
)
def test_arguments_of_a_wrong_type(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"^{name}: found "):
        bootstrap({}, **{name: value})


def test_an_argument_wins_and_none_is_not_given() -> None:
    environ = {"MESHLIB_NAMESPACE": "one"}
    assert bootstrap(environ, namespace="two").namespace == "two"
    assert bootstrap(environ, namespace=None).namespace == "one"


def test_an_empty_variable_is_not_set() -> None:
    assert bootstrap({"MESHLIB_NAMESPACE": "", "MESHLIB_PORTS": ""}) == Bootstrap()


@pytest.mark.parametrize("given", ["./mesh", "mesh/", "../x", "~/mesh", "rules.yaml", "rules.yml", "/x"])
def test_what_is_written_like_a_path_is_one(given: str) -> None:
    found = bootstrap({}, allow_plaintext=True, control=given)
    assert (found.local, found.control) == (True, str(Path(given).expanduser()))


def test_a_path_that_exists_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rules:1").mkdir()
    monkeypatch.chdir(tmp_path)
    assert bootstrap({}, allow_plaintext=True, control="rules:1").local
    assert bootstrap({}, allow_plaintext=True, control=tmp_path).local
    assert not bootstrap({}, allow_plaintext=True, control="rules:2").local


def test_the_service_names_the_workload() -> None:
    found = bootstrap({"MESHLIB_SERVICE": "reviews"})
    assert found.label_map == {"app": "reviews", "service.istio.io/canonical-name": "reviews"}
    assert found.service_account == "default"
    assert bootstrap({"MESHLIB_SERVICE": "reviews"}, labels={"app": "x"}).label_map == {"app": "x"}


@pytest.mark.parametrize(
    ("environ", "folder"),
    [
        ({"HOME": "/home/me"}, "/home/me/.local/state/meshlib/default/default"),
        ({"HOME": "/home/me", "XDG_STATE_HOME": "/state"}, "/state/meshlib/default/default"),
        ({"HOME": "/home/me", "XDG_STATE_HOME": "state"}, "/home/me/.local/state/meshlib/default/default"),
        ({"HOME": "/h", "MESHLIB_SERVICE": "a", "MESHLIB_NAMESPACE": "b"}, "/h/.local/state/meshlib/b/a"),
        ({"HOME": "/h", "MESHLIB_SERVICE_ACCOUNT": "c"}, "/h/.local/state/meshlib/default/c"),
    ],
)
def test_where_state_is_kept(environ: dict[str, str], folder: str) -> None:
    assert bootstrap(environ).state_dir == Path(folder)


@pytest.mark.parametrize("environ", [{}, {"HOME": "here"}, {"HOME": "/home/me", "MESHLIB_STATE_DIR": ""}])
def test_no_state_is_kept(environ: dict[str, str]) -> None:
    assert bootstrap(environ).state_dir is None


def test_a_variable_that_nobody_reads() -> None:
    with pytest.warns(
        UserWarning, match=r"^MESHLIB_NAMESPCE is not a setting; did you mean MESHLIB_NAMESPACE\?$"
    ):
        assert bootstrap({"MESHLIB_NAMESPCE": "x"}) == Bootstrap()
    with pytest.warns(UserWarning, match=r"^MESHLIB_QQQ is not a setting$"):
        bootstrap({"MESHLIB_QQQ": "x"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bootstrap({"MESH_LIB": "x", "meshlib_x": "y"})


def test_an_argument_that_there_is_not() -> None:
    with pytest.raises(TypeError, match=r"^no setting is named 'lables'; did you mean labels\?$"):
        bootstrap({}, lables={})


@pytest.mark.parametrize("service", ["a" * 64, "a.", "-"])
def test_a_service_that_can_be_no_label(service: str) -> None:
    with pytest.raises(ConfigError, match=r"^service: found .*; allowed is up to 63 letters"):
        bootstrap({}, service=service)
    assert bootstrap({}, service=service, labels={"app": "a"}).service == service


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a=\x07", "the value '\\x07' of the label a; allowed is up to 63 letters"),
        ("app=a b", "the value 'a b' of the label app; allowed is up to 63 letters"),
        ("app=-a", "the value '-a' of the label app"),
        ("app=a.", "the value 'a.' of the label app"),
        ("app=é", "the value 'é' of the label app"),
        (f"app={'a' * 64}", "of the label app; allowed is up to 63 letters"),
        ("a b=c", "the label name 'a b'; allowed is [prefix/]name: up to 63 letters"),
        ("-a=c", "the label name '-a'"),
        (f"{'a' * 64}=c", "the label name"),
        ("/a=c", "the label name '/a'"),
        ("x.io/=c", "the label name 'x.io/'"),
        ("x/y/z=c", "the label name 'x/y/z'"),
        ("X.io/a=c", "the prefix a lower-case DNS name"),
        ("x..io/a=c", "the prefix a lower-case DNS name"),
        (f"{'a' * 254}/a=c", "the prefix a lower-case DNS name"),
    ],
)
def test_no_label(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as by_environment:
        bootstrap({"MESHLIB_LABELS": text})
    assert str(by_environment.value).startswith("MESHLIB_LABELS: found the ")
    assert said in str(by_environment.value)
    with pytest.raises(ConfigError) as by_argument:
        bootstrap({}, labels=dict([text.split("=")]))
    assert str(by_argument.value) == str(by_environment.value).removeprefix("MESHLIB_").replace(
        "LABELS", "labels", 1
    )
