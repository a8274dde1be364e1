"""Who may do what: real Envoy and our core give the same verdict.

RBAC filters at random, with callers who have real certificates. `MESHLIB_ORACLE_CASES` (default 1,000) verdicts come
from a fixed seed, and a quarter as many from a fresh one, which is printed and can be given as
`MESHLIB_ORACLE_SEED`. A configuration is asked six times.
"""

import os
import random
import secrets

import pytest
from support.oracle_authz import World, run
from support.oracle_rbac import ASKS, make_case

CASES = int(os.environ.get("MESHLIB_ORACLE_CASES", "1000"))
FIXED_SEED = 20_261_123
FRESH_SEED = int(os.environ.get("MESHLIB_ORACLE_SEED") or secrets.randbits(32))


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("seed", "cases"),
    [(FIXED_SEED, CASES), (FRESH_SEED, CASES // 4)],
    ids=["fixed seed", f"seed {FRESH_SEED}"],
)
def test_envoy_and_core_give_the_same_verdict(seed: int, cases: int) -> None:
    print(f"MESHLIB_ORACLE_SEED={seed}, {cases} verdicts")
    dice = random.Random(seed)
    world = World()
    compared, differences = run(world, [make_case(dice, world) for _ in range(-(-cases // ASKS))])
    assert compared >= cases
    shown = "\n\n".join(map(str, differences[:3]))
    assert not differences, f"MESHLIB_ORACLE_SEED={seed}: {len(differences)} of {compared} differ\n{shown}"
