"""One fresh seed for all comparisons of a run, on however many cores it is; the run's first lines tell it."""

import os
import secrets

SEED = "ORACLE_SEED"


def pytest_configure() -> None:
    # Workers are children: they find the seed that is set here.
    os.environ[SEED] = os.environ.get(SEED) or str(secrets.randbits(32))


def pytest_report_header() -> str:
    return f"{SEED}={os.environ[SEED]}"
