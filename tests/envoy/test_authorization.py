"""Who may do what: real Envoy and our core give the same verdict.

Half of the verdicts are on RBAC filters at random, half on policies at random, AuthorizationPolicy and
RequestAuthentication, as control compiles them; callers have real certificates and real tokens, good and bad.
`ORACLE_CASES` (default 1,000) verdicts come from a fixed seed, and a quarter as many from a fresh
one, which is printed and can be given as `ORACLE_SEED`. A configuration is asked six times.
"""

import os
import random
from collections.abc import Iterable

import pytest
from support import oracle_policies, oracle_rbac
from support.oracle_authz import Case, World, run

CASES = int(os.environ.get("ORACLE_CASES", "1000")) // 2
FIXED_SEED = 20_261_123
FRESH_SEED = int(os.environ["ORACLE_SEED"])
BATCH = 90
"""Policies that one Envoy has at a time."""
SEEDS = pytest.mark.parametrize(
    ("seed", "verdicts"),
    [(FIXED_SEED, CASES), (FRESH_SEED, CASES // 4)],
    ids=["fixed seed", f"seed {FRESH_SEED}"],
)


@SEEDS
@pytest.mark.timeout(600)
def test_filters(seed: int, verdicts: int) -> None:
    dice, world = random.Random(seed), World()
    count = -(-verdicts // oracle_rbac.ASKS)
    _agree(world, [[oracle_rbac.make_case(dice, world) for _ in range(count)]], verdicts, seed)


@SEEDS
@pytest.mark.timeout(600)
def test_policies(seed: int, verdicts: int) -> None:
    dice, world, signers = random.Random(seed), World(), oracle_policies.Signers()
    count = -(-verdicts // oracle_policies.ASKS)
    sizes = [min(BATCH, count - begin) for begin in range(0, count, BATCH)]
    batches = (oracle_policies.make_batch(dice, world, signers, size) for size in sizes)
    _agree(world, batches, verdicts, seed)


def _agree(world: World, batches: Iterable[list[Case]], verdicts: int, seed: int) -> None:
    print(f"ORACLE_SEED={seed}, {verdicts} verdicts")
    compared, differences = 0, []
    for batch in batches:
        count, found = run(world, batch)
        compared += count
        differences += found
    assert compared >= verdicts
    shown = "\n\n".join(map(str, sorted(differences, key=lambda one: len(str(one)))[:3]))
    assert not differences, f"ORACLE_SEED={seed}: {len(differences)} of {compared} differ\n{shown}"
