"""One fresh seed for all comparisons of a run, on however many cores it is; the run's first lines tell it.

A generated case has no deadline: a busy machine would break it, and no test is there to tell the time.
What takes long is waiting as much as work, so a core has more than one test at a time.
"""

import os
import secrets

import pytest
from hypothesis import HealthCheck, settings

SEED = "ORACLE_SEED"
settings.register_profile("meshlib", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("meshlib")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """For `-n auto`."""
    return (os.cpu_count() or 1) + 1


def pytest_configure() -> None:
    # Workers are children: they find the seed that is set here.
    os.environ[SEED] = os.environ.get(SEED) or str(secrets.randbits(32))


def pytest_report_header() -> str:
    return f"{SEED}={os.environ[SEED]}"
