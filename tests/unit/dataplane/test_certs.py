"""A workload's certificate from its first day to its last, with a clock that is set by hand."""

import json
import logging
import os
import random
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.small_ca import SmallCa
from support.small_control import CART, Clock, SmallControl

from meshlib.bootstrap import bootstrap
from meshlib.control.ca.authority import Authority
from meshlib.dataplane.certs import (
    ASK_SECONDS,
    LOOK_AGAIN,
    SHORTEST_WAIT,
    SPREAD_REFUSED,
    SPREAD_ROOTS,
    Certs,
    vouched,
)
from meshlib.dataplane.tls import Held
from meshlib.errors import ControlUnavailable
from meshlib.identity.keys import make_key
from meshlib.identity.pem import fingerprint, split_pem
from meshlib.identity.renewal import BACKDATED_S, FIRST_PAUSE_S, SLICE_S, Health

NOW = 1_900_000_000.0
HOUR = 3600.0
Make = Callable[..., Certs]


@pytest.fixture
def clock() -> Clock:
    return Clock(NOW)


@pytest.fixture
def control(tmp_path: Path, clock: Clock) -> SmallControl:
    return SmallControl(tmp_path / "ca", clock)


@pytest.fixture
def make(tmp_path: Path, control: SmallControl, clock: Clock) -> Iterator[Make]:
    """Makes a workload's certificates; arguments are settings."""
    made: list[Certs] = []

    def one(**settings: Any) -> Certs:
        given = {
            "control": "control.example:15010",
            "namespace": "shop",
            "service_account": "cart",
            "token": "a-good-token",
            "ca_fingerprint": control.authority.fingerprint,
            "state_dir": tmp_path / "state",
        }
        found = bootstrap(
            {}, **{name: value for name, value in (given | settings).items() if value is not None}
        )
        made.append(Certs(found, call=control, wall=clock, dice=random.Random(1)))
        return made[-1]

    yield one
    for certs in made:
        certs.close()


def kept(tmp_path: Path) -> Path:
    """The one file on disk."""
    (found,) = (tmp_path / "state" / "identity").iterdir()
    return found


def looks(certs: Certs, clock: Clock, until: float) -> list[float]:
    """Lets the renewal run to a time; how long each wait was."""
    waits: list[float] = []
    for seconds in certs.kept_fresh():
        waits.append(seconds)
        clock.now += seconds
        if clock.now >= until:
            break
    return waits


# The first one


def test_nothing_is_asked_before_the_first_need(make: Make, control: SmallControl) -> None:
    certs = make()
    assert (certs.held, certs.health, control.asked) == (None, None, [])
    assert repr(certs) == "<Certs none yet>"


def test_the_first_is_got_by_token(make: Make, control: SmallControl) -> None:
    held = make().ensure()
    assert [(one.path, one.proof) for one in control.asked] == [
        ("roots", "nothing"),
        ("certificate", "Bearer a-good-token"),
        ("roots", "nothing"),
    ]
    assert (held.principal, held.not_before, held.not_after) == (str(CART), NOW, NOW + HOUR)
    assert held.roots_pem == control.authority.roots_pem
    assert len(split_pem(held.chain_pem)) == 2  # the leaf and its issuer, no root
    assert "PRIVATE" not in repr(held)


def test_it_is_asked_for_once(make: Make, control: SmallControl) -> None:
    certs = make()
    assert certs.ensure() is certs.ensure()
    assert len(control.proofs) == 1
    assert repr(certs) == f"<Certs {CART} until 2030-03-17T18:46:40Z>"


def test_the_token_file_is_read_anew_each_time(make: Make, control: SmallControl, tmp_path: Path) -> None:
    path = tmp_path / "token"
    certs = make(token=None, token_file=path)
    with pytest.raises(ControlUnavailable, match=r"the token file .*/token can't be read"):
        certs.ensure()
    path.write_text("a-bad-token\n")
    with pytest.raises(ControlUnavailable, match="that token is not taken"):
        certs.ensure()
    path.write_text("a-good-token\n")
    assert certs.ensure().principal == str(CART)
    assert certs.failure == ""


def test_without_a_token_it_says_what_is_needed(make: Make) -> None:
    certs = make(token=None)
    with pytest.raises(ControlUnavailable, match="MESHLIB_TOKEN or MESHLIB_TOKEN_FILE is needed"):
        certs.ensure()
    assert "nothing that proves who this is" in certs.failure


def test_in_plain_text_there_is_none(make: Make, control: SmallControl) -> None:
    assert make(allow_plaintext=True).secure() is None
    assert control.asked == []


# Roots


def test_another_authority_than_the_fingerprints_is_told_nothing(make: Make, control: SmallControl) -> None:
    with pytest.raises(ControlUnavailable, match="its certificate authority is another one than sha256:0000"):
        make(ca_fingerprint="sha256:" + "0" * 64).ensure()
    assert [one.path for one in control.asked] == ["roots"]


def test_only_the_vouched_root_is_trusted_for_the_token(
    make: Make, control: SmallControl, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody between names the true root besides his own: the token does not go to his."""
    true, false = SmallCa("true", now=NOW), control.authority.roots_pem
    monkeypatch.setattr(type(control.authority), "roots_pem", property(lambda _: true.pem + false))
    with pytest.raises(ControlUnavailable, match="it is not trusted"):
        make(ca_fingerprint=fingerprint(true.certificate)).ensure()
    assert control.proofs == []


def test_without_an_anchor_nobody_is_asked(make: Make, control: SmallControl) -> None:
    with pytest.raises(ControlUnavailable, match="set MESHLIB_CA_FINGERPRINT as `meshlib control` prints it"):
        make(ca_fingerprint=None).ensure()
    assert control.asked == []


def test_roots_of_a_file(make: Make, control: SmallControl, tmp_path: Path) -> None:
    path = tmp_path / "roots.pem"
    certs = make(ca_fingerprint=None, ca_file=path)
    with pytest.raises(ControlUnavailable, match="No such file"):
        certs.ensure()
    path.write_text(SmallCa("other", now=NOW).pem)
    with pytest.raises(ControlUnavailable, match="it is not trusted"):
        certs.ensure()
    path.write_text(control.authority.roots_pem)
    assert certs.ensure().principal == str(CART)
    assert [one.path for one in control.asked] == ["certificate", "roots"]


def test_new_roots_are_trusted_at_once_and_kept(make: Make, control: SmallControl, tmp_path: Path) -> None:
    certs = make()
    before, context = certs.ensure(), certs.secure()
    control.authority.rotate_root(NOW)
    certs.trust(control.authority.roots_pem)
    held = certs.ensure()
    assert (held.chain_pem, held.key_pem) == (before.chain_pem, before.key_pem)
    assert len(split_pem(held.roots_pem)) == 2
    assert certs.secure() is not context
    assert json.loads(kept(tmp_path).read_text())["roots"] == held.roots_pem


def test_roots_are_asked_for_when_control_says_that_they_may_be_others(
    make: Make, control: SmallControl, clock: Clock
) -> None:
    certs = make()
    certs.ensure()
    control.authority.rotate_root(NOW)
    certs.look()
    control.down = "UNAVAILABLE"
    looks(certs, clock, NOW + SPREAD_REFUSED + SHORTEST_WAIT)
    assert len(split_pem(certs.held.roots_pem)) == 1  # type: ignore[union-attr]
    control.down, control.asked = "", []
    looks(certs, clock, clock.now + LOOK_AGAIN + SPREAD_ROOTS + SHORTEST_WAIT)
    assert len(split_pem(certs.held.roots_pem)) == 2  # type: ignore[union-attr]
    assert [one.path for one in control.asked] == ["roots", "certificate", "roots"]


def test_who_is_not_told_of_roots_asks_for_them_again_and_again(
    make: Make, control: SmallControl, clock: Clock
) -> None:
    certs = make()
    certs.ensure()
    control.asked = []
    certs.watch_roots()
    looks(certs, clock, NOW + 5 * ASK_SECONDS + 1)
    assert [one.path for one in control.asked] == ["roots"] * 5
    clock.now -= 60  # a clock that is put back puts nothing off
    control.asked = []
    looks(certs, clock, clock.now + 2 * ASK_SECONDS + 1)
    assert [one.path for one in control.asked] == ["roots"] * 2


def test_a_root_that_is_replaced_unheard_is_found_as_by_a_new_process(
    make: Make, control: SmallControl, clock: Clock, tmp_path: Path
) -> None:
    """It was in its place before the roots were asked for again."""
    path = tmp_path / "roots.pem"
    path.write_text(control.authority.roots_pem)
    certs = make(ca_fingerprint=None, ca_file=path)
    joined(certs)
    certs.watch_roots()
    control.authority = Authority.open(tmp_path / "new", trust_domain="cluster.local", now=NOW)
    looks(certs, clock, NOW + 30)
    assert certs.health is Health.REFUSED
    assert "other roots now" in certs.failure
    path.write_text(control.authority.roots_pem)
    looks(certs, clock, clock.now + 60)
    assert certs.held is not None
    assert certs.held.roots_pem == control.authority.roots_pem
    assert (certs.health, certs.failure, control.proofs[-1]) == (Health.OK, "", "Bearer a-good-token")


def test_a_root_that_is_replaced_unheard_is_told_where_a_fingerprint_is_all_there_is(
    make: Make, control: SmallControl, clock: Clock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    certs = make()
    joined(certs)
    certs.watch_roots()
    control.authority = Authority.open(tmp_path / "new", trust_domain="cluster.local", now=NOW)
    looks(certs, clock, NOW + 30)
    assert certs.health is Health.REFUSED
    assert "set MESHLIB_CA_FINGERPRINT" in caplog.text


@pytest.mark.parametrize("said", ["", "no certificate"])
def test_no_roots_are_no_news(make: Make, said: str) -> None:
    certs = make()
    held = certs.ensure()
    certs.trust(said)
    certs.trust(held.roots_pem)
    assert certs.held is held


def test_roots_that_come_during_a_renewal_stay(make: Make, control: SmallControl) -> None:
    """Asked for a certificate, control is slow; meanwhile the stream says that there is a new root."""
    certs = make()
    old = certs.ensure().roots_pem
    call, new = certs._asking._call, SmallCa("new", now=NOW).pem

    def slow(*arguments: Any, **options: Any) -> bytes:
        answer = call(*arguments, **options)
        certs.trust(old + new)
        return answer

    certs._asking._call = slow
    certs.renew()
    assert certs.held is not None
    assert split_pem(certs.held.roots_pem) == split_pem(old + new)


def test_a_root_that_was_vouched_for_is_asked_anew_once_it_is_not_trusted(
    make: Make, control: SmallControl, tmp_path: Path
) -> None:
    path = tmp_path / "token"
    path.write_text("a-bad-token")
    certs = make(token=None, token_file=path)
    with pytest.raises(ControlUnavailable, match="that token is not taken"):
        certs.ensure()
    old = control.authority
    control.authority = Authority.open(tmp_path / "new", trust_domain="cluster.local", now=NOW)
    path.write_text("a-good-token")
    for why in ("it is not trusted", "its certificate authority is another one"):
        with pytest.raises(ControlUnavailable, match=why):
            certs.ensure()
    control.authority = old
    assert certs.ensure().principal == str(CART)


# Roots that are replaced, and certificates that are refused


def joined(certs: Certs) -> Held:
    """Its first certificate; what keeps it fresh is the test."""
    held = certs.ensure()
    certs.close()
    return held


def test_new_roots_renew_soon_and_the_next_one_is_below_the_new_root(
    make: Make, control: SmallControl, clock: Clock
) -> None:
    """A quick rotation: what is signed for the old root meanwhile is short, and replaced at its half."""
    certs = make()
    first = joined(certs)
    control.takes_tokens = False
    run = certs.kept_fresh()
    assert next(run) == SLICE_S
    control.authority.rotate_root(NOW, overlap_s=10, keep_s=20)
    certs.trust(control.authority.roots_pem)
    wait = next(run)
    assert 0 < wait <= SPREAD_ROOTS
    old, new = split_pem(control.authority.roots_pem)
    assert certs.held is not None
    while clock.now + wait < NOW + 30:
        clock.now += wait
        wait = next(run)
        assert clock.now < certs.held.not_after
    assert certs.held is not first
    assert not vouched(certs.held, old, clock.now)
    assert vouched(certs.held, new, clock.now)
    assert set(control.proofs[1:]) == {"certificate"}
    count = len(control.proofs)
    clock.now = NOW + 31
    certs.trust(new)
    assert next(run) == SLICE_S
    assert len(control.proofs) == count


def test_a_certificate_below_a_new_root_is_not_renewed_for_it(make: Make, control: SmallControl) -> None:
    control.authority.rotate_root(NOW, overlap_s=0)
    certs = make(ca_fingerprint=control.authority.fingerprint)
    held = joined(certs)
    old, new = split_pem(held.roots_pem)
    certs.held = replace(held, roots_pem=old)  # it renewed before it heard
    run = certs.kept_fresh()
    for roots in (old + new, new):
        certs.trust(roots)
        assert next(run) == SLICE_S


def test_roots_that_vouch_for_it_no_more_have_it_replaced_by_token(
    make: Make, control: SmallControl, clock: Clock
) -> None:
    certs = make()
    old = joined(certs)
    run = certs.kept_fresh()
    next(run)
    control.authority.rotate_root(NOW, overlap_s=0, keep_s=0)
    certs.trust(split_pem(control.authority.roots_pem)[-1])
    wait = next(run)
    assert wait <= SPREAD_REFUSED
    clock.now += wait
    assert next(run) == SLICE_S
    assert control.proofs == ["Bearer a-good-token"] * 2
    assert certs.held is not None
    assert certs.held.chain_pem != old.chain_pem


def test_who_is_hung_up_on_asks_anew_by_token(make: Make, control: SmallControl, clock: Clock) -> None:
    certs = make()
    joined(certs)
    run = certs.kept_fresh()
    next(run)
    control.takes_certificates = False
    for _ in range(3):  # each stream says it at each try
        certs.doubt("UNAVAILABLE: TLSV1_ALERT_UNKNOWN_CA")
    wait = next(run)
    assert wait <= SPREAD_REFUSED
    clock.now += wait
    assert next(run) == SLICE_S
    assert control.proofs == ["Bearer a-good-token", "certificate", "Bearer a-good-token"]
    assert certs.health is Health.OK


def test_doubts_that_do_not_help_become_rare(make: Make, control: SmallControl, clock: Clock) -> None:
    """Something is wrong that a new certificate does not mend."""
    certs = make()
    joined(certs)
    run = certs.kept_fresh()
    next(run)
    while clock.now < NOW + 0.4 * HOUR:
        certs.doubt("UNAVAILABLE: reset")
        clock.now += next(run)
    assert 8 < len(control.proofs) < 18


def test_refused_without_a_token_is_an_alarm_that_says_what_to_do(
    make: Make, control: SmallControl, clock: Clock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "token"
    path.write_text("a-good-token")
    certs = make(token=None, token_file=path)
    held = joined(certs)
    path.write_text("")
    control.takes_certificates = False
    certs.doubt("UNAVAILABLE: reset")
    looks(certs, clock, NOW + 60)
    assert (certs.held, certs.health) == (held, Health.REFUSED)
    assert certs.health.alarm
    assert certs.ends == clock.now
    (record,) = [one for one in caplog.records if one.levelname == "ERROR"]
    text = record.getMessage()
    assert f"the certificate of {CART} is of no use at the control service any more; a new one can't" in text
    assert (
        "there is no token: MESHLIB_TOKEN or MESHLIB_TOKEN_FILE is needed (`meshlib ca token` makes" in text
    )
    path.write_text("a-bad-token")
    looks(certs, clock, clock.now + 400)
    assert certs.health is Health.REFUSED
    assert "by token: that token is not taken" in certs.failure
    path.write_text("a-good-token")
    looks(certs, clock, clock.now + 400)
    assert (certs.health, certs.failure) == (Health.OK, "")
    assert certs.held is not held


def test_a_control_that_is_down_refuses_nobody(make: Make, control: SmallControl, clock: Clock) -> None:
    certs = make(token=None, state_dir="")
    certs.held = joined(make())
    control.down = "UNAVAILABLE"
    certs.doubt("UNAVAILABLE: reset")
    looks(certs, clock, NOW + 60)
    assert "it is down" in certs.failure
    assert certs.health is Health.OK
    control.down = ""
    looks(certs, clock, clock.now + 60)
    assert certs.failure == ""
    assert control.proofs == ["Bearer a-good-token", "certificate"]


def test_a_restart_trusts_the_roots_that_were_learned_before_the_fingerprint(
    make: Make, control: SmallControl, clock: Clock
) -> None:
    """The fingerprint in its environment is that of a root that was given up while it ran."""
    old = control.authority.fingerprint
    certs = make()
    joined(certs)
    control.authority.rotate_root(NOW, overlap_s=0, keep_s=10)
    certs.trust(control.authority.roots_pem)
    clock.now = NOW + 60
    control.asked.clear()
    again = make(ca_fingerprint=old)  # the same file: what was held there is not taken any more
    held = joined(again)
    control.authority.reload(clock.now)
    if vouched(held, control.authority.roots_pem, clock.now):
        assert control.proofs == ["Bearer a-good-token"]
    else:
        again.doubt("UNAVAILABLE: TLSV1_ALERT_UNKNOWN_CA")
        looks(again, clock, clock.now + 10)
    assert control.proofs == ["Bearer a-good-token"]
    assert again.held is not None
    assert split_pem(again.held.roots_pem) == split_pem(control.authority.roots_pem)
    assert vouched(again.held, control.authority.roots_pem, clock.now)


def test_a_root_that_was_given_up_is_not_trusted_for_a_fingerprint(
    make: Make, control: SmallControl, tmp_path: Path
) -> None:
    make().ensure()
    _changed(kept(tmp_path), roots=SmallCa("new", now=NOW).pem)
    control.asked.clear()
    with pytest.raises(ControlUnavailable, match="another root now, set MESHLIB_CA_FINGERPRINT as `meshlib"):
        make().ensure()
    assert control.asked == []


def test_a_file_of_roots_is_read_anew_when_those_that_are_known_do_not_do(
    make: Make, control: SmallControl, tmp_path: Path
) -> None:
    path = tmp_path / "roots.pem"
    path.write_text(control.authority.roots_pem)
    certs = make(ca_fingerprint=None, ca_file=path)
    joined(certs)
    control.authority = Authority.open(tmp_path / "new", trust_domain="cluster.local", now=NOW)
    with pytest.raises(ControlUnavailable, match=r"other roots now, .*roots.pem needs them"):
        certs.renew()
    assert certs.health is Health.REFUSED
    path.write_text(path.read_text() + control.authority.roots_pem)
    assert certs.renew().roots_pem == control.authority.roots_pem
    assert control.proofs[1:] == ["Bearer a-good-token"]


# Renewal


def test_the_next_is_got_by_certificate_at_half_life(make: Make, control: SmallControl, clock: Clock) -> None:
    certs = make()
    first = certs.ensure()
    control.takes_tokens = False
    waits = looks(certs, clock, NOW + 0.52 * HOUR)
    assert control.proofs == ["Bearer a-good-token", "certificate"]
    assert max(waits) == SLICE_S
    second = certs.ensure()
    assert 0.49 * HOUR <= second.not_before - NOW <= 0.51 * HOUR
    assert second.key_pem != first.key_pem
    assert certs.health is Health.OK


def test_the_token_once_more_where_the_certificate_is_refused(
    make: Make, control: SmallControl, clock: Clock
) -> None:
    certs = make()
    certs.ensure()
    control.takes_certificates = False
    certs.renew()
    assert control.proofs[1:] == ["certificate", "Bearer a-good-token"]


def test_the_token_once_more_where_the_handshake_ends_with_an_alert(
    make: Make, control: SmallControl
) -> None:
    certs = make()
    held = certs.ensure()
    other = SmallCa("other", now=NOW).held(str(CART))
    certs.held = Held(
        other.chain_pem, other.key_pem, held.roots_pem, str(CART), held.not_before, held.not_after
    )
    assert certs.renew().roots_pem == held.roots_pem
    assert control.proofs == ["Bearer a-good-token"] * 2


def test_where_both_are_refused_it_says_both(make: Make, control: SmallControl) -> None:
    certs = make()
    held = certs.ensure()
    control.takes_certificates = control.takes_tokens = False
    with pytest.raises(
        ControlUnavailable, match=r"by token: that token is not taken; by certificate: .*that certificate"
    ):
        certs.renew()
    assert certs.held is held


def test_the_token_again_after_the_end(make: Make, control: SmallControl, clock: Clock) -> None:
    certs = make()
    certs.ensure()
    clock.now = NOW + HOUR
    assert certs.health is Health.EXPIRED
    assert certs.ensure().not_after == NOW + 2 * HOUR
    assert control.proofs == ["Bearer a-good-token"] * 2


def test_what_is_given_must_be_of_the_key_that_was_made(make: Make, control: SmallControl) -> None:
    issued = SmallCa("x", now=NOW)
    control.chain = [issued.issue(str(CART)).pem, control.authority.roots_pem]
    with pytest.raises(ControlUnavailable, match="what it gave can't be used"):
        make().ensure()
    control.chain = None
    other = make(state_dir="", service_account="other").ensure()
    control.chain = [*split_pem(other.chain_pem), control.authority.roots_pem]
    with pytest.raises(ControlUnavailable, match="it is not of the key that was made for it"):
        make().ensure()


# A control service that is down


def test_down_for_longer_than_half_a_life(
    make: Make, control: SmallControl, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    certs = make()
    held = certs.ensure()
    control.down = "UNAVAILABLE"
    seen: list[tuple[str, str]] = []
    with caplog.at_level(logging.INFO, "meshlib.dataplane.certs"):
        for seconds in certs.kept_fresh():
            if clock.now < NOW + HOUR:
                assert certs.ensure() is held  # it serves to its end
            clock.now += seconds
            if clock.now > NOW + 1.2 * HOUR:
                break
        seen = [(record.levelname, record.getMessage()) for record in caplog.records]
        assert [(level, text.partition("; ")[0]) for level, text in seen] == [
            ("WARNING", f"the certificate of {CART} should have been renewed"),
            ("ERROR", f"the certificate of {CART} ends soon and could not be renewed"),
            ("ERROR", f"the certificate of {CART} has ended"),
        ]
        assert "UNAVAILABLE: it is down" in certs.failure
        with pytest.raises(ControlUnavailable, match="it is down"):
            certs.ensure()
        caplog.clear()
        control.down = ""
        looks(certs, clock, clock.now + 400)
        assert certs.health is Health.OK
        assert [record.getMessage() for record in caplog.records] == [
            f"this workload has a certificate again: {CART}"
        ]
    assert certs.failure == ""


def test_tries_are_many_and_not_too_many(make: Make, control: SmallControl, clock: Clock) -> None:
    certs = make()
    certs.ensure()
    clock.now = NOW + 0.52 * HOUR
    control.down = "UNAVAILABLE"
    waits = looks(certs, clock, NOW + HOUR)
    assert 20 < len(waits) < 300
    assert waits[0] == SHORTEST_WAIT
    assert min(waits[1:]) >= FIRST_PAUSE_S / 2


def test_each_fall_into_a_stage_is_told_anew(
    make: Make, control: SmallControl, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    certs = make()
    certs.ensure()
    run = certs.kept_fresh()
    for _ in range(2):
        next(run)
        control.down, clock.now = "UNAVAILABLE", clock.now + 0.7 * HOUR
        next(run)
        control.down, clock.now = "", clock.now + 1
        next(run)
    late = [record for record in caplog.records if "should have been renewed" in record.getMessage()]
    assert len(late) == 2


# A clock that jumps


def test_a_jump_forth_and_back(make: Make, control: SmallControl, clock: Clock) -> None:
    """Only this machine's clock jumps: what control signs is not valid yet, or over, for it."""
    certs = make()
    held = certs.ensure()
    run = certs.kept_fresh()
    next(run)
    control.clock = Clock(NOW)
    clock.now = NOW + 10 * HOUR
    assert next(run) <= 1.2 * FIRST_PAUSE_S
    assert "what it gave can't be used: it has expired" in certs.failure
    with pytest.raises(ControlUnavailable):
        certs.ensure()
    clock.now = NOW + 60
    next(run)
    assert certs.ensure() is held
    assert certs.health is Health.OK


def test_a_jump_back_is_an_alarm_and_heals(make: Make, control: SmallControl, clock: Clock) -> None:
    certs = make()
    held = certs.ensure()
    run = certs.kept_fresh()
    next(run)
    control.clock = Clock(NOW)
    clock.now = NOW - 24 * HOUR
    assert next(run) <= 1.2 * FIRST_PAUSE_S
    assert certs.health is Health.LATE
    assert certs.ensure() is held  # others may see that it is good
    clock.now = NOW + 5
    assert next(run) == SLICE_S
    assert certs.health is Health.OK


def test_a_clock_that_was_wrong_and_is_put_right(make: Make, control: SmallControl, clock: Clock) -> None:
    """Both were a day ahead when the certificate was made: it is due at once."""
    clock.now = NOW + 24 * HOUR
    certs = make()
    certs.ensure()
    clock.now = NOW
    run = certs.kept_fresh()
    assert next(run) == SHORTEST_WAIT
    assert next(run) == SLICE_S
    assert certs.ensure().not_before == NOW


# On disk


def test_the_next_process_takes_it_from_disk(make: Make, control: SmallControl, tmp_path: Path) -> None:
    held = make().ensure()
    path = kept(tmp_path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    control.down = "UNAVAILABLE"
    assert make(token=None).ensure() == held


def test_a_renewed_one_takes_its_place(make: Make, tmp_path: Path) -> None:
    certs = make()
    certs.ensure()
    made = certs.renew()
    assert json.loads(kept(tmp_path).read_text())["chain"] == made.chain_pem


@pytest.mark.parametrize(
    "settings",
    [
        {"service_account": "other"},
        {"namespace": "other"},
        {"ca_fingerprint": "sha256:" + "1" * 64},
    ],
)
def test_who_is_another_does_not_take_it(make: Make, control: SmallControl, settings: Any) -> None:
    make().ensure()
    control.down = "UNAVAILABLE"
    with pytest.raises(ControlUnavailable, match="it is down"):
        make(**settings).ensure()


def test_of_another_authority_than_the_file_says_it_is_not_taken(
    make: Make, control: SmallControl, tmp_path: Path
) -> None:
    path = tmp_path / "roots.pem"
    path.write_text(control.authority.roots_pem)
    held = make(ca_fingerprint=None, ca_file=path).ensure()
    control.down = "UNAVAILABLE"
    path.write_text(SmallCa("new", now=NOW).pem + control.authority.roots_pem)
    assert make(ca_fingerprint=None, ca_file=path).ensure() == held
    path.write_text(SmallCa("new", now=NOW).pem)
    with pytest.raises(ControlUnavailable, match="it is down"):
        make(ca_fingerprint=None, ca_file=path).ensure()


def _open_to_others(path: Path, _: SmallControl) -> None:
    path.chmod(0o640)


def _cut(path: Path, _: SmallControl) -> None:
    path.write_text(path.read_text()[:-200])


def _no_object(path: Path, _: SmallControl) -> None:
    path.write_text("[]")


def _half(path: Path, _: SmallControl) -> None:
    path.write_text('{"chain": ""}')


def _huge(path: Path, _: SmallControl) -> None:
    path.write_text(" " * (1024 * 1024 + 1))


def _changed(path: Path, **what: str) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | what))


def _other_key(path: Path, _: SmallControl) -> None:
    _changed(path, key=make_key().decode())


def _no_key(path: Path, _: SmallControl) -> None:
    _changed(path, key="secret")


def _broken_roots(path: Path, _: SmallControl) -> None:
    _changed(path, roots="-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n")


def _no_roots(path: Path, _: SmallControl) -> None:
    _changed(path, roots="")


def _over(_: Path, control: SmallControl) -> None:
    control.clock.now += HOUR


@pytest.mark.parametrize(
    "spoil",
    [
        _open_to_others,
        _cut,
        _no_object,
        _half,
        _huge,
        _other_key,
        _no_key,
        _broken_roots,
        _no_roots,
        _over,
    ],
)
def test_what_is_not_good_on_disk_is_replaced(
    make: Make, control: SmallControl, tmp_path: Path, spoil: Callable[[Path, SmallControl], None]
) -> None:
    old = make().ensure()
    spoil(kept(tmp_path), control)
    held = make().ensure()
    assert held.chain_pem != old.chain_pem
    assert control.proofs == ["Bearer a-good-token"] * 2
    assert stat.S_IMODE(kept(tmp_path).stat().st_mode) == 0o600
    assert make().ensure() == held


def test_a_disk_that_takes_nothing_costs_a_warning(
    make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "state").write_text("a file where a folder should be")
    assert make().ensure().principal == str(CART)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "the certificate can't be kept in" in caplog.text


def test_nothing_is_kept_where_that_is_asked_for(make: Make, tmp_path: Path) -> None:
    make(state_dir="").ensure()
    assert not (tmp_path / "state").exists()


# Processes


def test_a_fork_keeps_it_and_renews_for_itself(make: Make, control: SmallControl, clock: Clock) -> None:
    certs = make()
    held = certs.ensure()
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        said = b"no"
        try:
            inherited = certs._thread is None
            clock.now = NOW + 0.6 * HOUR
            same = certs.ensure() is held  # it is good still, and the need starts the renewal
            while certs.held is held:
                time.sleep(0.005)
            renewed = certs.ensure()
            certs.trust(renewed.roots_pem + SmallCa("new", now=NOW).pem)
            fresh = renewed.not_before == clock.now and control.proofs[1:] == ["certificate"]
            said = b"yes" if inherited and same and fresh else b"no"
        finally:
            os.write(writing, said)
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        assert pipe.read() == b"yes"
    os.waitpid(child, 0)
    assert certs.ensure() is held
    assert control.proofs == ["Bearer a-good-token"]


def test_a_close_ends_the_renewal_and_a_need_starts_it(make: Make) -> None:
    certs = make()
    held = certs.ensure()
    assert certs._thread is not None
    certs.close()
    assert certs._thread is None
    assert certs.held is held
    certs.close()
    assert certs.ensure() is held
    assert certs._thread is not None
    certs.close()


def test_a_need_after_the_end_starts_the_renewal_even_if_none_can_be_had(
    make: Make, control: SmallControl, clock: Clock
) -> None:
    certs = make()
    certs.ensure()
    certs.close()
    control.down, clock.now = "UNAVAILABLE", NOW + HOUR
    with pytest.raises(ControlUnavailable, match="it is down"):
        certs.ensure()
    assert certs._thread is not None


def test_a_renewal_that_breaks_is_told_and_tried_again(
    make: Make, control: SmallControl, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    certs = make()
    before = certs.ensure()
    call, breaks = certs._asking._call, [RuntimeError("nobody thought of that")]

    def broken(*arguments: Any, **options: Any) -> bytes:
        if breaks:
            raise breaks.pop()
        return call(*arguments, **options)

    certs._asking._call = broken
    clock.now = NOW + 0.52 * HOUR
    waits = looks(certs, clock, clock.now + 30)
    assert waits[1] <= 1.5 * FIRST_PAUSE_S
    assert certs.held is not before
    assert [record.getMessage() for record in caplog.records] == [
        f"the certificate of {CART} was not renewed; it is tried again"
    ]
    assert "nobody thought of that" in caplog.text


def test_a_certificate_is_dated_back_for_clocks_that_differ(make: Make, clock: Clock) -> None:
    certs = make()
    certs.ensure()
    clock.now = NOW - BACKDATED_S + 1
    assert certs.health is Health.OK
