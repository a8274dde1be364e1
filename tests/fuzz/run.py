"""Looks for inputs that break a target: `python tests/fuzz/run.py response -max_total_time=600`.

Needs `pip install atheris`, which has wheels for Linux. Everything after the target is libFuzzer's. What is
found interesting goes to `.fuzz/<target>`, where the next run begins; with `--keep` in place of options as
much of it as the gate has time for is added to the corpus that it replays. What breaks a target is written to
a file that the run names: add it to the corpus (a line of hexadecimal) with the mend; there it stays.
"""

import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[1]))
with atheris.instrument_imports(include=["meshlib", "h2", "hpack", "hyperframe"]):
    from fuzz.targets import TARGETS, chosen, keep, kept

FOUND = Path(__file__).parents[2] / ".fuzz"
MOST_KEPT = 150
"""Inputs of a target: the gate has a second or two for all of them."""


def main() -> None:
    """Fuzzes the target that the first argument names."""
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        sys.exit(f"{__doc__}\nTargets: {', '.join(TARGETS)}")
    name, *options = sys.argv[1:]
    found = FOUND / name
    found.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(kept(name)):
        (found / f"kept-{number}").write_bytes(data)
    if options == ["--keep"]:
        keep(name, chosen(kept(name), [path.read_bytes() for path in found.iterdir()], MOST_KEPT))
        return
    artifacts = f"-artifact_prefix={FOUND}/{name}-"
    atheris.Setup([sys.argv[0], *options, artifacts, str(found)], TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
