"""A root takes the place of another: who is trusted, who signs, and that no certificate is lost."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.pki import HOUR, NOW

from meshlib.control.ca.authority import OVERLAP_S, Authority
from meshlib.control.ca.issuer import DAY_S
from meshlib.control.ca.request import MAX_TTL_S
from meshlib.control.ca.rotation import FORGET_AFTER_S
from meshlib.errors import ConfigError
from meshlib.identity.chain import verify_chain
from meshlib.identity.keys import make_csr, make_key
from meshlib.identity.pem import fingerprint, load_bundle, to_der
from meshlib.identity.spiffe import SpiffeId

REVIEWS = SpiffeId("cluster.local", "default", "reviews")
CSR = make_csr(make_key(), REVIEWS).decode()


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.open(tmp_path, trust_domain="cluster.local", now=NOW)


def seen(authority: Authority, now: float) -> tuple[str, int, str]:
    """Phase, number of trusted roots, the fingerprint of the root above a new certificate."""
    authority.reload(now)
    root = load_bundle(authority.sign(CSR, REVIEWS, 0, now)[-1])[0]
    assert fingerprint(root) == authority.fingerprint == authority.status(now)["fingerprint"]
    return (
        authority.status(now)["rotation"]["phase"],
        len(load_bundle(authority.roots_pem)),
        fingerprint(root),
    )


def test_the_three_steps(authority: Authority) -> None:
    old = authority.fingerprint
    assert seen(authority, NOW) == ("settled", 1, old)
    authority.rotate_root(NOW)
    new = fingerprint(load_bundle(authority.roots_pem)[1])
    turn, end = NOW + OVERLAP_S, NOW + OVERLAP_S + MAX_TTL_S
    assert seen(authority, NOW) == ("announced", 2, old)
    assert authority.status(NOW)["rotation"]["until"] == turn
    assert seen(authority, turn - 1) == ("announced", 2, old)
    assert seen(authority, turn) == ("issuing", 2, new)
    assert authority.status(turn)["rotation"]["until"] == end
    assert seen(authority, end - 1) == ("issuing", 2, new)
    assert seen(authority, end) == ("settled", 1, new)
    assert old != new


def test_each_step_is_told_once(authority: Authority) -> None:
    authority.rotate_root(NOW, overlap_s=10, keep_s=100)
    told = [now for now in range(120) if authority.reload(NOW + now)]
    assert told == [10, 110]


def test_it_goes_on_after_a_restart(tmp_path: Path, authority: Authority) -> None:
    authority.rotate_root(NOW, overlap_s=10, keep_s=100)
    for now in (NOW + 5, NOW + 50, NOW + 500):
        again = Authority.open(tmp_path, trust_domain="cluster.local", now=now)
        authority.reload(now)
        assert (again.roots_pem, again.fingerprint) == (authority.roots_pem, authority.fingerprint)


def test_one_at_a_time_until_it_issues(authority: Authority) -> None:
    authority.rotate_root(NOW, overlap_s=10, keep_s=100)
    with pytest.raises(ConfigError, match="a rotation is under way"):
        authority.rotate_root(NOW + 9)
    authority.rotate_root(NOW + 10, overlap_s=10, keep_s=100)
    assert len(load_bundle(authority.roots_pem)) == 3
    authority.reload(NOW + 110)  # the first is trusted no longer than was said
    assert len(load_bundle(authority.roots_pem)) == 2
    assert seen(authority, NOW + 120)[:2] == ("settled", 1)


@pytest.mark.parametrize("times", [{"overlap_s": -1}, {"keep_s": -1}])
def test_times_are_not_negative(authority: Authority, times: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="can't be negative"):
        authority.rotate_root(NOW, **times)


def test_a_clock_that_jumps_and_comes_back_loses_no_root(tmp_path: Path, authority: Authority) -> None:
    authority.rotate_root(NOW, overlap_s=10, keep_s=100)
    roots = authority.roots_pem
    assert seen(authority, NOW + 110 + FORGET_AFTER_S - 1)[:2] == ("settled", 1)
    assert seen(authority, NOW + 20)[:2] == ("issuing", 2)
    assert authority.roots_pem == roots
    assert seen(authority, NOW - DAY_S)[:2] == ("announced", 2)


def test_what_is_long_over_is_forgotten(tmp_path: Path, authority: Authority) -> None:
    path = tmp_path / "authority.json"
    authority.rotate_root(NOW, overlap_s=10, keep_s=100)
    authority.reload(NOW + 109 + FORGET_AFTER_S)
    assert path.read_text().count("PRIVATE KEY") == 8
    authority.reload(NOW + 110 + FORGET_AFTER_S)
    assert path.read_text().count("PRIVATE KEY") == 4


def test_no_leaf_outlives_the_trust_in_its_root(authority: Authority) -> None:
    authority.rotate_root(NOW, overlap_s=HOUR, keep_s=HOUR)
    leaf = load_bundle(authority.sign(CSR, REVIEWS, MAX_TTL_S, NOW)[0])[0]
    assert leaf.not_valid_after_utc.timestamp() == NOW + 2 * HOUR


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
@given(
    asked=st.integers(1, MAX_TTL_S),
    signed=st.integers(-MAX_TTL_S, 2 * MAX_TTL_S),
    rotations=st.lists(st.integers(2 * DAY_S, 60 * DAY_S), min_size=1, max_size=3),
    share=st.floats(0, 0.999),
)
def test_a_certificate_is_good_to_its_end(
    tmp_path_factory: pytest.TempPathFactory, asked: int, signed: int, rotations: list[int], share: float
) -> None:
    """Whenever it was signed, however many roots came after: its own is trusted for as long as it lives."""
    start = NOW - MAX_TTL_S
    authority = Authority.open(tmp_path_factory.mktemp("ca"), trust_domain="cluster.local", now=start)
    events = [(NOW + signed, "sign"), (NOW + signed + asked * share, "use")]
    at = NOW
    for after in rotations:
        events.append((at, "rotate"))
        at += after
    chain: list[bytes] = []
    for when, what in sorted(events):
        authority.reload(when)
        if what == "rotate":
            authority.rotate_root(when)
        elif what == "sign":
            chain = list(to_der("".join(authority.sign(CSR, REVIEWS, asked, when))))
        else:
            verify_chain(chain, authority.roots_pem, when)
            return
    raise AssertionError("it was not used")
