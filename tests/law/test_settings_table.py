"""Every setting has a row in docs/reference/configuration.md, and every row a setting of a client."""

import re
from pathlib import Path

import meshlib
from meshlib.bootstrap import PREFIX, SETTINGS

PAGE = Path(__file__).parents[2] / "docs/reference/configuration.md"
ROWS = re.findall(r"^\| `(\w+)` \| `(MESHLIB_\w+)` \|", PAGE.read_text(), re.MULTILINE)


def test_each_setting_has_one_row() -> None:
    assert sorted(name for name, _ in ROWS) == sorted(SETTINGS)
    assert [variable for _, variable in ROWS] == [PREFIX + name.upper() for name, _ in ROWS]


def test_each_row_is_an_argument_of_a_client() -> None:
    given: dict[str, object] = {name: None for name, _ in ROWS}
    given |= {"allow_plaintext": True, "access_log": "/dev/stderr", "weight": 3}
    with meshlib.Client(**given) as client:
        mesh = client._own_mesh
        assert mesh is not None
        assert (mesh.bootstrap.access_log, mesh.bootstrap.weight) == ("/dev/stderr", 3)
