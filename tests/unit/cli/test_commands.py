"""How commands are listed: by what they say of themselves, and without loading them."""

import subprocess
import sys

import pytest

from meshlib.cli.commands import COMMANDS, load


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_is_listed_by_the_first_sentence_of_its_own_help(name: str) -> None:
    said = " ".join(load(name).help.split("\n\n")[0].split())
    assert said.startswith(COMMANDS[name][1])


def test_to_list_them_loads_none() -> None:
    """Nor the control service, and what it is made of."""
    script = (
        "import sys\n"
        "from meshlib.cli.commands import app\n"
        "try:\n"
        "    app(['--help'])\n"
        "except SystemExit:\n"
        "    pass\n"
        "planes = ('meshlib.control', 'meshlib.dataplane')\n"
        "found = [name for name in sys.modules if name.startswith(planes)]\n"
        "print(found + sorted({'yaml', 'grpc', 'cryptography', 'google.protobuf'} & sys.modules.keys()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    shown, found = done.stdout.rstrip().rsplit("\n", 1)
    assert all(name in shown for name in COMMANDS)
    assert found == "[]"
