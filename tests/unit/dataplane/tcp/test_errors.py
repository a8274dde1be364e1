"""Errors of connections: meshlib's, and of the standard library where drivers look."""

import errno
import pickle

import pytest

import meshlib
from meshlib.core.actions import Facts
from meshlib.core.request import Failed, Failure
from meshlib.dataplane.tcp import errors

FACTS = Facts("r", "VirtualService a/b", "m.yaml:3", "c", "10.0.0.1:5432", 2, "UF,URX", "x", "7")


@pytest.mark.parametrize(
    ("how", "ours", "theirs", "number"),
    [
        (Failure.CONNECT_FAILED, meshlib.ConnectFailed, ConnectionError, errno.ECONNREFUSED),
        (Failure.CONNECT_TIMED_OUT, meshlib.ConnectTimedOut, TimeoutError, errno.ETIMEDOUT),
        (Failure.TIMED_OUT, meshlib.ConnectTimedOut, TimeoutError, errno.ETIMEDOUT),
    ],
)
def test_a_failed_try(how: Failure, ours: type, theirs: type, number: int) -> None:
    made = errors.of_refusal(Failed(how, "its own words"), FACTS)
    assert isinstance(made, ours)
    assert isinstance(made, theirs)
    assert isinstance(made, ConnectionError)
    assert isinstance(made, OSError)
    assert made.errno == number
    assert made.retryable
    assert "its own words [UF] (route r, cluster c, endpoint 10.0.0.1:5432, 2 attempts" in str(made)


def test_nowhere_to_go() -> None:
    made = errors.of_refusal(None, FACTS._replace(flag="UO", detail="too many"))
    assert isinstance(made, meshlib.NoUpstream)
    assert isinstance(made, meshlib.ConnectFailed)
    assert isinstance(made, ConnectionError)
    assert made.flag == "UO"
    assert str(made).startswith("too many [UO] (")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (meshlib.ControlUnavailable("down"), meshlib.ControlUnavailable),
        (meshlib.RefusedResource("bad"), meshlib.RefusedResource),
        (meshlib.Closed("the mesh is closed"), meshlib.Closed),
    ],
)
def test_nothing_is_known(error: meshlib.MeshError, expected: type) -> None:
    made = errors.of_mesh(error)
    assert isinstance(made, expected)
    assert isinstance(made, ConnectionError)
    assert str(error.args[0]) in str(made)


def test_the_flag_of_a_class_stays() -> None:
    errors.of_refusal(None, FACTS)
    assert meshlib.ConnectFailed.flag == "UF"
    assert pickle.loads(pickle.dumps(meshlib.MeshError("x"))).flag == "-"
