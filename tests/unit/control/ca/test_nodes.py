"""For which workloads a node may speak: what is on disk, what changes, what is broken."""

import logging
import stat
from pathlib import Path

import pytest

from meshlib.control.ca.nodes import FILE, Permissions, account, allow, node_name, read_nodes, remove
from meshlib.errors import ConfigError
from meshlib.identity.spiffe import SpiffeId

RATINGS = SpiffeId("cluster.local", "default", "ratings")
CART = SpiffeId("cluster.local", "shop", "cart")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "state"
    made.mkdir(mode=0o700)
    return made


def test_what_is_not_allowed_is_not(folder: Path) -> None:
    found = Permissions(folder)
    assert (found.known("vm1"), found.may("vm1", RATINGS)) == (False, False)
    allow(folder, "vm1", ["default/ratings", "default/ratings"])
    assert (found.known("vm1"), found.may("vm1", RATINGS), found.may("vm1", CART)) == (True, True, False)
    assert found.may("vm2", RATINGS) is False
    assert found.may("vm1", SpiffeId("cluster.local", "default2", "ratings")) is False
    assert found.may("vm1", SpiffeId("cluster.local", "default", "ratings2")) is False


def test_all_of_a_namespace(folder: Path) -> None:
    allow(folder, "vm1", ["shop/*"])
    found = Permissions(folder)
    assert (found.may("vm1", CART), found.may("vm1", RATINGS)) == (True, False)
    assert found.may("vm1", SpiffeId("cluster.local", "shop", "*")) is True  # which no identity is
    assert found.may("vm1", SpiffeId("cluster.local", "shop-2", "cart")) is False


def test_accounts_replace_those_before_and_others_stay(folder: Path) -> None:
    allow(folder, "vm2", ["shop/cart"])
    allow(folder, "vm1", ["shop/*", "default/ratings"])
    allow(folder, "vm1", ["default/details"])
    assert read_nodes(folder) == {"vm1": ("default/details",), "vm2": ("shop/cart",)}
    remove(folder, "vm1")
    assert read_nodes(folder) == {"vm2": ("shop/cart",)}
    with pytest.raises(ConfigError, match="there is no node 'vm1'"):
        remove(folder, "vm1")


def test_the_revision_is_another_after_a_change_and_no_question_hides_one(folder: Path) -> None:
    found = Permissions(folder)
    before = found.revision
    assert found.revision == before
    allow(folder, "vm1", ["shop/*"])
    assert found.known("vm1")
    assert found.revision != before


def test_the_file_is_its_users_alone_and_of_one_that_others_read_nothing_is_taken(folder: Path) -> None:
    allow(folder, "vm1", ["shop/*"])
    path = folder / FILE
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="is open to other users; run: chmod 600"):
        Permissions(folder)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("nonsense", "JSONDecodeError"),
        ("[]", "TypeError"),
        ('{"version": 2, "nodes": {}}', "version 2 is not known here"),
        ('{"version": 1}', "KeyError"),
        ('{"version": 1, "nodes": []}', "AttributeError"),
        ('{"version": 1, "nodes": {"vm1": "shop/cart"}}', "TypeError"),
        ('{"version": 1, "nodes": {"vm1": [1]}}', "AttributeError"),
        ('{"version": 1, "nodes": {"vm1": ["*"]}}', "is not NAMESPACE/ACCOUNT"),
        ('{"version": 1, "nodes": {"vm1": ["*/*"]}}', "is not NAMESPACE/ACCOUNT"),
        ('{"version": 1, "nodes": {"vm1": ["meshlib-node/*"]}}', "a node can't speak for nodes"),
        ('{"version": 1, "nodes": {"VM 1": ["shop/cart"]}}', "is no name of a node"),
        ('{"version": 1, "nodes": ' + "[" * 100_000, "RecursionError"),
    ],
)
def test_a_broken_file_is_told_at_the_start_and_changes_nothing_later(
    text: str, reason: str, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    allow(folder, "vm1", ["shop/*"])
    found = Permissions(folder)
    (folder / FILE).write_text(text)
    with caplog.at_level(logging.WARNING):
        assert found.may("vm1", CART)
        assert found.may("vm1", CART)
    assert len(caplog.records) == 1
    assert "what nodes may do stays as it was" in caplog.text
    with pytest.raises(ConfigError) as caught:
        Permissions(folder)
    assert reason in str(caught.value)
    (folder / FILE).unlink()
    assert found.may("vm1", CART) is False


@pytest.mark.parametrize(
    "text",
    ["", "shop", "shop/", "/cart", "shop/cart/x", "Shop/cart", "sh*p/cart", "shop/ca*", "a b/c"],
)
def test_what_is_no_account(text: str) -> None:
    with pytest.raises(ValueError, match="is not NAMESPACE/ACCOUNT"):
        account(text)


@pytest.mark.parametrize("text", ["", "VM1", "vm 1", "-vm", "vm/1", "vm1\n", "x" * 300])
def test_what_is_no_name_of_a_node(text: str) -> None:
    with pytest.raises(ValueError, match="is no name of a node"):
        node_name(text)


def test_operators_are_nobodys_to_speak_for(folder: Path) -> None:
    for text in ("istio-system/operator", "istio-system/*"):
        with pytest.raises(ValueError, match="a node can't speak for operators"):
            allow(folder, "vm1", ["shop/*", text], operators="istio-system")
    assert read_nodes(folder) == {}
