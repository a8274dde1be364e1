"""One fresh seed for all comparisons of a run, on however many cores it is; the run's first lines tell it.

A generated case has no deadline: a busy machine would break it, and no test is there to tell the time.
"""

import os
import secrets

from hypothesis import settings

SEED = "ORACLE_SEED"
settings.register_profile("meshlib", deadline=None)
settings.load_profile("meshlib")


def pytest_configure() -> None:
    # Workers are children: they find the seed that is set here.
    os.environ[SEED] = os.environ.get(SEED) or str(secrets.randbits(32))


def pytest_report_header() -> str:
    return f"{SEED}={os.environ[SEED]}"
