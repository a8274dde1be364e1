"""Istio's plug-in CA files: taken when they fit, refused as a whole if not, read again on change."""

from collections.abc import Callable
from pathlib import Path

import pytest
from support.pki import HOUR, NOW, Pair, ca, plugin, rsa_key

from meshlib.control.ca.authority import Authority
from meshlib.errors import ConfigError
from meshlib.identity.chain import Purpose, check_peer, verify_chain
from meshlib.identity.keys import make_csr, make_key
from meshlib.identity.pem import fingerprint, split_pem, to_der
from meshlib.identity.spiffe import SpiffeId

REVIEWS = SpiffeId("cluster.local", "default", "reviews")
CSR = make_csr(make_key(), REVIEWS).decode()


def opened(folder: Path, now: float = NOW) -> Authority:
    return Authority.open(folder / "state", trust_domain="cluster.local", now=now, plugin=folder / "plugin")


def test_it_signs_and_the_chain_ends_at_the_root(tmp_path: Path) -> None:
    root, own = plugin(tmp_path / "plugin")
    authority = opened(tmp_path)
    assert authority.roots_pem == root.pem
    assert authority.fingerprint == fingerprint(root.certificate)
    chain = authority.sign(CSR, REVIEWS, 0, NOW)
    assert chain[1:] == (own.pem, root.pem)
    der = to_der("".join(chain))
    assert check_peer(der, trust_domains=(), now=NOW, purpose=Purpose.CLIENT) == REVIEWS
    verify_chain(der, root.pem, NOW, purpose=Purpose.SERVER)
    status = authority.status(NOW)
    assert (status["source"], status["rotation"]["phase"]) == ("plug-in", "settled")
    assert not (tmp_path / "state/authority.json").exists()


def test_a_root_that_signs_itself_needs_no_chain(tmp_path: Path) -> None:
    root = ca("only", key=rsa_key(number=1))
    folder = tmp_path / "plugin"
    plugin(folder)
    (folder / "cert-chain.pem").unlink()
    for name in ("ca-cert.pem", "root-cert.pem"):
        (folder / name).write_text(root.pem)
    (folder / "ca-key.pem").write_bytes(root.key_pem)
    chain = opened(tmp_path).sign(CSR, REVIEWS, 0, NOW)
    assert chain[1:] == (root.pem,)


def test_several_roots_are_trusted_together(tmp_path: Path) -> None:
    root, own = plugin(tmp_path / "plugin")
    other = ca("other")
    (tmp_path / "plugin/root-cert.pem").write_text(other.pem + root.pem)
    authority = opened(tmp_path)
    assert split_pem(authority.roots_pem) == (other.pem, root.pem)
    assert authority.sign(CSR, REVIEWS, 0, NOW)[1:] == (own.pem, root.pem)
    assert [one["issues"] for one in authority.status(NOW)["roots"]] == [False, True]


def test_a_longer_chain_in_any_order(tmp_path: Path) -> None:
    root, upper = plugin(tmp_path / "plugin", root=ca("root"))
    upper = ca("upper", root)
    own = ca("own", upper)
    folder = tmp_path / "plugin"
    (folder / "ca-cert.pem").write_text(own.pem)
    (folder / "ca-key.pem").write_bytes(own.key_pem)
    (folder / "cert-chain.pem").write_text(root.pem + upper.pem + own.pem)
    assert opened(tmp_path).sign(CSR, REVIEWS, 0, NOW)[1:] == (own.pem, upper.pem, root.pem)


def write(name: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(text)


def replaced(own: Pair) -> Callable[[Path], object]:
    """The files of another intermediate, below the same root."""

    def act(folder: Path) -> None:
        (folder / "ca-cert.pem").write_text(own.pem)
        (folder / "ca-key.pem").write_bytes(own.key_pem)
        (folder / "cert-chain.pem").write_text(own.pem)

    return act


ROOT = ca("plugged root", key=rsa_key(number=1))
WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "no key": (lambda folder: (folder / "ca-key.pem").unlink(), "ca-key.pem is missing"),
    "no certificate": (lambda folder: (folder / "ca-cert.pem").unlink(), "ca-cert.pem is missing"),
    "no root": (lambda folder: (folder / "root-cert.pem").unlink(), "root-cert.pem is missing"),
    "no folder": (lambda folder: folder.rename(folder.parent / "gone"), "ca-key.pem is missing"),
    "key open to others": (lambda folder: (folder / "ca-key.pem").chmod(0o644), "is open to other users"),
    "key written by its group": (
        lambda folder: (folder / "ca-key.pem").chmod(0o660),
        "is open to other users",
    ),
    "another key": (
        lambda folder: (folder / "ca-key.pem").write_bytes(make_key()),
        "ca-key.pem is not the key of",
    ),
    "junk key": (write("ca-key.pem", "junk"), "it is no unencrypted PEM private key"),
    "junk certificate": (write("ca-cert.pem", "junk"), "must hold certificates in PEM"),
    "half a root": (write("root-cert.pem", ROOT.pem[:200]), "must hold certificates in PEM"),
    "broken root": (write("root-cert.pem", ROOT.pem.replace("\nM", "\nA", 1)), "can't be read"),
    "huge root": (write("root-cert.pem", "x" * 1048577), "is larger than"),
    "another root": (write("root-cert.pem", ca("stranger").pem), "no path leads from it to a trusted root"),
    "no CA": (replaced(ca("own", ROOT, is_ca=False)), "can't sign: an issuer is no CA"),
    "may not sign": (replaced(ca("own", ROOT, signs=False)), "can't sign: an issuer is no CA"),
    "expired": (replaced(ca("own", ROOT, begin=NOW - 2 * HOUR, end=NOW - 1)), "can't sign"),
    "not yet valid": (replaced(ca("own", ROOT, begin=NOW + HOUR)), "can't sign"),
    "weak key": (replaced(ca("own", ROOT, key=rsa_key(1024))), "an RSA key of 1024 bits"),
    "too deep": (replaced(ca("own", ca("between", ROOT, path_length=0))), "can't sign"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_set_that_does_not_fit_is_refused(tmp_path: Path, case: str) -> None:
    act, said = WRONG[case]
    folder = tmp_path / "plugin"
    plugin(folder, root=ROOT)
    act(folder)
    with pytest.raises(ConfigError) as caught:
        opened(tmp_path)
    assert said in str(caught.value)
    assert "PRIVATE" not in str(caught.value)


def test_a_key_that_its_group_may_read_is_taken(tmp_path: Path) -> None:
    plugin(tmp_path / "plugin", mode=0o440)
    assert opened(tmp_path).fingerprint


def test_new_files_are_taken_when_they_are_complete(tmp_path: Path) -> None:
    folder = tmp_path / "plugin"
    root, own = plugin(folder)
    authority = opened(tmp_path)
    assert authority.reload(NOW) is False
    new = ca("next", root)
    (folder / "ca-cert.pem").write_text(new.pem)
    assert authority.reload(NOW) is False  # the key is still the old one's
    assert "is not the key of" in authority.status(NOW)["warnings"][0]
    assert authority.sign(CSR, REVIEWS, 0, NOW)[1] == own.pem
    (folder / "ca-key.pem").write_bytes(new.key_pem)
    assert authority.reload(NOW) is True
    assert authority.status(NOW)["warnings"] == []
    assert authority.sign(CSR, REVIEWS, 0, NOW)[1] == new.pem


def test_new_files_behind_a_link_are_noticed(tmp_path: Path) -> None:
    """A mounted Kubernetes secret changes by one link."""
    plugin(tmp_path / "one")
    root, _ = plugin(tmp_path / "two", root=ca("another"))
    (tmp_path / "plugin").symlink_to("one")
    authority = opened(tmp_path)
    (tmp_path / "next").symlink_to("two")
    (tmp_path / "next").replace(tmp_path / "plugin")
    assert authority.reload(NOW) is True
    assert authority.roots_pem == root.pem
    assert (tmp_path / "state/roots.pem").read_text() == root.pem


def test_its_root_is_somebody_elses_to_rotate(tmp_path: Path) -> None:
    plugin(tmp_path / "plugin")
    with pytest.raises(ConfigError, match="replace the files there"):
        opened(tmp_path).rotate_root(NOW)


def test_the_files_may_lie_in_the_state_folder_and_stay_untouched(tmp_path: Path) -> None:
    folder = tmp_path / "both"
    folder.mkdir(mode=0o700)
    plugin(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    Authority.open(folder, trust_domain="cluster.local", now=NOW, plugin=folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.name in before} == before


def test_an_end_that_is_near_is_told(tmp_path: Path) -> None:
    plugin(tmp_path / "plugin")
    authority = opened(tmp_path)
    assert authority.status(NOW + 790 * HOUR)["warnings"] == []
    assert authority.status(NOW + 904 * HOUR)["warnings"] == [
        "the root ends in 4 days: replace the files",
        "the signing certificate ends in 4 days: replace the files",
    ]
