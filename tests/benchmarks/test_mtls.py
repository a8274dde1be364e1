"""What mutual TLS costs: paired, interleaved, in the same run.

    pytest tests/benchmarks/test_mtls.py --benchmark-enable -s

- A warm request over mutual TLS against one in plain text, by the same client, the whole way to a served
  application, in a process of its own (goal: at most 10 us more; test_mtls_shares.py says why it is missed).
  Besides TLS it pays for what a mesh peer says and is told of: four headers, and a longer answer.
- Handshakes a second, both ends in this process on one core.

Without --benchmark-enable one short round only checks that everything works.
"""

import ssl
import statistics
import time
from collections.abc import Callable, Iterator

import pytest
from support.secure_mesh import URL, SecureMesh, secure_mesh
from support.small_ca import SmallCa

import meshlib
from meshlib.core.mtls import ClientTls, InboundMode, ServerTls
from meshlib.dataplane.tls import Contexts

DOCUMENTS = """
apiVersion: v1
kind: Service
metadata: {name: plain}
spec:
  selector: {app: reviews}
  ports: [{name: http, port: 9080, targetPort: http}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: plain}
spec:
  host: plain
  trafficPolicy: {tls: {mode: DISABLE}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-admin}
spec:
  action: DENY
  rules: [{to: [{operation: {paths: ["/admin", "/admin/*"]}}]}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: readers}
spec:
  rules:
  - from: [{source: {principals: ["cluster.local/ns/default/sa/productpage"]}}]
    to: [{operation: {methods: [GET, HEAD]}}]
  - from: [{source: {namespaces: [batch]}}]
  - to: [{operation: {methods: [GET]}}]
    when: [{key: "request.headers[x-user]", values: [anybody]}]
"""
PAGE = "spiffe://cluster.local/ns/default/sa/productpage"
REVIEWS = "spiffe://cluster.local/ns/default/sa/reviews"


@pytest.fixture(scope="module")
def control(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureMesh]:
    with secure_mesh(tmp_path_factory.mktemp("mesh"), DOCUMENTS) as made:
        yield made


@pytest.fixture
def rounds(request: pytest.FixtureRequest) -> int:
    """How often each side is timed."""
    return 3000 if request.config.getoption("--benchmark-enable") else 50


def interleaved(count: int, *calls: Callable[[], object]) -> list[list[float]]:
    """Seconds of each call of each kind, one after the other, in alternating order."""
    times: list[list[float]] = [[] for _ in calls]
    for number in range(count):
        order = list(enumerate(calls))
        for which, call in order if number % 2 else reversed(order):
            begun = time.perf_counter()
            call()
            times[which].append(time.perf_counter() - begun)
    return times


def p50(times: list[float]) -> float:
    """Microseconds."""
    return statistics.median(times) * 1e6


def test_warm_request(control: SecureMesh, rounds: int) -> None:
    """The same client, server and handler; only the second host's DestinationRule says DISABLE.

    The server's end is in it, with asyncio's TLS, and that it tells the application who calls.
    """
    with (
        control.served("serve-h11"),
        control.joined("productpage") as mesh,
        meshlib.Client(mesh=mesh) as client,
    ):
        plain = URL.replace("reviews", "plain")
        headers = {"x-user": "anybody"}
        assert client.get(f"{URL}/x").json()["principal"] == PAGE
        assert client.get(f"{plain}/x", headers=headers).json()["principal"] == ""
        secured, clear = interleaved(
            rounds,
            lambda: client.get(f"{URL}/x", headers=headers),
            lambda: client.get(f"{plain}/x", headers=headers),
        )
    difference, ratio = p50(secured) - p50(clear), p50(secured) / p50(clear)
    print(f"\nwarm request: plain {p50(clear):.0f} us, mTLS {p50(secured):.0f} us", end="")
    print(f" ({difference:+.0f} us, ratio {ratio:.2f})")
    if rounds >= 1000:
        assert ratio < 1.5


def test_handshakes(rounds: int) -> None:
    """Both ends in memory, no network: what a core does."""
    ca = SmallCa()
    ours, theirs = ca.held(REVIEWS), ca.held(PAGE)
    server, client = Contexts(lambda: ours), Contexts(lambda: theirs)
    policy, asked = ServerTls(InboundMode.STRICT, ("cluster.local",)), ClientTls(alpn=("istio",))
    count = max(20, rounds // 10)
    begun = time.perf_counter()
    for _ in range(count):
        assert shake_hands(server, client, policy, asked) == (PAGE, REVIEWS)
    took = time.perf_counter() - begun
    print(
        f"\nhandshakes, both ends on one core: {count / took:.0f} a second ({took / count * 1e6:.0f} us each)"
    )
    if rounds >= 1000:
        assert count / took > 100


def shake_hands(server: Contexts, client: Contexts, policy: ServerTls, asked: ClientTls) -> tuple[str, str]:
    """Who each end takes the other for."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    asking = client.client(asked).wrap_bio(to_client, to_server, server_hostname="reviews")
    answering = server.server(policy).wrap_bio(to_server, to_client, server_side=True)
    for end in (asking, answering, asking, answering):
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            continue
    return server.caller(policy, answering), client.check(asked, asking)
