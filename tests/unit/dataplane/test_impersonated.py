"""The certificates of a node's workloads, with a clock that is set by hand and a real authority."""

import logging
import random
import threading
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from support.small_control import Clock, SmallControl

from meshlib.bootstrap import bootstrap
from meshlib.dataplane import impersonated
from meshlib.dataplane.certs import SPREAD_REFUSED, SPREAD_ROOTS, Certs, vouched
from meshlib.dataplane.impersonated import LOOK_SECONDS, Impersonated
from meshlib.errors import ConfigError, ControlUnavailable
from meshlib.identity.keys import load_key
from meshlib.identity.pem import split_pem
from meshlib.identity.spiffe import SpiffeId

NOW = 1_900_000_000.0
VM1 = SpiffeId("cluster.local", "meshlib-node", "vm1")
CART, TILL = ("shop", "cart"), ("shop", "till")
CARTS, TILLS = "spiffe://cluster.local/ns/shop/sa/cart", "spiffe://cluster.local/ns/shop/sa/till"


@pytest.fixture
def clock() -> Clock:
    return Clock(NOW)


@pytest.fixture
def control(tmp_path: Path, clock: Clock) -> SmallControl:
    made = SmallControl(tmp_path / "ca", clock)
    made.who, made.speaks_for = VM1, {CARTS, TILLS}
    return made


@pytest.fixture
def own(control: SmallControl, clock: Clock) -> Iterator[Certs]:
    settings = bootstrap(
        {},
        control="control.example:15010",
        namespace=VM1.namespace,
        service_account=VM1.service_account,
        token="a-good-token",
        ca_fingerprint=control.authority.fingerprint,
        state_dir="",
    )
    made = Certs(settings, call=control, wall=clock, dice=random.Random(1))
    yield made
    made.close()


@pytest.fixture
def found(own: Certs, control: SmallControl, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Impersonated:
    """Without a thread of its own."""
    monkeypatch.setattr(Impersonated, "_run", lambda _: None)
    settings = bootstrap({}, control="control.example:15010")
    return Impersonated(settings, own, call=control, wall=clock, dice=random.Random(1))


def looks(found: Impersonated, clock: Clock, until: float) -> None:
    """Lets the renewal run to a time."""
    for seconds in found.kept_fresh():
        clock.now += seconds
        if clock.now >= until:
            break


def asked(control: SmallControl, whom: str = CARTS) -> list[str]:
    """By what each certificate for `whom` was asked for."""
    return [one.proof for one in control.asked if one.path == whom]


def test_each_account_has_one_that_the_nodes_own_certificate_asked_for(
    found: Impersonated, control: SmallControl, clock: Clock
) -> None:
    for account in (CART, CART, TILL):
        found._begin(account)
    assert found.held(CART) is None
    looks(found, clock, NOW + 1)
    cart, till = found.held(CART), found.held(TILL)
    assert cart is not None
    assert till is not None
    assert (cart.principal, till.principal) == (CARTS, TILLS)
    assert load_key(cart.key_pem).public_key() != load_key(till.key_pem).public_key()
    assert cart.roots_pem == control.authority.roots_pem
    assert (asked(control), asked(control, TILLS)) == (["certificate"], ["certificate"])
    assert found.need(TILL) is till
    assert repr(found) == "<Impersonated 2 of 2 accounts>"


def test_it_is_forgotten_with_the_last_workload(found: Impersonated, clock: Clock) -> None:
    found._begin(CART)
    found._begin(CART)
    looks(found, clock, NOW + 1)
    found.leave(CART)
    assert found.held(CART) is not None
    found.leave(CART)
    assert found.held(CART) is None
    assert repr(found) == "<Impersonated 0 of 0 accounts>"


def test_what_comes_for_one_that_left_meanwhile_is_dropped(
    found: Impersonated, control: SmallControl, clock: Clock
) -> None:
    call = found._call

    def leaving(*given: Any, **named: Any) -> bytes:
        found.leave(CART)
        found._call = call
        return call(*given, **named)

    found._call = leaving
    found._begin(CART)
    looks(found, clock, NOW + 1)
    assert (found.held(CART), asked(control)) == (None, ["certificate"])


def test_each_is_renewed_at_half_its_life(found: Impersonated, control: SmallControl, clock: Clock) -> None:
    found._begin(CART)
    looks(found, clock, NOW + 0.5)
    first = found.held(CART)
    looks(found, clock, NOW + 1700)
    assert found.held(CART) is first
    looks(found, clock, NOW + 1900)
    second = found.held(CART)
    assert second is not None
    assert second is not first
    assert len(asked(control)) == 2
    looks(found, clock, NOW + 3 * 3600)
    assert 6 <= len(asked(control)) <= 8


def test_an_outage_leaves_what_is_held_and_is_told_once_and_louder_near_the_end(
    found: Impersonated, own: Certs, control: SmallControl, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    found._begin(CART)
    looks(found, clock, NOW + 0.5)
    first = found.held(CART)
    control.down = "UNAVAILABLE"
    with caplog.at_level(logging.WARNING, impersonated.__name__):
        looks(found, clock, NOW + 3000)
    assert found.held(CART) is first
    assert found.failures() == {CART: "UNAVAILABLE: it is down"}
    assert [one.levelname for one in caplog.records] == ["WARNING", "ERROR"]
    control.down = ""
    with caplog.at_level(logging.WARNING, impersonated.__name__):
        looks(found, clock, NOW + 3400)
    assert found.held(CART) is not first
    assert found.failures() == {}
    assert "there is a certificate again" in caplog.text


def test_of_a_first_one_that_is_refused_whoever_waits_is_told_alone(
    found: Impersonated, control: SmallControl, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    control.down = "UNAVAILABLE"
    with caplog.at_level(logging.WARNING, impersonated.__name__):
        for _ in range(2):
            found._begin(CART)
            looks(found, clock, clock.now + 0.5)
            found.leave(CART)
        found._begin(CART)
        control.down = ""
        looks(found, clock, clock.now + 100)
    assert found.held(CART) is not None
    assert [one for one in caplog.records if one.name == impersonated.__name__] == []


def test_a_clock_that_was_set_back_keeps_nobody_waiting(
    found: Impersonated, control: SmallControl, clock: Clock
) -> None:
    control.speaks_for = set()
    found._begin(CART)
    looks(found, clock, NOW + 100)
    clock.now, count = NOW - 3600, len(control.asked)
    next(found.kept_fresh())
    assert len(control.asked) == count + 1


def test_one_that_is_not_allowed_keeps_no_other_back_and_is_asked_for_again(
    found: Impersonated, control: SmallControl, clock: Clock
) -> None:
    control.speaks_for = {TILLS}
    found._begin(CART)
    found._begin(TILL)
    looks(found, clock, NOW + 60)
    assert (found.held(CART), found.held(TILL) is not None) == (None, True)
    assert f"the node may not speak for {CARTS}" in found.failures()[CART]
    assert 3 <= len(asked(control)) <= 10
    control.speaks_for = {CARTS, TILLS}
    looks(found, clock, NOW + 200)
    assert found.held(CART) is not None


def test_a_certificate_of_another_is_not_taken(
    found: Impersonated, control: SmallControl, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    sign, till = control.authority.sign, SpiffeId.parse(TILLS)
    monkeypatch.setattr(
        control.authority, "sign", lambda csr, _who, life, now: sign(csr, till, life, now), raising=True
    )
    found._begin(CART)
    looks(found, clock, NOW + 5)
    assert found.held(CART) is None
    assert found.failures()[CART] == f"the certificate is of {TILLS}, not of {CARTS}"


@pytest.mark.parametrize("chain", [[""], ["x"], ["x", "y"]])
def test_garbage_is_not_taken(
    chain: list[str], found: Impersonated, control: SmallControl, clock: Clock
) -> None:
    control.chain = chain
    found._begin(CART)
    looks(found, clock, NOW + 5)
    assert found.held(CART) is None
    assert found.failures()[CART]


def test_a_new_root_is_trusted_at_once_and_signs_within_seconds(
    found: Impersonated, own: Certs, control: SmallControl, clock: Clock
) -> None:
    found._begin(CART)
    looks(found, clock, NOW + 0.5)
    first = found.held(CART)
    assert first is not None
    control.authority.rotate_root(clock.now, overlap_s=0, keep_s=60)
    own.trust(control.authority.roots_pem)
    looks(found, clock, NOW + 2)
    trusted = found.held(CART)
    assert trusted is not None
    assert (trusted.chain_pem, trusted.roots_pem) == (first.chain_pem, control.authority.roots_pem)
    own.renew()
    looks(found, clock, clock.now + SPREAD_ROOTS + LOOK_SECONDS)
    second = found.held(CART)
    assert second is not None
    old, new = split_pem(control.authority.roots_pem)
    assert (vouched(second, old, clock.now), vouched(second, new, clock.now)) == (False, True)
    assert len(asked(control)) == 2


def test_when_the_roots_vouch_for_it_no_more_it_is_renewed_within_a_second(
    found: Impersonated, own: Certs, control: SmallControl, clock: Clock
) -> None:
    found._begin(CART)
    looks(found, clock, NOW + 0.5)
    control.authority.rotate_root(clock.now, overlap_s=0, keep_s=1)
    own.trust(control.authority.roots_pem)
    own.renew()
    clock.now += 1
    control.authority.reload(clock.now)
    own.trust(control.authority.roots_pem)
    looks(found, clock, clock.now + SPREAD_REFUSED + LOOK_SECONDS)
    held = found.held(CART)
    assert held is not None
    assert vouched(held, control.authority.roots_pem, clock.now)
    assert len(asked(control)) == 2


def test_a_renewal_of_the_nodes_own_renews_no_other(
    found: Impersonated, own: Certs, control: SmallControl, clock: Clock
) -> None:
    found._begin(CART)
    looks(found, clock, NOW + 0.5)
    own.renew()
    looks(found, clock, NOW + 60)
    assert len(asked(control)) == 1


def test_their_number_is_bounded(found: Impersonated, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(impersonated, "MOST", 2)
    for account in (CART, TILL, CART):
        found._begin(account)
    with pytest.raises(ConfigError, match="workloads of 2 accounts; no further one is taken"):
        found.need(("shop", "third"))
    found.leave(TILL)
    found._begin(("shop", "third"))


@pytest.fixture
def kept(
    own: Certs, control: SmallControl, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Any:
    """Makes one after the other, with one folder."""
    monkeypatch.setattr(Impersonated, "_run", lambda _: None)
    settings = bootstrap({}, control="control.example:15010", state_dir=str(tmp_path / "state"))

    def make() -> Impersonated:
        return Impersonated(settings, own, call=control, wall=clock, dice=random.Random(1))

    return make


def files(folder: Path) -> list[Path]:
    return sorted((folder / "state" / "workloads" / "identity").glob("*"))


def test_the_next_one_has_those_of_workloads_that_come_back(
    kept: Any, own: Certs, control: SmallControl, clock: Clock, tmp_path: Path
) -> None:
    own.ensure()
    first = kept()
    for account in (CART, TILL):
        first._begin(account)
    looks(first, clock, NOW + 1)
    held = first.held(CART)
    assert [one.stat().st_mode & 0o777 for one in files(tmp_path)] == [0o600, 0o600]
    assert files(tmp_path)[0].parent.stat().st_mode & 0o777 == 0o700
    first.leave(CART, stays=True)
    first.leave(TILL)
    assert len(files(tmp_path)) == 1
    second = kept()
    assert second.need(CART) == held
    looks(second, clock, NOW + 60)
    assert len(asked(control)) == 1
    second._begin(TILL)
    assert second.held(TILL) is None


def test_one_that_is_good_no_more_or_is_anothers_is_asked_for(
    kept: Any, own: Certs, control: SmallControl, clock: Clock, tmp_path: Path
) -> None:
    own.ensure()
    first = kept()
    for account in (CART, TILL):
        first._begin(account)
    looks(first, clock, NOW + 1)
    one, other = files(tmp_path)
    swapped = one.read_bytes(), other.read_bytes()
    for path, content in zip((one, other), reversed(swapped), strict=True):
        path.write_bytes(content)
    for content in (None, b"", b"{}", swapped[0][:700]):
        if content is not None:
            one.write_bytes(content)
            other.write_bytes(content)
        second = kept()
        second._begin(CART)
        assert second.held(CART) is None
    # When what was kept has ended, it goes with the next start.
    one.write_bytes(swapped[0])
    other.write_bytes(swapped[1])
    clock.now = NOW + 10 * 24 * 3600
    kept()
    assert files(tmp_path) == []


def test_one_that_was_kept_is_renewed_by_a_new_root_and_not_used_without_an_old_one(
    kept: Any, own: Certs, control: SmallControl, clock: Clock
) -> None:
    own.ensure()
    first = kept()
    first._begin(CART)
    looks(first, clock, NOW + 1)
    control.authority.rotate_root(clock.now, overlap_s=0, keep_s=60)
    own.trust(control.authority.roots_pem)
    own.renew()
    second = kept()
    second._begin(CART)
    before = second.held(CART)
    assert before is not None
    assert before.roots_pem == control.authority.roots_pem
    looks(second, clock, clock.now + SPREAD_ROOTS + LOOK_SECONDS)
    now = second.held(CART)
    assert now is not None
    assert now.chain_pem != before.chain_pem
    own.trust(split_pem(control.authority.roots_pem)[0])
    third = kept()
    third._begin(CART)
    assert third.held(CART) is None


def test_without_a_workload_nothing_is_asked(
    found: Impersonated, control: SmallControl, clock: Clock
) -> None:
    assert list(islice(found.kept_fresh(), 3)) == [LOOK_SECONDS] * 3
    assert control.asked == []


@pytest.fixture
def running(own: Certs, control: SmallControl, clock: Clock) -> Iterator[Impersonated]:
    """With a thread of its own."""
    settings = bootstrap({}, control="control.example:15010")
    made = Impersonated(settings, own, call=control, wall=clock)
    yield made
    made.close()
    until = time.monotonic() + 60
    while any(one.name == "meshlib-impersonated" for one in threading.enumerate()):
        assert time.monotonic() < until
        time.sleep(0.01)


def test_who_needs_one_waits_for_it(running: Impersonated) -> None:
    assert running.need(CART).principal == CARTS
    assert running.need(CART) is running.held(CART)


def test_who_cannot_have_one_is_told_why_and_leaves_nothing_behind(
    running: Impersonated, control: SmallControl
) -> None:
    control.speaks_for = {CARTS}
    for _ in range(2):
        with pytest.raises(ControlUnavailable, match=r"no certificate for shop/till: .* may not speak for"):
            running.need(TILL)
    assert repr(running) == "<Impersonated 0 of 0 accounts>"
    control.speaks_for = {TILLS}
    assert running.need(TILL).principal == TILLS


def test_who_waits_when_it_ends_is_told_so(own: Certs, control: SmallControl, clock: Clock) -> None:
    settings = bootstrap({}, control="control.example:15010")
    found = Impersonated(settings, own, call=control, wall=clock)
    found.close()
    with pytest.raises(ControlUnavailable, match="shop/cart: it was not asked for in time"):
        found.need(CART)
