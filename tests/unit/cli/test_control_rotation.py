"""What is printed at each step of a rotation, with a real authority and a clock that is set by hand."""

from io import StringIO
from pathlib import Path

from rich.console import Console
from support.pki import ca, plugin

from meshlib.cli.control_rotation import RotationReport
from meshlib.control.ca.authority import Authority
from meshlib.control.ca.issuer import DAY_S

NOW = 1_800_000_000.0


class Watched:
    """An authority, its report, and what that has printed."""

    def __init__(self, folder: Path, plugged: Path | None = None, now: float = NOW) -> None:
        self.now = now
        self.authority = Authority.open(folder, trust_domain="cluster.local", now=now, plugin=plugged)
        self._file = StringIO()
        self._report = RotationReport(Console(file=self._file, width=80), self.authority, lambda: self.now)

    def at(self, now: float) -> list[str]:
        """The lines that are printed when the service looks at that time."""
        self.now = now
        if self.authority.reload(now):
            self._report.look()
        lines = self._file.getvalue().splitlines()
        self._file.seek(0)
        self._file.truncate()
        return lines


def test_each_step_with_its_fingerprints_and_the_new_environment(tmp_path: Path) -> None:
    it = Watched(tmp_path / "state")
    old = it.authority.fingerprint
    assert it.at(NOW + 1) == []
    other = Authority.existing(tmp_path / "state", now=NOW)  # `meshlib ca rotate-root`
    other.rotate_root(NOW, overlap_s=DAY_S, keep_s=2 * DAY_S)
    (announced,) = it.at(NOW + 2)
    new = next(
        one["fingerprint"] for one in it.authority.status(NOW + 2)["roots"] if one["fingerprint"] != old
    )
    assert announced == (
        f"root {new} is new: trusted from now on beside {old}, it issues from 2027-01-16 08:00 UTC "
        "(in 24 h). Before then, give roots.pem of the state folder to whoever trusts a file. "
        "Joins name the old fingerprint until then."
    )
    assert it.at(NOW + DAY_S - 1) == []
    assert it.at(NOW + DAY_S) == [
        (
            f"root {new} issues now. {old} is trusted until 2027-01-18 08:00 UTC (in 2 days). "
            "From now on whoever joins needs the new fingerprint:"
        ),
        f"  export MESHLIB_CA_FINGERPRINT={new}",
    ]
    assert it.at(NOW + 3 * DAY_S) == [
        (
            f"root {old} is trusted no more. Connections that it vouched for begin anew by themselves; "
            "whoever trusts a file no longer needs it there."
        )
    ]
    assert it.at(NOW + 4 * DAY_S) == []


def test_a_new_issuing_key_is_one_line(tmp_path: Path) -> None:
    it = Watched(tmp_path / "state")
    (line,) = it.at(NOW + 190 * DAY_S)
    issuer = it.authority.status(it.now)["issuer"]["fingerprint"]
    assert line.startswith(f"issuing key renewed: {issuer}, ends ")
    assert line.endswith("Nothing to do.")


def test_other_plug_in_files(tmp_path: Path) -> None:
    old, new = (ca(f"root {name}", begin=NOW - 9, end=NOW + 9e6) for name in ("a", "b"))
    (tmp_path / "ca").mkdir()
    plugin(tmp_path / "ca", root=old, now=NOW)
    it = Watched(tmp_path / "state", tmp_path / "ca")
    before = it.authority.fingerprint
    plugin(tmp_path / "ca", root=new, now=NOW)
    lines = it.at(NOW + 2)
    after = it.authority.fingerprint
    assert lines == [
        f"root {after} is trusted now, too.",
        f"root {after} issues now. From now on whoever joins needs the new fingerprint:",
        f"  export MESHLIB_CA_FINGERPRINT={after}",
        (
            f"root {before} is trusted no more. Connections that it vouched for begin anew by themselves; "
            "whoever trusts a file no longer needs it there."
        ),
    ]
