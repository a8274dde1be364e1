"""Random route configurations and requests: real Envoy and our core decide alike.

Both generators, this one and that of documents, together make `ORACLE_CASES` (default 2,000) cases.
Here half of them is from a fixed seed and an eighth from a fresh one, which is printed and can be
given as `ORACLE_SEED`. A case is a configuration with six requests.
"""

import os
import random

import pytest
from support.oracle import run
from support.oracle_routes import make_case

CASES = int(os.environ.get("ORACLE_CASES", "2000"))
FIXED_SEED = 20_261_123
FRESH_SEED = int(os.environ["ORACLE_SEED"])


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("seed", "cases"),
    [(FIXED_SEED, CASES // 2), (FRESH_SEED, CASES // 8)],
    ids=["fixed seed", f"seed {FRESH_SEED}"],
)
def test_envoy_and_core_decide_alike(seed: int, cases: int) -> None:
    print(f"ORACLE_SEED={seed}, {cases} configurations")
    dice = random.Random(seed)
    compared, differences = run([make_case(dice) for _ in range(cases)])
    assert compared == 6 * cases
    shown = "\n\n".join(map(str, differences[:3]))
    assert not differences, f"ORACLE_SEED={seed}: {len(differences)} of {compared} differ\n{shown}"
