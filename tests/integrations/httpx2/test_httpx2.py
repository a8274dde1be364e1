"""httpx2 beside httpx, instead of it, and under its alias."""

import subprocess
import sys

import httpx
import httpx2
import pytest
from support.fake_mesh import fake_mesh
from support.raw_server import raw_server

import meshlib
import meshlib_httpx2


def test_each_library_has_classes_of_its_own() -> None:
    assert issubclass(meshlib_httpx2.Client, httpx2.Client)
    assert issubclass(meshlib.Client, httpx.Client)
    assert meshlib_httpx2.Client.__module__ == "meshlib_httpx2.clients"
    with raw_server() as server, meshlib_httpx2.Client(mesh=fake_mesh([server.port])) as client:  # type: ignore[arg-type]
        with pytest.raises(httpx2.RemoteProtocolError) as raised:
            client.get("http://reviews:9080/reset")
        assert isinstance(raised.value, meshlib.UpstreamReset)
        assert not isinstance(raised.value, httpx.HTTPError)
        assert type(raised.value).__module__ == "meshlib_httpx2.errors"


@pytest.mark.parametrize(
    ("before", "then"),
    [
        ("sys.modules['httpx'] = None", "meshlib.Client is meshlib_httpx2.Client"),
        ("import httpx2; httpx2.alias_httpx()", "meshlib.Client is meshlib_httpx2.Client"),
    ],
    ids=["httpx is not installed", "alias"],
)
def test_which_one_meshlib_client_is(before: str, then: str) -> None:
    code = (
        f"import sys; {before}; import meshlib, meshlib_httpx2, httpx2\n"
        f"assert {then}\n"
        "assert issubclass(meshlib_httpx2.Client, httpx2.Client)\n"
        "assert issubclass(meshlib_httpx2.AsyncTransport, httpx2.AsyncBaseTransport)\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert done.stderr == ""
    assert done.returncode == 0
