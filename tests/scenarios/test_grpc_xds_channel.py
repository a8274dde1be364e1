"""gRPC's own xDS client in one line: rules, identities, new certificates; and what it ignores is told."""

import asyncio
import contextlib
import gc
import json
import logging
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import Mock, patch

import grpc
import grpc.experimental
import pytest
from support.commands import control as plain_control
from support.commands import wait_until
from support.grpc_server import PATH, grpc_server
from support.grpc_workloads import Workloads
from support.grpc_xds_homes import METHOD, VARIABLE
from support.ports import free_port
from support.secure_mesh import secure_mesh

import meshlib
import meshlib_grpc
from meshlib.dataplane import certs, grpc_bootstrap
from meshlib.errors import ConfigError
from meshlib.identity import renewal
from meshlib_grpc.xds import home, homes, watch
from meshlib_grpc.xds.reading import INSTEAD, readers

TESTS = Path(__file__).parents[1]
GREETERS = TESTS / "support/grpcio_greeters.py"
PROGRAMS = TESTS / "support/grpc_xds_homes.py"
TARGET = "greeter:7000"
CART = "spiffe://cluster.local/ns/default/sa/cart"
SERVED = """
apiVersion: v1
kind: Service
metadata: {name: greeter}
spec:
  selector: {app: greeter}
  ports: [{name: grpc, port: 7000}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: greeter}
spec:
  host: greeter
  trafficPolicy: {tls: {mode: ISTIO_MUTUAL}}
  subsets:
  - {name: v1, labels: {version: v1}}
  - {name: v2, labels: {version: v2}}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default}
spec: {mtls: {mode: STRICT}}
"""
ENTRY = """
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: greeter-{name}}}
spec:
  address: 127.0.0.1
  ports: {{grpc: {port}}}
  labels: {{app: greeter, version: {name}}}
  serviceAccount: greeter
"""
RULE = """
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: greeter}}
spec:
  hosts: [greeter]
  http: [{{{said}route: [{{destination: {{host: greeter, subset: {to}}}}}]}}]
"""
PLAIN = """
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: reviews}}
spec:
  hosts: [reviews.example]
  ports: [{{number: 80, name: grpc, protocol: GRPC}}]
  resolution: STATIC
  location: MESH_INTERNAL
  endpoints: [{{address: 127.0.0.1, ports: {{grpc: {port}}}}}]
"""
ALONE = (("grpc.use_local_subchannel_pool", 1),)


class Greeters(Workloads):
    """A mesh with two served greeters."""

    ports: dict[str, int]

    def edit(self, to: str = "v1", said: str = "") -> None:
        """Where calls go, and what else the rule says."""
        entries = [ENTRY.format(name=name, port=port) for name, port in self.ports.items()]
        self.control.edit(SERVED, RULE.format(to=to, said=said), *entries)


@pytest.fixture(scope="module")
def greeters(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Greeters]:
    short = Path(tempfile.mkdtemp(prefix="m-"))  # for the paths of sockets
    try:
        with secure_mesh(tmp_path_factory.mktemp("control"), max_ttl_s=900) as control:
            made = Greeters(control, short)
            made.ports = {"v1": free_port(), "v2": free_port()}
            made.edit()
            served = [f"{name}=127.0.0.1:{port}" for name, port in made.ports.items()]
            bootstrap = str(made.once("greeter", "--label", "app=greeter"))
            process = subprocess.Popen(
                [sys.executable, str(GREETERS), *served],
                env=os.environ | {VARIABLE: bootstrap},
                stdin=subprocess.PIPE,
            )
            try:
                yield made
            finally:
                process.communicate(timeout=20)
    finally:
        shutil.rmtree(short)


@pytest.fixture(autouse=True)
def _nothing_stays() -> Iterator[None]:
    """After each test: no folder, no thread, no word in the environment, nothing read."""
    before = set(Path(tempfile.gettempdir()).glob(f"{home.PREFIX}*"))
    with patch.object(home, "LOOK_SECONDS", 0.05):
        yield
    gc.collect()
    wait_until(lambda: not readers(), 20, "gRPC to let go")
    wait_until(
        lambda: "meshlib-grpc-xds" not in {one.name for one in threading.enumerate()}, 20, "the keeper"
    )
    assert VARIABLE not in os.environ
    assert set(Path(tempfile.gettempdir()).glob(f"{home.PREFIX}*")) <= before


@pytest.fixture
def mesh(greeters: Greeters) -> Iterator[meshlib.Mesh]:
    greeters.edit()
    with greeters.control.joined("cart") as made:
        yield made


def hello(channel: grpc.Channel, deadline: float = 30) -> tuple[str, ...]:
    """The server, the caller's name as it saw it, and its certificate."""
    answer = channel.unary_unary(METHOD)(b"", timeout=deadline, wait_for_ready=True)
    return tuple(answer.decode().split())


def folder() -> Path:
    return Path(os.environ[VARIABLE]).parent


def modes(top: Path) -> dict[str, int]:
    kinds = {one: stat.S_IMODE(one.stat().st_mode) for one in (top, *top.rglob("*")) if not one.is_symlink()}
    return {one.name.partition("-")[0] if one.is_dir() else one.name: mode for one, mode in kinds.items()}


def test_rules_hold_live_by_mutual_tls(greeters: Greeters, mesh: meshlib.Mesh) -> None:
    with meshlib_grpc.xds_channel(TARGET, mesh) as channel:
        assert type(channel) is type(grpc.insecure_channel("127.0.0.1:1"))
        assert hello(channel)[:2] == ("v1", CART)
        assert modes(folder()) == {
            "meshlib": 0o700,
            "certs": 0o700,
            **dict.fromkeys(("bootstrap.json", "control.sock", "cert.pem", "key.pem", "roots.pem"), 0o600),
        }
        greeters.edit(to="v2")
        wait_until(lambda: hello(channel)[0] == "v2", 20, "the edit")


async def test_tasks_share_the_home_of_threads(mesh: meshlib.Mesh) -> None:
    channel = meshlib_grpc.xds_channel(TARGET, mesh)
    named = os.environ[VARIABLE]
    async with meshlib_grpc.aio_xds_channel(TARGET, mesh) as other:
        answer = await other.unary_unary(METHOD)(b"", timeout=30, wait_for_ready=True)
        assert answer.decode().split()[:2] == ["v1", CART]
        assert os.environ[VARIABLE] == named
    del other
    assert (await asyncio.to_thread(hello, channel))[0] == "v1"
    channel.close()


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [one.getMessage() for one in caplog.records if one.name == "meshlib_grpc.xds.watch"]


def test_what_is_ignored_is_told_once_and_again_when_it_changes(
    greeters: Greeters, mesh: meshlib.Mesh, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    greeters.edit(said="mirror: {host: greeter, subset: v2}, ")
    with meshlib_grpc.xds_channel(TARGET, mesh) as channel, meshlib_grpc.xds_channel(TARGET, mesh) as other:
        assert {hello(one)[0] for one in (channel, other)} == {"v1"}
        wait_until(lambda: len(warnings(caplog)) == 1, 20, "the warning")
        told = meshlib_grpc.ignored_by_xds(TARGET, mesh)
        assert [one.partition("yaml:")[2].partition(": ")[2] for one in told] == ["mirrors: no copy is sent"]
        assert told[0].startswith("VirtualService default/greeter mesh.yaml:")
        assert warnings(caplog)[0].endswith(f"of {TARGET} say; meshlib_grpc.channel does:\n  {told[0]}")

        greeters.edit(to="v2")  # which takes nothing amiss
        wait_until(lambda: hello(channel)[0] == "v2", 20, "the edit")
        greeters.edit(said="timeout: 9s, ")
        wait_until(lambda: len(warnings(caplog)) == 2, 20, "another warning")
        assert "timeout: a call ends up to 1 s later than 9 s" in warnings(caplog)[1]
        assert "mirrors" not in warnings(caplog)[1]


def test_new_certificates_and_roots_are_taken_under_calls(
    greeters: Greeters, monkeypatch: pytest.MonkeyPatch
) -> None:
    greeters.edit()
    monkeypatch.setattr(renewal, "RATIO", 0.002)
    monkeypatch.setattr(renewal, "SPREAD", 0.0002)
    monkeypatch.setattr(grpc_bootstrap, "REFRESH", "1s")
    monkeypatch.setattr(certs, "ASK_SECONDS", 0.2)
    with greeters.control.joined("cart") as mesh, meshlib_grpc.xds_channel(TARGET, mesh) as lasting:
        begun, shown = time.monotonic(), set()
        while len(shown) < 3 and time.monotonic() < begun + 60:
            assert hello(lasting)[:2] == ("v1", CART)
            with meshlib_grpc.xds_channel(TARGET, mesh, ALONE) as fresh:
                found = hello(fresh)
            assert found[:2] == ("v1", CART)
            shown.add(found[2])
            time.sleep(0.05)
        assert len(shown) == 3
        roots = folder() / "certs/roots.pem"
        assert roots.read_text().count("BEGIN") == 1
        greeters.control.rotate_root(overlap_s=3600, keep_s=86400)
        wait_until(lambda: roots.read_text().count("BEGIN") == 2, 60, "the new root")
        assert hello(lasting)[:2] == ("v1", CART)


def test_a_control_service_that_comes_later_is_found(greeters: Greeters) -> None:
    greeters.edit()
    settings = greeters.control.settings("cart")
    with contextlib.ExitStack() as stack:
        with greeters.control.down():
            mesh = stack.enter_context(
                meshlib.connect(settings.pop("control"), **settings, state_dir="", first_call_timeout=0.1)
            )
            channel = stack.enter_context(meshlib_grpc.xds_channel(TARGET, mesh))
            with pytest.raises(grpc.RpcError) as failed:
                channel.unary_unary(METHOD)(b"", timeout=20)
            assert failed.value.code() is grpc.StatusCode.UNAVAILABLE

        def answers() -> bool:
            # One that waits for a connection (wait_for_ready) hangs in gRPC 1.85, after such a failure.
            try:
                return channel.unary_unary(METHOD)(b"", timeout=5).split()[0] == b"v1"
            except grpc.RpcError:
                return False

        wait_until(answers, 30, "the control service to be found")
        with greeters.control.down():
            assert hello(channel)[0] == "v1"


def test_one_identity_at_a_time(greeters: Greeters, mesh: meshlib.Mesh) -> None:
    with greeters.control.joined("other") as another:
        channel = meshlib_grpc.xds_channel(TARGET, mesh)
        assert hello(channel)[1] == CART
        with pytest.raises(
            ConfigError, match=r"one workload in a process: cart\.default at .* other\.default"
        ):
            meshlib_grpc.xds_channel(TARGET, another)
        assert hello(channel)[1] == CART
        channel.close()
        del channel
        with meshlib_grpc.xds_channel(TARGET, another) as channel:
            assert hello(channel)[1] == CART.replace("cart", "other")


def own() -> grpc.Channel:
    plain = grpc.experimental.insecure_channel_credentials()
    return grpc.secure_channel("xds:///reviews.example:80", grpc.xds_channel_credentials(plain), ALONE)


@pytest.mark.parametrize("variable", [VARIABLE, INSTEAD])
def test_a_bootstrap_of_the_applications_own_is_not_replaced(
    variable: str, mesh: meshlib.Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "/etc/xds.json")
    with pytest.raises(ConfigError, match=rf"{variable} is set.*grpc\.secure_channel with it"):
        meshlib_grpc.xds_channel(TARGET, mesh)
    assert os.environ[variable] == "/etc/xds.json"
    monkeypatch.delenv(variable)
    with meshlib_grpc.xds_channel(TARGET, mesh) as channel:
        os.environ[VARIABLE] = "/etc/xds.json"
        with pytest.raises(ConfigError, match=f"{VARIABLE} is set to /etc/xds.json"):
            meshlib_grpc.xds_channel(TARGET, mesh)
        del os.environ[VARIABLE]
        with pytest.raises(ConfigError, match=f"{VARIABLE} is not what it was set to"):
            meshlib_grpc.xds_channel(TARGET, mesh)
        channel.close()


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A control service in plain text, and a server behind it."""
    rules = tmp_path_factory.mktemp("plain")
    with grpc_server("plain") as seen:
        (rules / "rules.yaml").write_text(PLAIN.format(port=seen.port))
        with plain_control(rules) as served:
            yield served.address


def test_what_grpc_has_read_before_is_told(
    plain: str, mesh: meshlib.Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(homes, "PATIENCE", 0.05)
    server = {"server_uri": plain, "channel_creds": [{"type": "insecure"}]}
    text = json.dumps({"xds_servers": [server], "node": {"id": "mine", "metadata": {"NAMESPACE": "default"}}})
    with own() as channel:
        monkeypatch.setenv(INSTEAD, text)
        call = channel.unary_unary(PATH + "who")
        assert call(b"", timeout=30, wait_for_ready=True) == b"plain"
        monkeypatch.delenv(INSTEAD)
        with pytest.raises(
            ConfigError, match="gRPC works by another bootstrap in this process, of node mine"
        ):
            meshlib_grpc.xds_channel(TARGET, mesh)
        assert call(b"", timeout=30) == b"plain"
    monkeypatch.setattr(homes, "PATIENCE", 5.0)
    with meshlib_grpc.xds_channel(TARGET, mesh) as channel:
        assert hello(channel)[:2] == ("v1", CART)


def test_in_plain_text_there_are_no_certificates(plain: str) -> None:
    with (
        meshlib.connect(plain, allow_plaintext=True, state_dir="") as mesh,
        meshlib_grpc.xds_channel("Reviews.example:80", mesh) as channel,
    ):
        assert channel.unary_unary(PATH + "who")(b"", timeout=30, wait_for_ready=True) == b"plain"
        assert [one.name for one in folder().iterdir()] == ["bootstrap.json"]


def test_a_closed_mesh_leaves_its_channels(greeters: Greeters) -> None:
    greeters.edit()
    with greeters.control.joined("cart") as mesh:
        channel = meshlib_grpc.xds_channel(TARGET, mesh)
        hello(channel)
    greeters.edit(to="v2")
    wait_until(lambda: hello(channel)[0] == "v2", 20, "the edit")
    channel.close()


def test_what_grpc_can_not_have(tmp_path: Path, mesh: meshlib.Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        meshlib.connect(str(tmp_path)) as local,
        pytest.raises(ConfigError, match=r"needs a control service, host:port; .* is a folder or file"),
    ):
        meshlib_grpc.xds_channel(TARGET, local)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match="no folder can be made for gRPC's bootstrap"):
        meshlib_grpc.xds_channel(TARGET, mesh)
    monkeypatch.undo()
    with pytest.raises(TypeError):
        meshlib_grpc.xds_channel(TARGET, mesh, options=(1, 2))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["x" * 100, "a %41"])
def test_any_folder_for_temporary_files_will_do(
    name: str, tmp_path: Path, mesh: meshlib.Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / name))
    with meshlib_grpc.xds_channel(TARGET, mesh) as channel:
        assert hello(channel)[0] == "v1"
        assert folder().parent == Path("/tmp")
        assert list((tmp_path / name).iterdir()) == []


async def test_what_tasks_can_not_have(tmp_path: Path) -> None:
    with (
        meshlib.connect(str(tmp_path)) as local,
        pytest.raises(ConfigError, match="needs a control service"),
    ):
        meshlib_grpc.aio_xds_channel(TARGET, local)


def test_what_is_ignored_can_not_end_the_keeper(
    mesh: meshlib.Mesh, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(watch, "ignored", Mock(side_effect=IndexError))
    with meshlib_grpc.xds_channel(TARGET, mesh) as channel:
        assert hello(channel)[0] == "v1"
        wait_until(lambda: "can't be told" in caplog.text, 20, "the log")
        assert (folder() / "control.sock").is_socket()


ALLOWED = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: mine}
spec:
  selector: {matchLabels: {app: mine}}
  rules: [{from: [{source: {principals: [cluster.local/ns/default/sa/cart]}}]}]
"""


@pytest.mark.parametrize(("mode", "host"), [("STRICT", "127.0.0.1"), ("PERMISSIVE", "0.0.0.0")])
def test_a_server_registers_and_asks_who_calls(mode: str, host: str, greeters: Greeters) -> None:
    service = SERVED.partition("---")[0].replace("greeter", "mine")
    peers = SERVED.rpartition("---")[2].replace("STRICT", mode)
    greeters.control.edit(service, ALLOWED, peers)
    control, port = greeters.control, free_port()
    who = {"labels": "app=mine", "address": "127.0.0.1", "drain": 0.1}
    with (
        control.joined("greeter", **who) as mine,
        control.joined("cart") as cart,
        control.joined("mallory") as mallory,
        ThreadPoolExecutor(2) as pool,
    ):
        server = meshlib_grpc.xds_server(pool, mesh=mine)
        handlers = {"who": grpc.unary_unary_rpc_method_handler(lambda _, context: context.peer().encode())}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Service", handlers),))
        with pytest.raises(ConfigError, match="needed is IP:port"):
            server.add_port("127.0.0.1:0")
        with pytest.raises(ConfigError, match=r"add_port\(address\) opens a port of the mesh"):
            server.add_insecure_port("127.0.0.1:1")
        assert server.add_port(f"{host}:{port}") == port
        server.start()
        with (
            meshlib_grpc.channel("mine:7000", cart) as channel,
            meshlib_grpc.channel("mine:7000", mallory) as other,
        ):
            call = channel.unary_unary(PATH + "who")
            wait_until(lambda: code(call) == "OK", 30, "the server")
            assert call(b"").startswith(b"ipv4:127.0.0.1")
            (told,) = meshlib_grpc.ignored_by_xds("mine:7000", cart)
            assert told.startswith("Service default/mine mesh.yaml:")
            assert "calls are plain text, for there is no mutual TLS by itself" in told
            assert code(other.unary_unary(PATH + "who")) == "PERMISSION_DENIED"
            assert not server.stop(1).is_set()
            assert not server.wait_for_termination(20)
            wait_until(lambda: code(call) == "UNAVAILABLE", 20, "it to have left")
        del server


def code(call: grpc.UnaryUnaryMultiCallable) -> str:
    """What a call comes to."""
    try:
        call(b"", timeout=5)
    except grpc.RpcError as error:
        return str(error.code().name)
    return "OK"


def program(what: str, environ: dict[str, str], temporary: Path, *called: str) -> subprocess.Popen[str]:
    """Starts one of the programs as a workload of the mesh."""
    return subprocess.Popen(
        [sys.executable, str(PROGRAMS), what, *(called or (TARGET, METHOD))],
        env=environ | {"TMPDIR": str(temporary)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("forks_first", [CART, CART, "True"]),
        ("starts", [CART, CART, "True"]),
        ("crowds", [CART, "1", "1"]),
    ],
)
def test_processes_have_homes_of_their_own(what: str, said: list[str], greeters: Greeters) -> None:
    greeters.edit()
    temporary = greeters.folder / what
    temporary.mkdir()
    with program(what, greeters.environ("cart"), temporary) as running:
        out, _ = running.communicate(timeout=60)
    assert (running.returncode, json.loads(out)) == (0, said)
    assert list(temporary.glob(f"{home.PREFIX}*")) == []


def test_a_fork_after_a_call_has_a_home_of_its_own_too(plain: str, tmp_path: Path) -> None:
    environ = os.environ | {"MESHLIB_CONTROL": plain, "MESHLIB_ALLOW_PLAINTEXT": "true"}
    environ |= {"MESHLIB_STATE_DIR": "", "PYTHONPATH": str(TESTS)}
    with program("forks", environ, tmp_path, "reviews.example:80", PATH + "who") as running:
        out, _ = running.communicate(timeout=60)
    assert (running.returncode, json.loads(out)) == (0, ["plain", "plain", "plain", "True"])


def test_a_fork_that_hangs_in_grpc_is_told(greeters: Greeters) -> None:
    greeters.edit()
    temporary = greeters.folder / "hangs"
    temporary.mkdir()
    with program("forks", greeters.environ("cart"), temporary) as running:
        assert running.stderr is not None
        told = next((line for line in running.stderr if "this process forks" in line), "")
        running.kill()
    assert "hangs in gRPC" in told


def test_a_killed_process_leaves_a_folder_to_the_next(greeters: Greeters, mesh: meshlib.Mesh) -> None:
    temporary = greeters.folder / "killed"
    temporary.mkdir()
    with program("killed", greeters.environ("cart"), temporary) as running:
        assert running.stdout is not None
        left = Path(json.loads(running.stdout.readline())[1]).parent
        with patch.object(tempfile, "tempdir", str(temporary)), patch.object(home, "_YOUNG", 0):
            with meshlib_grpc.xds_channel(TARGET, mesh):
                assert left.exists()
            wait_until(lambda: VARIABLE not in os.environ, 20, "the end")
            running.kill()
            running.wait(20)
            with meshlib_grpc.xds_channel(TARGET, mesh):
                assert not left.exists()
            wait_until(lambda: list(temporary.iterdir()) == [], 20, "the end")
