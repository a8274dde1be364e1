"""CORS: Envoy's filter and ours answer the same preflights, and allow the same pages."""

import os
import random
from pathlib import Path

import pytest
from support.oracle_cors import compare, make_policy, make_request

POLICIES, REQUESTS = 150, 1500
FRESH_SEED = int(os.environ["ORACLE_SEED"])


@pytest.mark.parametrize("seed", [1, FRESH_SEED])
async def test_envoy_and_we_allow_the_same(tmp_path: Path, seed: int) -> None:
    dice = random.Random(seed)
    policies = [make_policy(dice) for _ in range(POLICIES)]
    requests = [make_request(dice, POLICIES + 1) for _ in range(REQUESTS)]
    differences = await compare(policies, requests, tmp_path)
    assert not differences, f"ORACLE_SEED={seed}: {len(differences)} differ\n" + "\n".join(differences[:5])
