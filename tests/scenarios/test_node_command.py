"""`meshlib node` on two machines that are network namespaces, everything STRICT: a Node.js program and plain
ones of Python in pods, peers that are Python in the mesh. Needs root.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.commands import MESHLIB, wait_until
from support.machines import Machine, Started, Underlay, pod, system, underlay
from support.secure_mesh import SecureMesh, secure_mesh

import meshlib

MESH = """
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: istio-system}
spec: {mtls: {mode: STRICT}}
---
apiVersion: v1
kind: Service
metadata: {name: ratings}
spec: {selector: {app: ratings}, ports: [{name: http, port: 9080}]}
---
apiVersion: v1
kind: Service
metadata: {name: details}
spec: {selector: {app: details}, ports: [{name: http, port: 9080}]}
---
apiVersion: v1
kind: Service
metadata: {name: listed}
spec: {selector: {app: listed}, ports: [{name: http, port: 9080}]}
"""
# The tutorial's: answers with the headers that it was sent.
RATINGS = """
const http = require('http');
http.createServer((request, response) => {
  response.setHeader('content-type', 'application/json');
  const token = process.env.MESHLIB_TOKEN;
  const body = JSON.stringify({ratings: {Reviewer1: 5}, headers: request.headers, token});
  setTimeout(() => response.end(body), request.url === '/slow' ? 4000 : 0);
}).listen(process.env.PORT, () => console.log('ratings listens'));
"""
DETAILS = """
import http.server, json, os
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        body = json.dumps({"details": 1, "headers": dict(self.headers)}).encode()
        self.send_response(200); self.send_header("content-length", str(len(body))); self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_): pass
print("details listens", flush=True)
http.server.ThreadingHTTPServer(("", int(os.environ["PORT"])), Handler).serve_forever()
"""
HANDSHAKE = b"\x16\x03\x01"
SPIFFE = "spiffe://cluster.local/ns/default/sa/"


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Underlay]:
    with underlay(tmp_path_factory.mktemp("net")) as made:
        yield made


@pytest.fixture(scope="module")
def mesh(net: Underlay, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureMesh]:
    with secure_mesh(tmp_path_factory.mktemp("mesh"), MESH, address=f"{net.address}:0") as made:
        yield made


@pytest.fixture(scope="module")
def one(net: Underlay) -> Machine:
    return net.machine("vm1")


@pytest.fixture(scope="module")
def two(net: Underlay) -> Machine:
    return net.machine("vm2")


@pytest.fixture(scope="module")
def nodes(mesh: SecureMesh, one: Machine, two: Machine) -> tuple[Started, Started]:
    return one.node(mesh), two.node(mesh)


@pytest.fixture(scope="module")
def ratings(nodes: Any, one: Machine) -> Started:
    script = one.folder / "ratings.js"
    script.write_text(RATINGS)
    made = one.run("ratings", "node", str(script))
    made.wait_for("ratings listens")
    return made


@pytest.fixture(scope="module")
def details(nodes: Any, two: Machine) -> Started:
    made = two.run("details", sys.executable, "-c", DETAILS)
    made.wait_for("details listens")
    return made


@pytest.fixture(scope="module")
def reviews(net: Underlay, mesh: SecureMesh) -> Iterator[None]:
    """A Python server in the mesh."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("MESHLIB_")}
    own |= {f"MESHLIB_{name.upper()}": str(value) for name, value in mesh.settings("reviews").items()}
    own |= {"MESHLIB_STATE_DIR": str(net.folder / "reviews"), "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [*MESHLIB, "serve", "support.telling:app", "--service", "reviews", "--host", net.address]
    log = net.folder / "reviews.log"
    with (
        log.open("wb") as output,
        subprocess.Popen(command, env=own, stdout=output, stderr=output) as process,
    ):
        try:
            wait_until(lambda: "serving at" in log.read_text() or process.poll() is not None, 60, "reviews")
            yield
        finally:
            process.terminate()
            process.wait(20)
            print(log.read_text())


def netns_of(machine: Machine, name: str) -> str:
    return str(machine.workloads()[name]["netns"])


def answer(machine: Machine, name: str, url: str) -> Any:
    """What plain curl in a pod is answered in the end; the other may have joined just now."""
    found: list[str] = []
    netns = netns_of(machine, name)

    def succeeds() -> bool:
        command = ["curl", "-sS", "--max-time", "20", "-H", "x-marked: plainly", url]
        with contextlib.suppress(subprocess.CalledProcessError):
            found.append(machine.inside(netns, *command))
        return bool(found) and found[-1].startswith("{")

    wait_until(succeeds, 20, f"an answer of {url}")
    return json.loads(found[-1])


def test_a_node_js_program_is_called_by_a_python_client(mesh: SecureMesh, ratings: Started) -> None:
    with mesh.joined("productpage") as joined, meshlib.Client(mesh=joined) as client:
        answer = client.get("http://ratings:9080/ratings/0")
    assert answer.status_code == 200
    assert answer.json()["ratings"] == {"Reviewer1": 5}
    assert f"URI={SPIFFE}productpage" in answer.json()["headers"]["x-forwarded-client-cert"]
    assert "token" not in answer.json()


def test_plain_curl_in_a_pod_calls_a_python_server(one: Machine, ratings: Started, reviews: None) -> None:
    found = answer(one, "ratings", "http://reviews:9080/reviews/0")
    assert found["principal"] == f"{SPIFFE}ratings"


def test_pods_of_two_nodes_and_of_one_call_each_other_and_only_tls_is_seen(
    net: Underlay, one: Machine, two: Machine, ratings: Started, details: Started, reviews: None
) -> None:
    with net.seen() as file:
        there = answer(one, "ratings", "http://details:9080/details/0")
        back = answer(two, "details", "http://ratings.default:9080/")
        answer(one, "ratings", "http://reviews:9080/")
        wait_until(lambda: HANDSHAKE in file.read_bytes(), 20, "packets")
    assert there["headers"]["x-marked"] == back["headers"]["x-marked"] == "plainly"
    assert f"URI={SPIFFE}ratings" in there["headers"]["x-forwarded-client-cert"]
    assert f"URI={SPIFFE}details" in back["headers"]["x-forwarded-client-cert"]
    seen = file.read_bytes()
    for word in (b"plainly", b"GET /", b"HTTP/1.1", b"Reviewer1"):
        assert word not in seen


def test_what_is_not_of_the_mesh_is_refused_by_the_workload(one: Machine, ratings: Started) -> None:
    address = one.workloads()["ratings"]["address"]
    with httpx.Client(trust_env=False) as stranger, pytest.raises(httpx.TransportError):
        stranger.get(f"http://{address}:9080/")


def test_workloads_of_a_file_come_and_go(mesh: SecureMesh, net: Underlay) -> None:
    machine = net.machine("vm3")
    file = machine.folder / "workloads.yaml"
    file.write_text("[]\n")
    node = machine.node(mesh, "--workloads", str(file))
    with pod(machine) as own:
        netns = own.name
        enter = f"--net=/run/netns/{netns}"
        server = machine.start("listed", "nsenter", enter, sys.executable, "-c", DETAILS, PORT="9080")
        server.wait_for("details listens")
        enrolled = [
            {"name": "listed-1", "service": "listed", "ports": {"http": 9080}, "netns": f"/run/netns/{netns}"}
        ]
        began = time.monotonic()
        replace(file, json.dumps(enrolled))
        with mesh.joined("productpage") as joined, meshlib.Client(mesh=joined) as client:
            wait_until(lambda: succeeded(client, "http://listed:9080/"), 30, "the enrolled pod")
            print(f"enrolled after {time.monotonic() - began:.2f} s")
            replace(file, "[{name: broken")
            node.wait_for("the last good one stays")
            assert client.get("http://listed:9080/").status_code == 200
        assert "meshlib" in rules(netns)
        replace(file, "[]")
        wait_until(lambda: "meshlib" not in rules(netns), 30, "the end of the rules")
        assert machine.workloads() == {}
        assert "details" in httpx.get(f"http://{own.address}:9080/", trust_env=False).text
        taker = machine.start("taker", sys.executable, "-c", DETAILS, PORT="9099")
        taker.wait_for("details listens")
        clash = {"name": "clash", "service": "listed", "ports": {"http": 9099}, "appPorts": {"9099": 9098}}
        replace(file, json.dumps([clash]))
        node.wait_for("inbound of the workload clash is not served: ")
        why = machine.workloads()["clash"]["why"]
        assert re.search(rf":9099 is in use by python[\d.]* \({taker.process.pid}\)", why), why
        taker.end(signal.SIGKILL)
        node.wait_for("inbound of the workload clash is served now")
        wait_until(lambda: machine.workloads()["clash"]["why"] == "", 30, "the clash to end")
        replace(file, "[]")
        # A killed agent leaves the namespace closed; the next one opens what nobody claims.
        replace(file, json.dumps(enrolled))
        wait_until(lambda: ready(machine, "listed-1"), 30, "it")
        node.end(signal.SIGKILL)
        with pytest.raises(httpx.TransportError):
            httpx.get(f"http://{own.address}:9080/", trust_env=False)
        removed = system(*MESHLIB, "node", "clean", "--socket", str(machine.socket))
        for what in (f"the rules in /run/netns/{netns}", "the folder ", f"the socket {machine.socket}"):
            assert f"removed: {what}" in removed
        assert "meshlib" not in rules(netns)
        again = machine.node(mesh, "--workloads", str(file))
        wait_until(lambda: ready(machine, "listed-1"), 30, "the workload")
        again.end(signal.SIGKILL)
        replace(file, "[]")
        third = machine.node(mesh, "--workloads", str(file))
        third.wait_for(f"removed what was left behind: the rules in /run/netns/{netns}")
        assert "meshlib" not in rules(netns)
        # One that ends orderly leaves it closed, too.
        replace(file, json.dumps(enrolled))
        wait_until(lambda: ready(machine, "listed-1"), 30, "the workload")
        assert third.end() == 0
        with pytest.raises(httpx.TransportError):
            httpx.get(f"http://{own.address}:9080/", trust_env=False)
        # And so does one that is told of no list.
        without = machine.node(mesh)
        without.wait_for(f"/run/netns/{netns} was captured and stays closed")
        assert without.end() == 0
        assert "meshlib" in rules(netns)
        fourth = machine.node(mesh, "--workloads", str(file), "--open-at-end")
        wait_until(lambda: ready(machine, "listed-1"), 30, "the workload")
        assert fourth.end() == 0
        assert "meshlib" not in rules(netns)


def ready(machine: Machine, name: str) -> bool:
    return machine.workloads().get(name, {}).get("why") == ""


def envoys(node: Started) -> list[int]:
    """The processes of its Envoy."""
    own = node.process.pid
    children = Path(f"/proc/{own}/task/{own}/children").read_text().split()
    return [int(one) for one in children if "envoy" in Path(f"/proc/{one}/comm").read_text()]


class Calls:
    """Calls all the time, on a thread, with new connections every few calls."""

    def __init__(self, mesh: meshlib.Mesh, url: str) -> None:
        self._mesh, self._url = mesh, url
        self.answers, self.failures = 0, list[str]()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._stop.is_set():
            with meshlib.Client(mesh=self._mesh) as client:
                for _ in range(5):
                    self._call(client)
                    self._stop.wait(0.01)

    def _call(self, client: Any) -> None:
        try:
            found = client.get(self._url)
        except Exception as error:
            self.failures.append(repr(error))
        else:
            self.answers += found.status_code == 200
            if found.status_code != 200:
                self.failures.append(f"{found.status_code} {found.text}")

    def more(self, count: int = 20) -> None:
        """Waits for so many more answers."""
        least = self.answers + count
        wait_until(lambda: self.answers >= least or bool(self.failures), 60, "answers")

    def __enter__(self) -> "Calls":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(30)


def test_an_envoy_takes_over_from_another_while_it_is_called(
    mesh: SecureMesh, one: Machine, nodes: tuple[Started, Started], ratings: Started
) -> None:
    told = "another Envoy has taken over"
    with (
        mesh.joined("productpage") as joined,
        Calls(joined, "http://ratings:9080/") as calls,
        ThreadPoolExecutor() as aside,
    ):
        calls.more()
        (before,) = envoys(nodes[0])
        slow = aside.submit(httpx_get, joined, "http://ratings:9080/slow")
        wait_until(lambda: slow.running(), 10, "a slow call")
        time.sleep(0.3)
        for _ in range(2):
            # The second comes while the old one still has a request.
            nodes[0].process.send_signal(signal.SIGHUP)
            while told not in nodes[0].said:
                assert one.workloads()["ratings"]["why"] == "", "one of them serves"
        assert slow.result(60) == 200
        wait_until(lambda: nodes[0].said.count(told) == 2, 60, "the third")
        assert before not in envoys(nodes[0])
        calls.more()
    assert calls.failures == []
    answer(one, "ratings", "http://ratings:9080/")


def httpx_get(mesh: meshlib.Mesh, url: str) -> int:
    with meshlib.Client(mesh=mesh) as client:
        return int(client.get(url).status_code)


def test_a_killed_envoy_means_no_traffic_and_comes_back(
    mesh: SecureMesh, one: Machine, nodes: tuple[Started, Started], ratings: Started
) -> None:
    wait_until(lambda: len(envoys(nodes[0])) == 1, 60, "the end of those that others took over from")
    (before,) = envoys(nodes[0])
    os.kill(before, signal.SIGKILL)
    answer(one, "ratings", "http://ratings:9080/")
    assert envoys(nodes[0]) not in ([], [before])


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_program_outlives_the_agent_and_is_enrolled_again(
    mesh: SecureMesh, net: Underlay, how: signal.Signals
) -> None:
    machine = net.machine(f"vm{how}")
    node = machine.node(mesh)
    program = machine.run("listed", sys.executable, "-c", DETAILS)
    program.wait_for("details listens")
    netns = netns_of(machine, "listed")
    assert node.end(how) == (0 if how == signal.SIGTERM else -how)
    program.wait_for("the node's agent is gone; the program is cut off")
    assert "meshlib" in rules(Path(netns).name)
    for url in ("http://listed:9080/", f"http://{net.address}:{mesh.address.rpartition(':')[2]}/"):
        with pytest.raises(subprocess.CalledProcessError):
            machine.inside(netns, "curl", "-sS", "--max-time", "20", url)
    node = machine.node(mesh)
    wait_until(lambda: ready(machine, "listed"), 60, "the workload")
    answer(machine, "listed", "http://listed:9080/")
    # And when `run` itself is killed, nothing is left of it.
    program.end(signal.SIGKILL)
    wait_until(lambda: not Path(netns).exists() and not machine.workloads(), 60, "the end of all")
    assert node.end() == 0


def test_a_program_ends_as_it_ends_and_its_signals_are_its_own(
    nodes: tuple[Started, Started], two: Machine
) -> None:
    said = "process.on('SIGTERM', () => process.exit(7)); setInterval(() => 0, 1000); console.log('up')"
    program = two.run("told", "node", "-e", said)
    program.wait_for("up")
    assert program.end() == 7
    wait_until(lambda: "told" not in two.workloads(), 30, "its end")
    assert two.run("none", "/nowhere/nothing").process.wait(60) == 127


def test_a_program_that_may_not_join_says_why(nodes: tuple[Started, Started], two: Machine) -> None:
    program = two.run("stranger", "true", options=["--namespace", "other"])
    program.wait_for("stranger is not ready: ")
    assert "may not speak for" in program.said
    program.end()


@pytest.mark.parametrize("how", [[], ["--explicit"]])
def test_nobody_is_sent_to_a_program_before_it_listens(
    mesh: SecureMesh, nodes: tuple[Started, Started], one: Machine, two: Machine, how: list[str]
) -> None:
    first = one.run("listed", sys.executable, "-c", DETAILS)
    first.wait_for("details listens")
    go = two.folder / f"go{len(how)}"
    slow = (
        f"import os, time\nprint('up', flush=True)\nwhile not os.path.exists({str(go)!r}): time.sleep(0.01)\n"
    )
    with mesh.joined("productpage") as joined, meshlib.Client(mesh=joined) as client:
        wait_until(lambda: succeeded(client, "http://listed:9080/"), 30, "the first")
        with Calls(joined, "http://listed:9080/") as calls:
            second = two.run("listed", sys.executable, "-c", slow + DETAILS, options=how)
            second.wait_for("up")
            assert ready(two, "listed")
            calls.more()
            go.touch()
            second.wait_for("details listens")
            assert first.end() == 128 + signal.SIGTERM
            # Only the second is left: it is called now.
            calls.more()
        assert calls.failures == []
    assert second.end() == 128 + signal.SIGTERM
    wait_until(lambda: "listed" not in {**one.workloads(), **two.workloads()}, 30, "their end")


@pytest.mark.parametrize("how", [[], ["--explicit"]])
def test_a_program_is_told_where_it_gets_its_certificate(
    nodes: tuple[Started, Started], two: Machine, how: list[str]
) -> None:
    code = "import os, support.spiffe_client as s; s.main(os.environ['SPIFFE_ENDPOINT_SOCKET'][7:], 'once')"
    path = str(Path(__file__).parents[1])
    program = two.run("told", sys.executable, "-c", code, options=how, PYTHONPATH=path)
    program.wait_for(f"{SPIFFE}told ")
    assert program.process.wait(30) == 0


def test_without_a_namespace_it_has_a_proxy(
    mesh: SecureMesh, nodes: tuple[Started, Started], two: Machine, ratings: Started
) -> None:
    code = DETAILS.replace('"details": 1', '"proxy": os.environ["HTTP_PROXY"]')
    program = two.run("details", sys.executable, "-c", code, options=["--explicit", "--name", "told"])
    program.wait_for("explicit mode: requests that come in")
    program.wait_for("details listens")
    with mesh.joined("productpage") as joined, meshlib.Client(mesh=joined) as client:
        wait_until(lambda: succeeded(client, "http://details:9080/"), 30, "details")
        proxies = [one["proxyPort"] for one in two.workloads().values() if "proxyPort" in one]
    enter = ["nsenter", f"--net=/run/netns/{two.netns}", "curl", "-sS", "--max-time", "20"]
    said = json.loads(system(*enter, "-x", f"http://127.0.0.1:{proxies[0]}", "http://ratings:9080/"))
    assert f"URI={SPIFFE}details" in said["headers"]["x-forwarded-client-cert"]
    assert program.end() == 128 + signal.SIGTERM


def test_the_example_of_a_machine(mesh: SecureMesh, nodes: tuple[Started, Started], two: Machine) -> None:
    example = Path(__file__).parents[2] / "examples" / "node_vm"
    script, rules = example / "ratings.js", (example / "mesh" / "ratings.yaml").read_text()
    program = two.run("ratings", "node", str(script), options=["--name", "example"])
    program.wait_for("ratings listens at 9080")
    with (
        mesh.joined("reviews") as allowed,
        mesh.joined("productpage") as other,
        meshlib.Client(mesh=allowed) as reviews,
        meshlib.Client(mesh=other) as productpage,
    ):
        mesh.edit(*rules.split("---\n"))
        url = "http://ratings:9080/"
        # Another ratings may be there, of another test: they take turns.
        wait_until(lambda: f"URI={SPIFFE}reviews" in reviews.get(url).json().get("caller", ""), 30, "it")
        wait_until(lambda: productpage.get(url).status_code == 403, 30, "the rule")
        assert reviews.get(url).status_code == 200
        assert reviews.post(url).status_code == 403
        mesh.edit(MESH)
        wait_until(lambda: productpage.get(url).status_code == 200, 30, "no rule")
    assert program.end() == 128 + signal.SIGTERM


def succeeded(client: Any, url: str) -> bool:
    with contextlib.suppress(Exception):
        return bool(client.get(url).status_code == 200)
    return False


def replace(file: Path, text: str) -> None:
    new = file.with_suffix(".new")
    new.write_text(text)
    new.replace(file)


def rules(netns: str) -> str:
    return system("ip", "netns", "exec", netns, "nft", "list", "tables")
