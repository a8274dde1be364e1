"""TLS at a gateway: every mode, by name (SNI), with Secrets and with files, replaced under load."""

import base64
import contextlib
import hashlib
import socket
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from support.commands import wait_until
from support.edge import Edge, edge
from support.secure_mesh import SecureMesh, secure_mesh
from support.small_ca import Issued, SmallCa

STRICT = """
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default}
spec: {mtls: {mode: STRICT}}
"""
GATEWAY = """
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: edge}
spec:
  selector: {istio: ingressgateway}
  servers:
  - port: {number: 80, name: http, protocol: HTTP}
    hosts: ["*"]
    tls: {httpsRedirect: true}
  - port: {number: 443, name: simple, protocol: HTTPS}
    hosts: [simple.example.com]
    tls: {mode: SIMPLE, credentialName: simple}
  - port: {number: 443, name: mutual, protocol: HTTPS}
    hosts: [mutual.example.com]
    tls: {mode: MUTUAL, credentialName: mutual}
  - port: {number: 443, name: optional, protocol: HTTPS}
    hosts: [optional.example.com]
    tls: {mode: OPTIONAL_MUTUAL, credentialName: mutual}
  - port: {number: 443, name: files, protocol: HTTPS}
    hosts: [files.example.com]
    tls:
      mode: SIMPLE
      serverCertificate: FOLDER/files.pem
      privateKey: FOLDER/files.key
      minProtocolVersion: TLSV1_3
  - port: {number: 443, name: old, protocol: HTTPS}
    hosts: ["*.old.example.com"]
    tls:
      mode: SIMPLE
      credentialName: old
      maxProtocolVersion: TLSV1_2
      cipherSuites: [TLS_AES_128_GCM_SHA256, NOT-A-CIPHER, ECDHE-ECDSA-AES256-GCM-SHA384]
  - port: {number: 443, name: missing, protocol: HTTPS}
    hosts: [missing.example.com]
    tls: {mode: SIMPLE, credentialName: missing}
  - port: {number: 443, name: through, protocol: TLS}
    hosts: [through.example.com]
    tls: {mode: PASSTHROUGH}
  - port: {number: 443, name: ended, protocol: TLS}
    hosts: [ended.example.com]
    tls: {mode: SIMPLE, credentialName: simple}
  - port: {number: 443, name: names, protocol: HTTPS}
    hosts: [names.example.com]
    tls: {mode: MUTUAL, credentialName: mutual, subjectAltNames: [known.example]}
  - port: {number: 443, name: hash, protocol: HTTPS}
    hosts: [hash.example.com]
    tls: {mode: MUTUAL, credentialName: mutual, verifyCertificateHash: ["HASH"]}
  - port: {number: 443, name: spki, protocol: HTTPS}
    hosts: [spki.example.com]
    tls: {mode: MUTUAL, credentialName: mutual, verifyCertificateSpki: ["SPKI"]}
  - port: {number: 443, name: crl, protocol: HTTPS}
    hosts: [crl.example.com]
    tls:
      mode: MUTUAL
      tlsCertificates:
      - {serverCertificate: FOLDER/rsa.pem, privateKey: FOLDER/rsa.key}
      - {serverCertificate: FOLDER/ecdsa.pem, privateKey: FOLDER/ecdsa.key}
      caCertificates: FOLDER/callers.pem
      caCrl: FOLDER/crl.pem
  - port: {number: 443, name: no-list, protocol: HTTPS}
    hosts: [no-list.example.com]
    tls:
      mode: MUTUAL
      serverCertificate: FOLDER/ecdsa.pem
      privateKey: FOLDER/ecdsa.key
      caCertificates: FOLDER/callers.pem
      caCrl: FOLDER/not-there.pem
  - port: {number: 443, name: any, protocol: HTTPS}
    hosts: [any.example.com]
    tls: {mode: MUTUAL, credentialName: mutual, insecureSkipVerify: true}
  - port: {number: 443, name: other-ca, protocol: HTTPS}
    hosts: [other-ca.example.com]
    tls: {mode: MUTUAL, credentialName: all, caCertCredentialName: callers}
  - port: {number: 443, name: both, protocol: HTTPS}
    hosts: [both.example.com]
    tls: {mode: SIMPLE, credentialNames: [rsa, all], ecdhCurves: [nonsense, P-384, P-384]}
  - port: {number: 9000, name: tcp, protocol: TCP}
    hosts: ["*"]
  - port: {number: 15443, name: mesh, protocol: HTTPS}
    hosts: [inner.example.com]
    tls: {mode: ISTIO_MUTUAL}
"""
ROUTES = """
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web}
spec:
  hosts: ["*.example.com"]
  gateways: [edge]
  http: [{route: [{destination: {host: reviews}}]}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: through}
spec:
  hosts: [through.example.com]
  gateways: [edge]
  tls:
  - match: [{sniHosts: [through.example.com]}]
    route: [{destination: {host: own.example, port: {number: 8443}}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: ended}
spec:
  hosts: ["*"]
  gateways: [edge]
  tcp:
  - match: [{port: 443}]
    route: [{destination: {host: plain.example, port: {number: 9000}}}]
  - match: [{port: 9000}]
    route: [{destination: {host: plain.example, port: {number: 9000}}}]
"""
ENTRIES = """
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: NAME}
spec:
  hosts: [NAME.example]
  location: MESH_EXTERNAL
  resolution: STATIC
  ports: [{number: NUMBER, name: PROTOCOL, protocol: PROTOCOL}]
  endpoints: [{address: 127.0.0.1, ports: {PROTOCOL: PORT}}]
"""


def secret(name: str, issued: Issued, ca: SmallCa | None = None) -> str:
    """A Secret of type kubernetes.io/tls."""
    data = {"tls.crt": issued.pem.encode(), "tls.key": issued.key_pem}
    if ca is not None:
        data["ca.crt"] = ca.pem.encode()
    lines = "".join(f"  {key}: {base64.b64encode(value).decode()}\n" for key, value in data.items())
    return (
        f"apiVersion: v1\nkind: Secret\ntype: kubernetes.io/tls\nmetadata: {{name: {name}}}\ndata:\n{lines}"
    )


def put(folder: Path, name: str, issued: Issued) -> None:
    """As files."""
    (folder / f"{name}.pem").write_text(issued.pem)
    (folder / f"{name}.key").write_bytes(issued.key_pem)


class Greeter:
    """Says hello to whoever connects; with `context` over TLS."""

    def __init__(self, hello: bytes, context: ssl.SSLContext | None = None) -> None:
        self._hello, self._context = hello, context
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                made, _ = self._listening.accept()
            except OSError:
                return
            with contextlib.suppress(OSError), made:
                if self._context is not None:
                    made = self._context.wrap_socket(made, server_side=True)
                with made:
                    made.sendall(self._hello)

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()


@dataclass
class Play:
    mesh: SecureMesh
    edge: Edge
    ca: SmallCa
    callers: SmallCa
    folder: Path
    documents: tuple[str, ...]
    known: Issued
    """A caller that some servers know."""
    revoked: Issued
    secrets: dict[str, str]

    def client(self, shown: Issued | None = None, ca: SmallCa | None = None) -> ssl.SSLContext:
        context = ssl.create_default_context(cadata=(ca or self.ca).pem)
        if shown is not None:
            place = self.folder / "shown.pem"
            place.write_bytes(shown.pem.encode() + shown.key_pem)
            context.load_cert_chain(place)
        return context

    def replace(self, name: str, text: str) -> None:
        self.secrets[name] = text
        self.mesh.edit(*self.documents, *self.secrets.values())

    def issue_files(self) -> Issued:
        issued = self.ca.issue(dns=["files.example.com"])
        put(self.folder, "files", issued)
        return issued

    def shown(self, host: str) -> bytes | None:
        with self.edge.secure(host, 443, self.client()) as made:
            return made.getpeercert(binary_form=True)


def server_context(folder: Path, issued: Issued) -> ssl.SSLContext:
    (folder / "own.pem").write_bytes(issued.pem.encode() + issued.key_pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "own.pem")
    return context


@pytest.fixture(scope="module")
def play(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Play]:
    folder = tmp_path_factory.mktemp("edge")
    ca, callers = SmallCa("public"), SmallCa("callers")
    own = Greeter(b"own", server_context(folder, ca.issue(dns=["through.example.com"])))
    plain = Greeter(b"plain")
    known, revoked = (callers.issue(dns=[f"{name}.example"]) for name in ("known", "revoked"))
    wide = ca.issue(dns=["*.example.com"])
    rsa = ca.issue(dns=["*.example.com"], key=generate_private_key(65537, 2048))
    put(folder, "ecdsa", wide)
    put(folder, "rsa", rsa)
    (folder / "callers.pem").write_text(callers.pem)
    (folder / "crl.pem").write_bytes(callers.revoked(revoked))
    spki = known.certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    gateway = GATEWAY.replace("FOLDER", str(folder)).replace("HASH", hashlib.sha256(known.der).hexdigest())
    gateway = gateway.replace("SPKI", base64.b64encode(hashlib.sha256(spki).digest()).decode())
    documents = [STRICT, gateway, ROUTES]
    for name, number, protocol, port in (("own", 8443, "TLS", own.port), ("plain", 9000, "TCP", plain.port)):
        words = {"NAME": name, "NUMBER": str(number), "PROTOCOL": protocol, "PORT": str(port)}
        text = ENTRIES
        for word, value in words.items():
            text = text.replace(word, value)
        documents.append(text)
    secrets = {
        "simple": secret("simple", ca.issue(dns=["simple.example.com", "ended.example.com"])),
        "mutual": secret("mutual", wide, callers),
        "all": secret("all", wide),
        "rsa": secret("rsa", rsa),
        "callers-cacert": (
            "apiVersion: v1\nkind: Secret\nmetadata: {name: callers-cacert}\n"
            f"data: {{cacert: {base64.b64encode(callers.pem.encode()).decode()}}}\n"
        ),
        "old": secret("old", ca.issue(dns=["a.old.example.com"])),
    }
    with (
        secure_mesh(tmp_path_factory.mktemp("mesh"), *documents, *secrets.values()) as mesh,
        mesh.served(),
        contextlib.closing(own),
        contextlib.closing(plain),
    ):
        made = Play(mesh, None, ca, callers, folder, tuple(documents), known, revoked, secrets)  # type: ignore[arg-type]
        made.issue_files()
        with edge(mesh, 80, 443, 9000, 15443, options=("--drain", "1")) as made.edge:
            wait_until(lambda: answers(made, "simple.example.com"), 30, "the first answer")
            yield made


def answers(play: Play, host: str) -> bool:
    try:
        return play.edge.fetch(host, 443, play.client())[0] == 200
    except OSError:
        return False


def test_http_is_redirected(play: Play) -> None:
    answer = play.edge.get("/a?b=c", "simple.example.com")
    assert answer.status_code == 301
    assert answer.headers["location"] == "https://simple.example.com/a?b=c"


@pytest.mark.parametrize("host", ["simple.example.com", "files.example.com", "a.old.example.com"])
def test_simple_asks_for_no_certificate(play: Play, host: str) -> None:
    assert play.edge.fetch(host, 443, play.client())[0] == 200


def test_mutual_takes_those_of_its_ca(play: Play) -> None:
    good = play.callers.issue("spiffe://other/caller", dns=["caller.example"])
    status, body = play.edge.fetch("mutual.example.com", 443, play.client(good))
    assert status == 200
    assert b"URI=spiffe://other/caller" in body  # x-forwarded-client-cert


@pytest.mark.parametrize("stranger", [False, True])
def test_mutual_refuses_all_others(play: Play, stranger: bool) -> None:
    shown = SmallCa("strangers").issue(dns=["stranger"]) if stranger else None
    with pytest.raises(OSError):
        play.edge.fetch("mutual.example.com", 443, play.client(shown))


def test_optional_mutual_checks_what_it_is_shown(play: Play) -> None:
    assert play.edge.fetch("optional.example.com", 443, play.client())[0] == 200
    good = play.client(play.callers.issue(dns=["caller"]))
    assert play.edge.fetch("optional.example.com", 443, good)[0] == 200
    with pytest.raises(OSError):
        play.edge.fetch(
            "optional.example.com", 443, play.client(SmallCa("strangers").issue(dns=["stranger"]))
        )


def test_without_its_list_of_revoked_certificates_a_server_takes_nobody(play: Play) -> None:
    with pytest.raises(OSError):
        play.edge.fetch("no-list.example.com", 443, play.client(play.known))
    assert "not-there.pem can't be used" in play.edge.said


@pytest.mark.parametrize("host", ["names", "hash", "spki", "crl", "any", "other-ca"])
def test_which_callers_are_taken(play: Play, host: str) -> None:
    name = f"{host}.example.com"
    taken = {"unknown": play.callers.issue(dns=["unknown.example"]), "revoked": play.revoked, "nobody": None}
    taken["stranger"] = SmallCa("strangers").issue(dns=["known.example"])
    assert play.edge.fetch(name, 443, play.client(play.known))[0] == 200
    found = set()
    for who, shown in taken.items():
        with contextlib.suppress(OSError):
            play.edge.fetch(name, 443, play.client(shown))
            found.add(who)
    assert (
        found
        == {
            "names": set(),
            "hash": set(),
            "spki": set(),
            "crl": {"unknown"},
            "any": {"unknown", "revoked", "stranger"},
            "other-ca": {"unknown", "revoked"},
        }[host]
    )


def test_istio_mutual_takes_workloads_of_the_mesh(play: Play) -> None:
    with play.mesh.joined("caller") as mesh:
        assert mesh.certs is not None
        held = mesh.certs.ensure()
    context = ssl.create_default_context(cadata=held.roots_pem)
    context.check_hostname = False
    with pytest.raises(OSError):
        play.edge.fetch("inner.example.com", 15443, context)
    place = play.folder / "workload.pem"
    place.write_bytes(held.chain_pem.encode() + held.key_pem)
    context.load_cert_chain(place)
    status, body = play.edge.fetch("inner.example.com", 15443, context)
    assert status == 200
    assert b"URI=spiffe://cluster.local/ns/default/sa/caller" in body


@pytest.mark.parametrize("kind", ["RSA", "ECDSA"])
def test_two_certificates_of_one_server(play: Play, kind: str) -> None:
    context = play.client()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(f"ECDHE-{kind}-AES128-GCM-SHA256")
    with play.edge.secure("both.example.com", 443, context) as made:
        cipher = made.cipher()
    assert cipher is not None
    assert kind in cipher[0]


def test_curves_are_as_asked(play: Play) -> None:
    context = play.client()
    context.set_ecdh_curve("prime256v1")
    with pytest.raises(OSError):
        play.edge.secure("both.example.com", 443, context)
    play.edge.secure("simple.example.com", 443, context).close()


def test_a_host_of_one_server_is_not_served_by_another(play: Play) -> None:
    with play.edge.secure("simple.example.com", 443, play.client()) as made:
        made.sendall(b"GET / HTTP/1.1\r\nhost: mutual.example.com\r\nconnection: close\r\n\r\n")
        assert made.recv(1000).startswith(b"HTTP/1.1 404")


def test_versions_and_ciphers_are_as_asked(play: Play) -> None:
    context = play.client()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(OSError):
        play.edge.secure("files.example.com", 443, context)
    with play.edge.secure("simple.example.com", 443, context) as made:
        assert made.version() == "TLSv1.2"
    with play.edge.secure("a.old.example.com", 443, play.client()) as made:
        assert made.version() == "TLSv1.2"
        assert made.cipher() == ("ECDHE-ECDSA-AES256-GCM-SHA384", "TLSv1.2", 256)


def test_http2_is_offered(play: Play) -> None:
    context = play.client()
    context.set_alpn_protocols(["h2", "http/1.1"])
    with play.edge.secure("simple.example.com", 443, context) as made:
        assert made.selected_alpn_protocol() == "h2"


def test_a_name_that_nobody_serves_is_refused(play: Play) -> None:
    with pytest.raises(OSError):
        play.edge.secure("nobody.example.com", 443, play.client())


def test_tls_is_passed_through(play: Play) -> None:
    with play.edge.secure("through.example.com", 443, play.client()) as made:
        assert made.recv(100) == b"own"


def test_tls_of_connections_ends_at_the_edge(play: Play) -> None:
    with play.edge.secure("ended.example.com", 443, play.client()) as made:
        assert made.recv(100) == b"plain"


def test_tcp(play: Play) -> None:
    assert play.edge.raw(b"", 9000) == b"plain"


def test_a_missing_secret_closes_the_connection_until_it_comes(play: Play) -> None:
    with pytest.raises(OSError):
        play.edge.secure("missing.example.com", 443, play.client())
    play.replace("missing", secret("missing", play.ca.issue(dns=["missing.example.com"])))
    wait_until(lambda: answers(play, "missing.example.com"), 30, "the secret")


def test_secrets_are_replaced_under_load(play: Play) -> None:
    failed: list[str] = []
    end = threading.Event()

    def ask(host: str) -> None:
        while not end.is_set():
            try:
                if play.edge.fetch(host, 443, play.client())[0] != 200:
                    failed.append(host)
            except OSError as error:
                failed.append(f"{host} {error!r}")

    threads = [threading.Thread(target=ask, args=[h]) for h in ("simple.example.com", "files.example.com")]
    for thread in threads:
        thread.start()
    try:
        for _ in range(3):
            issued = play.ca.issue(dns=["simple.example.com", "ended.example.com"])
            play.replace("simple", secret("simple", issued))
            wait_until(lambda to=issued: play.shown("simple.example.com") == to.der, 30, "the new one")
            filed = play.issue_files()
            wait_until(lambda to=filed: play.shown("files.example.com") == to.der, 30, "the new file")
    finally:
        end.set()
        for thread in threads:
            thread.join(20)
    assert failed == []


def test_what_is_broken_does_not_take_the_place_of_what_is_good(play: Play) -> None:
    before = play.shown("simple.example.com"), play.shown("files.example.com")
    broken = secret("simple", play.ca.issue(dns=["simple.example.com"])).replace(
        "tls.key: LS0t", "tls.key: LS0u"
    )
    play.replace("simple", broken)
    (play.folder / "files.pem").write_text("-----BEGIN CERTIFICATE-----\n")
    wait_until(lambda: "can't be used" in play.edge.said, 30, "the word about the file")
    service = play.mesh.service
    assert service is not None
    wait_until(lambda: any("Secret" in error for error in service.status()["errors"]), 30, "the error")
    assert (play.shown("simple.example.com"), play.shown("files.example.com")) == before
    assert not any("LS0" in text or "PRIVATE" in text for text in service.status()["errors"])


def test_who_is_no_gateway_any_more_loses_the_keys_that_it_has(play: Play) -> None:
    def restart(*gateways: tuple[str, str]) -> None:
        play.mesh.gateways = list(gateways)
        with play.mesh.down():
            pass

    def closed() -> bool:
        with contextlib.suppress(OSError):
            play.shown("simple.example.com")
            return False
        return True

    play.replace("simple", secret("simple", play.ca.issue(dns=["simple.example.com"])))
    play.issue_files()
    assert "kubernetes://simple" in play.edge.secrets()
    restart()
    wait_until(closed, 30, "the end of the certificate")
    wait_until(lambda: "kubernetes://simple" not in play.edge.secrets(), 30, "the end of the key")
    assert {name for name in play.edge.secrets() if "cacert" not in name and "://" in name} == set()
    service = play.mesh.service
    assert service is not None
    notes = [note for each in service.status()["clients"] for note in each["notes"]]
    assert any("is not given the key of the Secret default/simple" in note for note in notes)
    assert answers(play, "files.example.com")
    with play.edge.secure("through.example.com", 443, play.client()) as made:
        assert made.recv(100) == b"own"
    restart(("default", "ingress"))
    wait_until(lambda: answers(play, "simple.example.com"), 30, "the certificate")
