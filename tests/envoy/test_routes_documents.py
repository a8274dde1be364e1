"""Random Istio documents and requests: what they are compiled to says the same to Envoy and to our core.

Both generators, this one and that of route configurations, together make `ORACLE_CASES` (default 2,000)
cases. Here an eighth of them is from a fixed seed and a quarter from a fresh one, which is printed and can be
given as `ORACLE_SEED`. A case is a set of documents and a client, with six requests, each judged on
what this library is served and on what an Envoy in its place is served.
"""

import os
import random

import pytest
from support.oracle import Difference, run
from support.oracle_compiled import REQUESTS, make_cases

CASES = int(os.environ.get("ORACLE_CASES", "2000"))
FIXED_SEED = 20_261_124
FRESH_SEED = int(os.environ["ORACLE_SEED"])
BATCH = 250
"""Sets of documents for one Envoy."""


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("seed", "cases"),
    [(FIXED_SEED, CASES // 8), (FRESH_SEED, CASES // 4)],
    ids=["fixed seed", f"seed {FRESH_SEED}"],
)
def test_both_flavours_say_to_envoy_what_our_core_does(seed: int, cases: int) -> None:
    dice = random.Random(seed)
    compared, differences = 0, list[Difference]()
    for start in range(0, cases, BATCH):
        batch = [case for _ in range(min(BATCH, cases - start)) for case in make_cases(dice)]
        count, found = run(batch, scopes=len(batch))
        compared += count
        differences += found
    print(f"ORACLE_SEED={seed}, {cases} sets of documents, {compared} answers compared")
    assert REQUESTS * cases <= compared <= 2 * REQUESTS * cases
    shown = "\n\n".join(map(str, differences[:3]))
    assert not differences, f"ORACLE_SEED={seed}: {len(differences)} of {compared} differ\n{shown}"
