"""Folders: what is found, what stays when an edit breaks it, and that changes are noticed."""

import asyncio
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from meshlib.control.istio.document import AnyDocument
from meshlib.control.sources.files import FileSource
from meshlib.control.sources.source import MemorySource


def entry(name: str, address: str = "10.0.0.1") -> str:
    head = "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\n"
    return f"{head}metadata: {{name: {name}}}\nspec: {{address: {address}}}\n"


def state(source: FileSource) -> dict[str, str]:
    return {d.name: d.spec.address for d in source.load().documents}


def test_recursive_hidden_and_loops(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / ".git").mkdir()
    (tmp_path / "a.yaml").write_text(entry("a") + "---\n" + entry("b"))
    (tmp_path / "b/c.yml").write_text(entry("c"))
    (tmp_path / ".git/d.yaml").write_text(entry("d"))
    (tmp_path / "e.txt").write_text(entry("e"))
    (tmp_path / "b/loop").symlink_to(tmp_path)
    found = FileSource(tmp_path, "other").load()
    assert [(d.namespace, d.name, d.file, d.line) for d in found.documents] == [
        ("other", "a", "a.yaml", 1),
        ("other", "b", "a.yaml", 6),
        ("other", "c", "b/c.yml", 1),
    ]


def test_the_last_good_state_stays(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(entry("a") + "---\n" + entry("b"))
    source = FileSource(tmp_path)
    assert state(source) == {"a": "10.0.0.1", "b": "10.0.0.1"}
    file.write_text(entry("a", "'!'") + "---\n" + entry("b", "10.0.0.2"))
    assert state(source) == {"a": "10.0.0.1", "b": "10.0.0.2"}
    assert [(p.line, p.field) for p in source.load().problems] == [(4, "spec.address")]
    file.write_text("kind: [")
    assert state(source) == {"a": "10.0.0.1", "b": "10.0.0.2"}
    file.write_text(entry("b", "10.0.0.3"))
    assert state(source) == {"b": "10.0.0.3"}
    file.unlink()
    assert state(source) == {}


A, B, C = entry("a"), entry("b"), entry("c")


@pytest.mark.parametrize(
    "edit",
    [
        "---\n".join((A, entry("B_1"), C)),
        "---\n".join((A, B.replace("{name: b}", "{name: b, namespace: N_1}"), C)),
        "---\n".join((A, B.replace("WorkloadEntry", "ServiceEntry"), C)),
        "---\n".join((A, B.replace("WorkloadEntry", "WorkloadEntri"), C)),
        "---\n".join((A, B.replace("name: b", "nmae: b"), C)),
        "---\n".join((A, entry("a", "10.0.0.9"), C)),
        "---\n".join((A, entry("c", "10.0.0.9"), C)),
        "---\n".join((A, B)) + C,
        "---\n".join((A, entry("elsewhere", "10.0.0.9"), C)),
    ],
)
def test_an_edit_that_breaks_who_a_document_is_takes_nothing_away(tmp_path: Path, edit: str) -> None:
    file = tmp_path / "m.yaml"
    file.write_text("---\n".join((A, B, C)))
    (tmp_path / "z.yaml").write_text(entry("elsewhere"))
    source = FileSource(tmp_path)
    everything = dict.fromkeys(("a", "b", "c", "elsewhere"), "10.0.0.1")
    assert state(source) == everything
    file.write_text(edit)
    assert state(source) == everything
    assert state(source) == everything
    assert source.load().errors
    file.write_text("---\n".join((A, entry("b", "10.0.0.2"))))
    assert state(source) == {"a": "10.0.0.1", "b": "10.0.0.2", "elsewhere": "10.0.0.1"}
    assert not source.load().errors


def test_what_is_kept_for_a_name_of_another_file_goes_with_that_conflict(tmp_path: Path) -> None:
    base, other = tmp_path / "base.yaml", tmp_path / "other.yaml"
    base.write_text("---\n".join((A, B)))
    other.write_text(C)
    source = FileSource(tmp_path)
    assert set(state(source)) == {"a", "b", "c"}
    base.write_text("---\n".join((A, entry("c", "10.0.0.9"))))
    assert state(source) == {"a": "10.0.0.1", "b": "10.0.0.1", "c": "10.0.0.1"}
    assert len(source.load().errors) == 1
    other.unlink()
    assert state(source) == {"a": "10.0.0.1", "c": "10.0.0.9"}
    assert not source.load().errors


def test_what_goes_from_a_file_goes_once_nothing_in_it_is_broken(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("---\n".join((A, B, C)))
    source = FileSource(tmp_path)
    assert set(state(source)) == {"a", "b", "c"}
    file.write_text("---\n".join((entry("a", "'!'"), C)))
    assert set(state(source)) == {"a", "b", "c"}
    file.write_text("---\n".join((A, C)))
    assert set(state(source)) == {"a", "c"}


def test_the_file_that_was_first_in_force_stays_so(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_text(entry("a"))
    source = FileSource(tmp_path)
    assert state(source) == {"a": "10.0.0.1"}
    (tmp_path / "a.yaml").write_text(entry("a", "10.0.0.2"))
    assert state(source) == {"a": "10.0.0.1"}
    assert [(p.file, p.allowed) for p in source.load().errors] == [
        ("a.yaml", "one of them; b.yaml:1 is taken")
    ]
    (tmp_path / "b.yaml").unlink()
    assert state(source) == {"a": "10.0.0.2"}
    assert not source.load().errors


def test_an_unchanged_file_is_not_read_again(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(entry("a"))
    source = FileSource(tmp_path)
    assert source.load().documents[0] is source.load().documents[0]


def test_a_document_in_two_files(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(entry("a"))
    (tmp_path / "b.yaml").write_text(entry("a", "10.0.0.2"))
    found = FileSource(tmp_path).load()
    assert [d.file for d in found.documents] == ["a.yaml"]
    assert [(p.file, p.allowed) for p in found.errors] == [("b.yaml", "one of them; a.yaml:1 is taken")]


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        FileSource(tmp_path / "x")


def test_a_list_is_its_items() -> None:
    items = "".join("- " + entry(name).replace("\n", "\n  ").rstrip(" ") for name in ("a", "b"))
    found = MemorySource(f"kind: List\napiVersion: v1\nitems:\n{items}").load()
    assert [(d.name, d.line, d.source("spec", "address")) for d in found.documents] == [
        ("a", 4, "memory.yaml:7"),
        ("b", 8, "memory.yaml:11"),
    ]


@pytest.mark.parametrize("single", [False, True])
async def test_changes_are_noticed(tmp_path: Path, single: bool) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(entry("a"))
    source = FileSource(file if single else tmp_path)
    changes = source.watch()
    waiting = asyncio.ensure_future(anext(changes))
    address, tries = "", 0
    while not waiting.done() and tries < 100:
        # The watch begins some time after it is asked for; writing again makes sure it sees one.
        tries += 1
        address = f"10.0.1.{tries}"
        (tmp_path / "new").write_text(entry("a", address))
        (tmp_path / "new").rename(file)
        await asyncio.wait([waiting], timeout=0.2)
    await waiting
    assert state(source) == {"a": address}
    await changes.aclose()


def test_plain_mesh_config_in_a_file_of_another_name_is_told_how_to_be_given(tmp_path: Path) -> None:
    (tmp_path / "settings.yaml").write_text("rootNamespace: x\nenableTracing: true\n")
    found = FileSource(tmp_path).load()
    assert [(p.line, p.message) for p in found.problems] == [(1, "plain keys of MeshConfig, without a kind")]
    assert "mesh.yaml or mesh.yml" in found.problems[0].allowed
    (tmp_path / "settings.yaml").rename(tmp_path / "mesh.yaml")
    assert [(d.kind, d.spec.root_namespace) for d in FileSource(tmp_path).load().documents] == [
        ("MeshConfig", "x")
    ]


BIG = "---\n".join(entry(f"big-{number}") for number in range(4000))


def kinds(source: FileSource) -> tuple[int, dict[str, str]]:
    """How many documents of the big file there are, and all the others."""
    found = state(source)
    return sum(name.startswith("big-") for name in found), {
        name: address for name, address in found.items() if not name.startswith("big-")
    }


async def begun(source: FileSource) -> tuple[AsyncIterator[None], "asyncio.Task[None]"]:
    changes = source.watch()
    waiting: asyncio.Task[None] = asyncio.ensure_future(anext(changes))
    await asyncio.sleep(0)
    return changes, waiting


async def ended(changes: AsyncIterator[None], waiting: "asyncio.Task[None]") -> None:
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await changes.aclose()  # type: ignore[attr-defined]
    for thread in threading.enumerate():
        if thread.name.startswith("meshlib reads"):
            await asyncio.to_thread(thread.join, 5.0)
            assert not thread.is_alive()


async def test_a_small_edit_does_not_wait_for_a_big_file(tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(entry("a"))
    source = FileSource(tmp_path)
    assert kinds(source) == (0, {"a": "10.0.0.1"})
    changes, waiting = await begun(source)
    (tmp_path / "big.yaml").write_text(BIG)
    (tmp_path / "small.yaml").write_text(entry("a", "10.0.0.2"))
    assert kinds(source) == (0, {"a": "10.0.0.2"})
    async with asyncio.timeout(100):
        while kinds(source)[0] == 0:
            await waiting
            waiting = asyncio.ensure_future(anext(changes))
    assert kinds(source) == (4000, {"a": "10.0.0.2"})
    (tmp_path / "big.yaml").write_text(BIG + "---\n" + entry("c"))
    assert kinds(source) == (4000, {"a": "10.0.0.2"})
    (tmp_path / "big.yaml").write_text(entry("c", "10.0.0.3"))
    assert kinds(source) == (0, {"a": "10.0.0.2", "c": "10.0.0.3"})
    (tmp_path / "big.yaml").write_text(BIG)
    assert kinds(source) == (0, {"a": "10.0.0.2", "c": "10.0.0.3"})
    await ended(changes, waiting)


def test_a_big_file_is_read_at_once_when_nobody_watches(tmp_path: Path) -> None:
    (tmp_path / "big.yaml").write_text(BIG)
    assert kinds(FileSource(tmp_path)) == (4000, {})


@pytest.mark.parametrize("gone", [False, True])
async def test_a_file_emptied_or_gone_for_a_moment_loses_nothing(tmp_path: Path, gone: bool) -> None:
    now = 0.0
    file = tmp_path / "a.yaml"
    file.write_text(entry("a"))
    source = FileSource(tmp_path, clock=lambda: now)
    assert state(source) == {"a": "10.0.0.1"}
    changes, waiting = await begun(source)

    def empty() -> None:
        file.unlink() if gone else file.write_text("# nothing\n")

    empty()
    assert state(source) == {"a": "10.0.0.1"}
    now = 0.49
    assert state(source) == {"a": "10.0.0.1"}
    file.write_text(entry("a", "10.0.0.2"))
    assert state(source) == {"a": "10.0.0.2"}
    empty()
    assert state(source) == {"a": "10.0.0.2"}
    now = 1.0
    assert state(source) == {}
    await ended(changes, waiting)


async def test_a_document_that_goes_while_its_file_is_written_in_parts_stays_for_a_moment(
    tmp_path: Path,
) -> None:
    now = 0.0
    file = tmp_path / "a.yaml"
    file.write_text(entry("a") + "---\n" + entry("b"))
    source = FileSource(tmp_path, clock=lambda: now)
    both = source.load().documents
    changes, waiting = await begun(source)
    file.write_text(entry("a", "10.0.0.2"))
    assert state(source) == {"a": "10.0.0.2", "b": "10.0.0.1"}
    assert source.load().documents[1] is both[1]
    now = 0.4
    file.write_text(entry("a", "10.0.0.3"))  # something is still written: the grace begins again
    now = 0.6
    assert state(source) == {"a": "10.0.0.3", "b": "10.0.0.1"}
    (tmp_path / "b.yaml").write_text(entry("b", "10.0.0.9"))
    assert state(source) == {"a": "10.0.0.3", "b": "10.0.0.9"}
    now = 0.9
    assert state(source) == {"a": "10.0.0.3", "b": "10.0.0.9"}
    assert source.load().problems == ()
    await ended(changes, waiting)


async def test_a_document_that_is_renamed_or_removed_between_others_goes_at_once(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("---\n".join(map(entry, "abc")))
    source = FileSource(tmp_path)
    source.load()
    changes, waiting = await begun(source)
    file.write_text("---\n".join(map(entry, "ac")))
    assert list(state(source)) == ["a", "c"]
    file.write_text("---\n".join(map(entry, "ad")))
    assert list(state(source)) == ["a", "d"]
    await ended(changes, waiting)


async def test_a_file_that_is_written_again_and_again_gives_up_what_went(tmp_path: Path) -> None:
    now = 0.0
    file = tmp_path / "a.yaml"
    file.write_text(entry("a") + "---\n" + entry("b"))
    source = FileSource(tmp_path, clock=lambda: now)
    source.load()
    changes, waiting = await begun(source)
    seen = []
    for number in range(13):
        now = number * 0.4
        file.write_text(entry("a", f"10.0.0.{number}"))
        seen.append("b" in state(source))
    assert seen == [True] * 13
    now = 5.0
    file.write_text(entry("a", "10.0.0.99"))
    assert state(source) == {"a": "10.0.0.99"}
    await ended(changes, waiting)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells who has a file open")
async def test_a_file_counts_as_it_was_while_somebody_has_it_open_for_writing(tmp_path: Path) -> None:
    now = 0.0
    file = tmp_path / "a.yaml"
    file.write_text(entry("a") + "---\n" + entry("b"))
    source = FileSource(tmp_path, clock=lambda: now)
    assert state(source) == {"a": "10.0.0.1", "b": "10.0.0.1"}
    changes, waiting = await begun(source)
    with file.open("w") as writing, (tmp_path / "new.yaml").open("w") as new:
        writing.write(entry("a", "10.0.0.2"))
        writing.flush()
        new.write(entry("c"))
        new.flush()
        assert state(source) == {"a": "10.0.0.1", "b": "10.0.0.1"}
        now = 4.9
        assert state(source) == {"a": "10.0.0.1", "b": "10.0.0.1"}
        writing.write("---\n")
        writing.flush()
        assert state(source) == {"a": "10.0.0.1", "b": "10.0.0.1"}
        now = 5.1  # nobody wrote to the new file for five seconds, though it is open
        assert state(source) == {"a": "10.0.0.1", "b": "10.0.0.1", "c": "10.0.0.1"}
        writing.write(entry("b", "10.0.0.2"))
    async with asyncio.timeout(60):
        await waiting  # closing it is noticed
    waiting = asyncio.ensure_future(anext(changes))
    assert state(source) == {"a": "10.0.0.2", "b": "10.0.0.2", "c": "10.0.0.1"}
    await ended(changes, waiting)


def test_a_file_that_is_open_when_nobody_watches_is_read_as_it_is(tmp_path: Path) -> None:
    with (tmp_path / "a.yaml").open("w") as writing:
        writing.write(entry("a"))
        writing.flush()
        assert state(FileSource(tmp_path)) == {"a": "10.0.0.1"}


async def test_of_a_big_file_only_what_changed_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "big.yaml"
    file.write_text(BIG)
    source = FileSource(tmp_path)
    changes, waiting = await begun(source)

    async def read(text: str) -> dict[str, AnyDocument]:
        """What the file comes to, once it has been read."""
        nonlocal waiting
        file.write_text(text)
        before = source.load().documents
        async with asyncio.timeout(100):
            while source.load().documents == before:
                await waiting
                waiting = asyncio.ensure_future(anext(changes))
        return {document.name: document for document in source.load().documents}

    first = await read(BIG)
    # In the middle, with a line more: what stands before is the same, what comes after moved.
    edited = BIG.replace(entry("big-2000"), "# a comment\n" + entry("big-2000", "10.0.0.2"))
    second = await read(edited)
    assert second["big-1999"] is first["big-1999"]
    assert second["big-2000"].spec.address == "10.0.0.2"
    assert second["big-3999"].spec is first["big-3999"].spec
    assert second["big-3999"].line == first["big-3999"].line + 1
    assert second["big-3999"].source("spec", "address") == f"big.yaml:{edited.count(chr(10))}"
    await ended(changes, waiting)


async def test_a_renamed_file_is_taken_at_once(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(entry("a"))
    source = FileSource(tmp_path)
    assert state(source) == {"a": "10.0.0.1"}
    changes, waiting = await begun(source)
    (tmp_path / "a.yaml").rename(tmp_path / "b.yaml")
    found = source.load()
    assert [(d.name, d.file) for d in found.documents] == [("a", "b.yaml")]
    assert found.problems == ()
    await ended(changes, waiting)
