"""What the answer of an HTTP authority means."""

import pytest

from meshlib.core.authz.external import HttpAuthority, http_opinion
from meshlib.core.authz.opinion import NoAnswer
from meshlib.core.request import ResponseHead


@pytest.mark.parametrize("status", [100, 101, 199, 500, 503, 600, 999])
def test_a_status_that_is_no_answer(status: int) -> None:
    found = http_opinion(HttpAuthority("c"), ResponseHead(status, []), b"")
    assert found == NoAnswer(f"the authority answered {status}")
