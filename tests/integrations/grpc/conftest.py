"""One server of gRPC for the tests of a file."""

from collections.abc import Iterator

import pytest
from support.grpc_server import Seen, grpc_server


@pytest.fixture(scope="module")
def started() -> Iterator[Seen]:
    with grpc_server() as seen:
        yield seen


@pytest.fixture
def server(started: Seen) -> Seen:
    started.clear()
    return started
